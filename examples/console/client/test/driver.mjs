/**
 * The client in a program of its own, told by lines of JSON on standard input what to do, and telling on standard
 * output what comes of it: how `tests/console` uses it against a real server.
 *
 *   node driver.mjs <url> [options of connect, as JSON]
 */
import { createInterface } from "node:readline";

import { AccessDenied, connect } from "livekit-moderation-client";
import WebSocket from "ws";

const [url = "", options = "{}"] = process.argv.slice(2);

/** @type {{ resolve: (ticket: string) => void, reject: (error: Error) => void }[]} */
const asking = [];
/** How many changes of the state are still to get lost. */
let losing = 0;

/** @param {object} line */
function tell(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

/** Loses what it is told to lose, as no network does and no server. */
class Lossy extends WebSocket {
  /**
   * @param {string} event
   * @param {...any} told
   * @override
   */
  emit(event, ...told) {
    if (event === "message" && losing > 0 && String(told[0]).includes('"state_changed"')) {
      losing -= 1;
      tell({ lost: true });
      return true;
    }
    return super.emit(event, ...told);
  }
}

const client = connect({
  url,
  ticket: () =>
    new Promise((resolve, reject) => {
      asking.push({ resolve, reject });
      tell({ asks: "ticket" });
    }),
  backoffMs: (attempt) => 50 * attempt,
  WebSocket: Lossy,
  ...JSON.parse(options),
});

function tellSnapshot() {
  const { people, ...known } = client.getSnapshot();
  tell({ snapshot: { ...known, people: Object.fromEntries(people) }, credentials: client.credentials });
}

client.subscribe(tellSnapshot);
client.on("frame", ({ namespace, payload }) => tell({ event: `${namespace}/${payload.message}`, payload }));
tellSnapshot();

/** @param {any} told */
async function carryOut({ id, call, fields = [] }) {
  try {
    tell({ id, resolved: (await Reflect.get(client, call).apply(client, fields)) ?? null });
  } catch (error) {
    tell({ id, rejected: { ...(/** @type {object} */ (error)), text: String(error) } });
  }
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const told = JSON.parse(line);
    if ("ticket" in told) asking.shift()?.resolve(told.ticket);
    else if ("denied" in told) asking.shift()?.reject(new AccessDenied(told.denied));
    else if ("lose" in told) losing = told.lose;
    else void carryOut(told);
  })
  .on("close", () => process.exit());
