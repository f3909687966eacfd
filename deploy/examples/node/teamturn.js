// What every program that speaks with teamturn needs: names, a session's slot, and the keys of events.
import { createHash } from "node:crypto";

export const url = process.env.TEAMTURN_AMQP_URL ?? "amqp://guest:guest@localhost:5672/";
const prefix = process.env.TEAMTURN_PREFIX ?? "teamturn";

export const names = {
  requests: `${prefix}.requests`,
  results: `${prefix}.results`,
  events: `${prefix}.events`,
};

// The routing key of a session's requests: it keeps them in one queue, in order.
export function slotOf(sessionId) {
  return createHash("md5").update(sessionId, "utf8").digest("hex").slice(0, 2);
}

// An id as a part of an event's routing key, <kind>.<target>.<session>.<run>.
export function keyPart(id) {
  if (/^[A-Za-z0-9_-]{1,60}$/.test(id)) return id;
  return createHash("sha256").update(id, "utf8").digest("hex").slice(0, 32);
}

// Fails when the connection or the channel is lost: whoever waits for a reply has to be told.
export function lost(connection, channel) {
  const failed = new Promise((_, reject) => {
    for (const one of [connection, channel]) {
      one.on("error", reject);
      one.on("close", () => reject(new Error("the connection to RabbitMQ was closed")));
    }
  });
  failed.catch(() => {}); // also when we close it ourselves, and nobody waits any more
  return failed;
}
