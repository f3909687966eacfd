// Publishes a run request and prints its reply, as JSON.
//
//   node producer.js --team capital --session chat-1 "What is the capital of France?"
//
// The reply comes by direct reply-to; with --to-results it goes to the results queue, for consumer.js, and the run_id is
// printed instead. With --stream events are published while the turn runs, for watcher.js.
import { randomUUID } from "node:crypto";
import { parseArgs } from "node:util";
import amqp from "amqplib";
import { lost, names, slotOf, url } from "./teamturn.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    team: { type: "string" },
    session: { type: "string" },
    user: { type: "string" },
    // The idempotency key: what is published again under the same one is answered again, and not executed again.
    run: { type: "string", default: randomUUID() },
    stream: { type: "boolean", default: false },
    "to-results": { type: "boolean", default: false },
  },
});
if (values.team === undefined || positionals.length !== 1) {
  console.error('usage: node producer.js --team ID [--session ID] [--user ID] [--stream] [--to-results] "TEXT"');
  process.exit(2);
}

const request = {
  run_id: values.run,
  session_id: values.session ?? values.run,
  team_id: values.team,
  user_id: values.user, // left out of the JSON where it is undefined
  input: positionals[0],
  stream: values.stream,
};

async function replyTo(channel) {
  const replied = new Promise((resolve, reject) => {
    // Before the request is published, on the same channel, and without acknowledgements: so direct reply-to wants it.
    channel.consume("amq.rabbitmq.reply-to", (message) => resolve(message), { noAck: true }).catch(reject);
  });
  await publish(channel, { replyTo: "amq.rabbitmq.reply-to" });
  return JSON.parse((await replied).content.toString("utf8"));
}

async function publish(channel, properties) {
  // Mandatory: a request that no queue takes comes back, before it is confirmed.
  let returned;
  channel.on("return", (message) => (returned = message));
  channel.publish(names.requests, slotOf(request.session_id), Buffer.from(JSON.stringify(request), "utf8"), {
    contentType: "application/json",
    persistent: true,
    mandatory: true,
    messageId: request.run_id,
    correlationId: request.run_id,
    ...properties,
  });
  await channel.waitForConfirms();
  if (returned) throw new Error("no queue took the request: has a worker run on this prefix?");
}

const connection = await amqp.connect(url);
try {
  const channel = await connection.createConfirmChannel();
  const failed = lost(connection, channel);
  if (values["to-results"]) {
    await Promise.race([publish(channel, {}), failed]);
    console.log(request.run_id);
  } else {
    const reply = await Promise.race([replyTo(channel), failed]);
    console.log(JSON.stringify(reply));
    if (reply.status !== "COMPLETED") process.exitCode = 1;
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await connection.close().catch(() => {});
}
