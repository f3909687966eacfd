// Prints what happens in watched runs (`stream: true`), an event a line.
//
//   node watcher.js                          everything
//   node watcher.js --team capital           a team
//   node watcher.js --session chat-1         a session
//   node watcher.js --run RUN_ID --count 1   a run, until it has finished
//
// Nobody keeps events: who is not there, or too slow, misses some; the reply comes as ever.
import { parseArgs } from "node:util";
import amqp from "amqplib";
import { keyPart, lost, names, url } from "./teamturn.js";

const { values } = parseArgs({
  options: {
    team: { type: "string" },
    session: { type: "string" },
    run: { type: "string" },
    count: { type: "string", default: "Infinity" },
  },
});
let left = Number(values.count);

const part = (id) => (id === undefined ? "*" : keyPart(id));
const kind = values.team === undefined ? "*" : "team";
const key = [kind, part(values.team), part(values.session), part(values.run)].join(".");

const connection = await amqp.connect(url);
try {
  const channel = await connection.createChannel();
  const failed = lost(connection, channel);
  const { queue } = await channel.assertQueue("", { exclusive: true, autoDelete: true });
  await channel.bindQueue(queue, names.events, key);
  const done = new Promise((resolve, reject) => {
    channel
      .consume(
        queue,
        (message) => {
          const event = JSON.parse(message.content.toString("utf8"));
          console.log(JSON.stringify(event));
          if (event.type === "run_finished" && --left === 0) resolve();
        },
        { noAck: true },
      )
      .then(() => console.error(`watching ${key}`))
      .catch(reject);
  });
  await Promise.race([done, failed]);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await connection.close().catch(() => {});
}
