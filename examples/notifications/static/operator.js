// The operator's page: each worker publishes its numbers once a second on ops:<worker>, the storage on ops:storage.

import {Bus} from "/trionet.js";
import {$, ask, make, showState} from "./page.js";
import {Chart} from "./chart.js";

const SILENT = 2_500;               // ms without a word after which a part is taken for gone ...
const GONE = 10_000;                // ... and after which it is shown no more
const WINDOW = 10;                  // seconds that percentiles are of

const parts = new Map();            // topic → {numbers, heard, recent: buckets of the last seconds}
const ms = value => value === null ? "–" : value < 10 ? value.toFixed(1) : Math.round(value).toString();
const whole = value => Math.round(value).toLocaleString("en");

const TILES = {
  connections: ["Connections", whole], subscriptions: ["Subscriptions", whole],
  mails: ["Mails", whole, "/s"], deliveries: ["Deliveries", whole, "/s"],
  p50: ["Latency p50", ms, "ms"], p99: ["Latency p99", ms, "ms"], waiting: ["In the outbox", whole],
};
const tiles = {};
for (const [name, [label, , unit]] of Object.entries(TILES)) {
  const tile = make("div"), value = make("dd");
  tiles[name] = make("span", "value", "–");
  value.append(tiles[name]);
  if (unit) value.append(make("small", "", unit));
  tile.append(make("dt", "", label), value);
  $("tiles").append(tile);
}

const charts = [
  new Chart("Connections", {connections: "open", subscriptions: "subscriptions"}, whole, 10),
  new Chart("A second", {mails: "mails", deliveries: "deliveries"}, whole, 5),
  new Chart("Delivery latency, ms", {p50: "p50", p99: "p99"}, ms, 2),
];
for (const chart of charts) $("charts").append(chart.element);

/** Percentiles of buckets [[microseconds, count], …], in ms; null of nothing. */
function percentiles(buckets, ...shares) {
  const sorted = buckets.toSorted(([a], [b]) => a - b);
  const total = sorted.reduce((sum, [, count]) => sum + count, 0);
  return shares.map(share => {
    let reached = 0;
    for (const [value, count] of sorted) if ((reached += count) >= share * total) return value / 1000;
    return null;
  });
}

function hear(numbers, {topic}) {
  const part = parts.get(topic) ?? {recent: []};
  part.recent.push(numbers.delays ?? []);
  if (part.recent.length > WINDOW) part.recent.shift();
  parts.set(topic, {...part, numbers, heard: performance.now()});
}

function draw() {
  const now = performance.now();
  for (const [topic, {heard}] of parts) if (now - heard > GONE) parts.delete(topic);
  const present = [...parts].filter(([, {heard}]) => now - heard < SILENT);
  const workers = present.filter(([topic]) => topic !== "ops:storage").map(([, part]) => part);
  const sum = name => workers.reduce((total, {numbers}) => total + numbers[name], 0);
  const [p50, p99] = percentiles(workers.flatMap(({recent}) => recent.flat()), .5, .99);
  const storage = present.find(([topic]) => topic === "ops:storage")?.[1].numbers;
  const known = workers.length > 0;
  const total = {
    connections: sum("connections"), subscriptions: sum("subscriptions"), mails: storage?.mails ?? null,
    deliveries: sum("deliveries"), p50, p99, waiting: storage?.waiting ?? null,
  };
  for (const [name, [, text]] of Object.entries(TILES)) tiles[name].textContent = known && total[name] !== null ? text(total[name]) : "–";
  for (const chart of charts) chart.add(known ? total : {});
  $("parts").replaceChildren(...[...parts].sort(([a], [b]) => a < b ? -1 : 1).map(([topic, part]) => row(topic, part, now)));
  const silent = bus?.state === "open" && live && heardAt !== null && now - heardAt > 2 * SILENT;
  notice(silent ? "No numbers have come for some seconds: the broker is away, or all workers are." : "");
}

function row(topic, {numbers, heard, recent}, now) {
  const line = make("tr", now - heard > SILENT ? "gone" : "");
  const storage = topic === "ops:storage", [p50, p99] = percentiles(recent.flat(), .5, .99);
  const broker = numbers.broker && `${numbers.broker.name}, ${now - heard > SILENT ? "not heard" : "up"}` +
    (numbers.broker.reconnects ? `, ${numbers.broker.reconnects} reconnect${numbers.broker.reconnects > 1 ? "s" : ""}` : "");
  const cells = storage
    ? ["storage", numbers.pid, "", "", whole(numbers.mails), "", "", "", `${whole(numbers.waiting)} in the outbox`]
    : ["worker", numbers.pid, whole(numbers.connections), whole(numbers.subscriptions), whole(numbers.mails),
       whole(numbers.deliveries), ms(p50), ms(p99), broker];
  line.append(...cells.map(cell => make("td", "", String(cell))));
  return line;
}

function notice(text) {
  if ($("notice-text").textContent !== text) $("notice-text").textContent = text;
  $("notice").hidden = !text;
}

// --- the connection --------------------------------------------------------------------------------------------

let bus = null, live = false, heardAt = null;

async function start() {
  try {
    const {operator} = await ask("/api/inbox");
    if (!operator) { notice("You may not see this page."); return; }
  } catch (error) {
    if (error.status === 401) location.assign("/");
    else setTimeout(start, 2_000);
    return;
  }
  bus = new Bus("/bus");
  const show = () => showState(bus, live);
  bus.addEventListener("state", ({detail}) => { live = false; if (detail.code === 4401) setTimeout(() => location.assign("/"), 500); show(); });
  addEventListener("offline", show);
  bus.subscribe("ops:*", {
    onsubscribed() { live = true; heardAt = performance.now(); show(); },
    onmessage(numbers, about) { heardAt = performance.now(); hear(numbers, about); },
    onerror(error) { live = false; notice(error.retry ? "" : error.message); show(); },
  });
  setInterval(draw, 1000);
}

start();
