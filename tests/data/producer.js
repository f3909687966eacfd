// A producer for teamturn in Node, written from contract.md alone: publishes one request, prints its reply.
// AMQP_URL, PREFIX, SESSION_ID, TEAM_ID and INPUT come from the environment.
const crypto = require("node:crypto");
const amqp = require("amqplib");

const { AMQP_URL, PREFIX, SESSION_ID, TEAM_ID, INPUT } = process.env;

async function main() {
  const connection = await amqp.connect(AMQP_URL);
  const channel = await connection.createConfirmChannel();
  channel.on("return", (message) => {
    throw new Error(`no queue takes the request with the key ${message.fields.routingKey}`);
  });

  const request = { run_id: crypto.randomUUID(), session_id: SESSION_ID, team_id: TEAM_ID, input: INPUT };
  const slot = crypto.createHash("md5").update(SESSION_ID, "utf8").digest("hex").slice(0, 2);
  channel.publish(`${PREFIX}.requests`, slot, Buffer.from(JSON.stringify(request), "utf8"), {
    contentType: "application/json",
    persistent: true,
    mandatory: true,
    messageId: request.run_id,
    correlationId: "asked-from-node",
  });
  await channel.waitForConfirms();

  await new Promise((resolve, reject) => {
    channel.consume(`${PREFIX}.results`, (message) => {
      if (message === null) return reject(new Error("the consumer was cancelled"));
      channel.ack(message);
      if (message.properties.messageId !== request.run_id) return undefined;
      const { correlationId, type } = message.properties;
      console.log(JSON.stringify({ slot, request, correlationId, type, reply: JSON.parse(message.content) }));
      return resolve();
    });
  });
  await channel.close();
  await connection.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
