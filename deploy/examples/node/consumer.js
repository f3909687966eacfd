// Consumes replies from the results queue, and prints each as a line of JSON.
//
//   node consumer.js             for ever, over lost connections
//   node consumer.js --count 1   until there was one
//
// A reply can come twice, with the same message_id and the same bytes: order and de-duplicate by session_id and turn.
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import amqp from "amqplib";
import { lost, names, url } from "./teamturn.js";

const { values } = parseArgs({ options: { count: { type: "string", default: "Infinity" } } });
let left = Number(values.count);

// What you do with a reply. It is acknowledged when this has ended, and comes again if it never does.
async function handle(reply) {
  console.log(JSON.stringify(reply));
}

async function consume() {
  const connection = await amqp.connect(url);
  try {
    const channel = await connection.createChannel();
    const failed = lost(connection, channel);
    const done = new Promise((resolve, reject) => {
      async function received(message) {
        if (message === null) throw new Error("the queue was deleted");
        await handle(JSON.parse(message.content.toString("utf8")));
        channel.ack(message);
        left -= 1;
        if (left === 0) resolve();
      }
      // As many as are handled at a time: the others stay in the queue, for other consumers. So no more come than counted.
      channel
        .prefetch(Math.min(left, 10))
        .then(() => channel.consume(names.results, (message) => received(message).catch(reject)))
        .catch(reject);
    });
    await Promise.race([done, failed]);
    await channel.close(); // has the last acknowledgement out
  } finally {
    await connection.close().catch(() => {});
  }
}

while (left > 0) {
  try {
    await consume();
  } catch (error) {
    console.error(`${error.message}; connecting again`);
    await sleep(1000);
  }
}
