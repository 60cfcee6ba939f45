"use strict";
// Draws what the JSON beside this page says. Everything goes through text nodes: peers chose some of these words.
// One file, because the page is served in one piece: a section for each view, between the lines of dashes.

const VIEWS = { overview: "Overview", connections: "Connections", tasks: "Tasks", handlers: "Handlers", heap: "Memory", profile: "Profile" };
const BASE = location.pathname.replace(/[^/]*$/, "");
const $ = (id) => document.getElementById(id);

function h(tag, props, ...children) {
  const element = tag === "svg" || tag === "path" ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "width%") element.style.width = `${value}%`;
    else element.setAttribute(name === "cls" ? "class" : name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== false && child !== "") element.append(child);
  return element;
}

// ------------------------------------------------------------------ words for numbers

const number = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US"));
function bytes(value) {
  if (value === null || value === undefined) return "–";
  let unit = 0;
  while (value >= 1000 && unit < 4) { value /= 1024; unit += 1; }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0000005) return "0";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${Math.round(seconds % 60)} s`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} m`;
  return `${Math.floor(seconds / 86400)} d ${Math.round((seconds % 86400) / 3600)} h`;
}
const rate = (value) => (value === null ? "–" : value === 0 ? "0" : value < 10 ? value.toFixed(1) : number(value));
const percent = (value) => `${value < 0.1 && value > 0 ? (value * 100).toFixed(1) : Math.round(value * 100)} %`;
const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);

// ------------------------------------------------------------------------------- state

const open = new Set(); // of the details that are unfolded
let query = new URLSearchParams(location.search);
let view = location.pathname.slice(BASE.length) || "overview";
let timer = 0, asking = 0, paused = false, last = null, previous = null;
const history_ = {}; // by worker: the latest numbers, for sparklines
let taken = null; // the latest profile

const interval = () => Number($("interval").value);
const live = () => !paused && !["profile", "heap"].includes(view) && !document.hidden;

function go(next, changes = {}, replace = false) {
  const worker = query.get("worker");
  if (next !== view) { query = new URLSearchParams(worker ? { worker } : {}); last = null; }
  for (const [name, value] of Object.entries(changes)) value === "" || value === null ? query.delete(name) : query.set(name, value);
  view = next;
  const text = query.toString();
  history[replace ? "replaceState" : "pushState"](null, "", BASE + (view === "overview" ? "" : view) + (text ? `?${text}` : ""));
  refresh(true);
}
addEventListener("popstate", () => { query = new URLSearchParams(location.search); view = location.pathname.slice(BASE.length) || "overview"; last = null; refresh(true); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

async function ask(path, options = {}) {
  const response = await fetch(BASE + path, { cache: "no-store", ...options, headers: { Accept: "application/json", ...options.headers } });
  const text = await response.text();
  let document_ = null;
  try { document_ = JSON.parse(text); } catch { /* a refusal is plain text */ }
  if (document_ === null || document_.answers === undefined) throw new Error(text.trim().slice(0, 300) || `the server answered ${response.status}`);
  return document_;
}
const change = (name, parameters) => ask(name, { method: "POST", headers: { "X-Trionet": "1", "Content-Type": "application/json" }, body: JSON.stringify(parameters) });

async function refresh(now = false) {
  clearTimeout(timer);
  const mine = ++asking;
  chrome();
  if (view === "profile") { last = { answers: [], missing: [], workers: [] }; draw(); try { workers((await ask("overview.json")).workers); } catch { /* said when one is taken */ } return; }
  if (!VIEWS[view]) { view = "overview"; }
  if (now && !last) $("content").classList.add("stale");
  const asked = view;
  try {
    const document_ = await ask(`${asked}.json${query.size || query.toString() ? `?${query}` : ""}`);
    if (mine !== asking) return;
    previous = last && last.asked === document_.asked ? last : null;
    last = document_;
    last.at = performance.now() / 1000;
    workers(document_.workers);
    if (asked === "overview") remember();
    draw();
    complain(document_);
  } catch (error) {
    if (mine !== asking) return;
    const offline = error instanceof TypeError;
    $("pulse").className = "pulse bad";
    $("content").classList.add("stale");
    notices(h("div", { cls: "notice bad" }, offline ? `The server cannot be reached. What is shown is old.${live() ? ` Trying again every ${interval()} s.` : ""}` : String(error.message)));
  }
  if (live()) timer = setTimeout(refresh, interval() * 1000);
}

function complain(document_) {
  const said = [];
  for (const worker of document_.missing) said.push(h("div", { cls: "notice warn" }, `Worker ${worker} did not answer in ${document_.timeout} s: its loop is blocked, or the process is stopped.`));
  for (const answer of document_.answers) if (answer.error) said.push(h("div", { cls: "notice bad" }, `Worker ${answer.worker}: ${answer.error}`));
  if (!document_.workers.length) said.push(h("div", { cls: "notice warn" }, "There is no worker: none has started yet, or all have ended."));
  notices(...said);
  $("pulse").className = `pulse ${document_.missing.length ? "warn" : said.length ? "bad" : "good"}`;
  $("stamp").textContent = `Answered in ${time(document_.seconds)} at ${new Date().toLocaleTimeString()}${live() ? "" : paused ? " · paused" : " · not refreshed by itself"}`;
}
const notices = (...said) => $("notices").replaceChildren(...said);

function workers(list) {
  const select = $("worker"), chosen = query.get("worker") || "";
  const names = [["", "all"], ...list.map((each) => [String(each.worker), `${each.worker} (pid ${each.pid})`])];
  if (chosen && !names.some(([value]) => value === chosen)) names.push([chosen, `${chosen} (gone)`]);
  $("workerlabel").hidden = list.length < 2 && !chosen;
  if (select.dataset.names !== JSON.stringify(names)) { select.dataset.names = JSON.stringify(names); select.replaceChildren(...names.map(([value, name]) => h("option", { value }, name))); }
  select.value = chosen;
}
function chrome() {
  document.title = `${VIEWS[view] || "debug"} · trionet debug`;
  $("nav").replaceChildren(...Object.entries(VIEWS).map(([name, title]) => {
    const worker = query.get("worker");
    const href = BASE + (name === "overview" ? "" : name) + (worker ? `?worker=${encodeURIComponent(worker)}` : "");
    return h("a", { href, "aria-current": name === view && "page", onclick: (event) => { if (event.ctrlKey || event.metaKey || event.shiftKey) return; event.preventDefault(); go(name); } }, title);
  }));
}
$("worker").addEventListener("change", () => { last = null; go(view, { worker: $("worker").value }); });
$("interval").addEventListener("change", () => refresh());
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").textContent = paused ? "Go on" : "Pause";
  $("pause").setAttribute("aria-pressed", String(paused));
  if (paused) { clearTimeout(timer); $("stamp").textContent += " · paused"; } else refresh();
});

const values = () => last.answers.filter((answer) => answer.value !== undefined);
const several = () => last.workers.length > 1;

function draw() {
  const focused = document.activeElement && document.activeElement.id, at = focused && document.activeElement.selectionStart;
  const content = $("content");
  content.classList.remove("stale");
  if (view !== "profile" && !values().length) content.replaceChildren(h("div", { cls: "panel empty" }, h("b", {}, "No answer"), h("p", {}, "No worker has answered. The reason is above; the page goes on asking.")));
  else content.replaceChildren(...[DRAW[view]()].flat(Infinity).filter(Boolean));
  const again = focused && $(focused);
  if (again && content.contains(again)) { again.focus(); try { if (at !== null && at !== undefined) again.setSelectionRange(at, at); } catch { /* a select has none */ } }
}

// ------------------------------------------------------------------------------ pieces

function tile(name, value, unit, note, series, level) {
  return h("div", { cls: `panel tile ${level || ""}` }, h("span", {}, name), h("strong", {}, value, unit && h("small", {}, unit)), note && h("em", {}, note), series && spark(series));
}
function spark(series) {
  const points = series.filter((value) => value !== null);
  if (points.length < 2) return h("svg", { viewBox: "0 0 100 30" });
  const top = Math.max(...points), low = Math.min(...points, top * 0.6), span = top - low || 1;
  const line = points.map((value, index) => `${index ? "L" : "M"}${((index / (points.length - 1)) * 100).toFixed(1)} ${(28 - ((value - low) / span) * 24).toFixed(1)}`).join("");
  return h("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, h("path", { cls: "sparkfill", d: `${line}L100 30L0 30Z` }), h("path", { cls: "spark", d: line }));
}
const bar = (share) => h("div", { cls: `meterbar ${share > 0.95 ? "bad" : share > 0.8 ? "warn" : ""}` }, h("i", { "width%": Math.min(100, share * 100) }));
const listed = (pairs) => h("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

// A table whose columns are [key, title, how to show, options]; sorted by a click, remembered in the URL.
function table(name, columns, rows, options = {}) {
  const key = query.get(`${name}_by`) || options.by, up = query.get(`${name}_up`) === "1" || (options.up && !query.get(`${name}_by`));
  const column = columns.find((each) => each[0] === key);
  if (column && !options.sorted) {
    const of = column[3]?.value || ((row) => row[key]);
    rows = [...rows].sort((a, b) => { const x = of(a) ?? -1, y = of(b) ?? -1; return (x < y ? 1 : x > y ? -1 : 0) * (up ? -1 : 1); });
  }
  const top = {};
  for (const [id, , , how] of columns) if (how?.meter) top[id] = Math.max(1e-9, ...rows.map((row) => row[id] || 0));
  const head = columns.map(([id, title, , how]) => {
    const sorted = id === key && (up ? "ascending" : "descending");
    const sort = () => (options.onsort ? options.onsort(id) : go(view, { [`${name}_by`]: id, [`${name}_up`]: id === key && !up ? "1" : "" }, true));
    return h("th", { cls: how?.text ? "" : "num", "aria-sort": sorted, scope: "col", title: how?.title }, how?.fixed ? title : h("button", { type: "button", onclick: sort }, title));
  });
  const body = rows.map((row) => h("tr", options.onrow ? { cls: "click", tabindex: "0", onclick: () => options.onrow(row), onkeydown: (event) => event.key === "Enter" && options.onrow(row) } : {},
    columns.map(([id, title, show, how], index) => {
      const shown = show(row[id], row);
      const none = shown === "–" || shown === "" || shown === null || (how?.zero && !(how.value ? how.value(row) : row[id]));
      const level = how?.level?.(row[id], row) || "";
      return h("td", { cls: `${how?.text ? "" : "num"} ${how?.cls || ""} ${index ? "" : "first"} ${none ? "none" : ""} ${level}`, "data-label": title }, none && how?.zero ? h("span", { cls: "quiet" }, "0") : shown, how?.meter && row[id] ? h("i", { cls: "meter", "width%": (100 * row[id]) / top[id] }) : null);
    })));
  return h("div", { cls: "panel scroll" }, h("table", { cls: "cards" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}
function folded(key, summary, ...inside) {
  const details = h("details", { open: open.has(key), ontoggle: (event) => { if (event.target === details) details.open ? open.add(key) : open.delete(key); } }, h("summary", {}, summary), inside);
  return details;
}
const stack = (frames) => h("div", { cls: "stack" }, frames.map((frame) => h("div", { cls: frame.own ? "own" : "" }, `${frame.file}:${frame.line} ${frame.function}  `, h("code", {}, frame.code))));
const own = (frames) => {
  const inner = [...frames].reverse();
  return inner.find((frame) => frame.own) || inner.find((frame) => !frame.file.startsWith("trio/")) || inner[0];
};

// ---------------------------------------------------------------------------- overview

function remember() {
  for (const { worker, value } of values()) {
    const list = (history_[worker] ||= []), before = list[list.length - 1], s = value.statistics;
    const now = { at: value.time, opened: s.opened, jobs: s.pool.jobs, cpu: value.cpu, connections: s.connections, lag: s.lag };
    const passed = before ? now.at - before.at : 0;
    for (const [name, of] of [["openedRate", "opened"], ["jobsRate", "jobs"], ["cpuRate", "cpu"]]) now[name] = passed > 0 && now[of] >= before[of] ? (now[of] - before[of]) / passed : null;
    list.push(now);
    if (list.length > 90) list.shift();
  }
}
function series(answers, name, most) {
  const lists = answers.map(({ worker }) => (history_[worker] || []).map((each) => each[name]));
  const length = Math.min(...lists.map((list) => list.length));
  return Array.from({ length }, (_, index) => lists.map((list) => list[list.length - length + index])).map((row) => (row.some((value) => value === null) ? null : most ? Math.max(...row) : sum(row)));
}
function drawOverview() {
  const answers = values(), all = answers.map((answer) => answer.value), stats = all.map((value) => value.statistics), latest = (name) => series(answers, name).at(-1) ?? null;
  const connections = sum(stats.map((s) => s.connections)), most = sum(all.map((value) => value.max_connections)), pss = sum(all.map((value) => value.memory.pss)), rss = sum(all.map((value) => value.memory.rss));
  const busy = sum(stats.map((s) => s.pool.busy)), size = sum(stats.map((s) => s.pool.size)), lag = Math.max(...stats.map((s) => s.lag)), worst = Math.max(...stats.map((s) => s.lag_max)), cpu = latest("cpuRate");
  const draining = stats.filter((s) => s.draining).length;
  const held = {};
  for (const s of stats) for (const [reason, count] of Object.entries(s.gate.held || {})) if (count) held[reason] = (held[reason] || 0) + count;
  const tiles = h("div", { cls: "tiles" },
    tile("Connections", number(connections), `of ${number(most)}`, `${number(sum(stats.map((s) => s.opening)))} opening · ${number(sum(stats.map((s) => s.streams)))} streams`, series(answers, "connections"), connections > most * 0.95 ? "warn" : ""),
    tile("Accepted", rate(latest("openedRate")), "a second", `${number(sum(stats.map((s) => s.opened)))} in all`, series(answers, "openedRate")),
    tile("Jobs", rate(latest("jobsRate")), "a second", `${number(sum(stats.map((s) => s.pool.failures)))} failed`, series(answers, "jobsRate")),
    tile("Loop lag", time(lag), several() && "at most", `${time(worst)} at the worst`, series(answers, "lag", true), lag > 0.25 ? "bad" : lag > 0.05 ? "warn" : ""),
    tile("Processor", cpu === null ? "–" : percent(cpu), "of a core", several() ? `${last.answers.length} workers` : `${time(all[0].cpu)} so far`, series(answers, "cpuRate"), cpu > 0.95 * all.length ? "warn" : ""),
    tile("Memory", bytes(rss), "RSS", pss ? `${bytes(pss)} PSS${connections > 99 ? ` · ${bytes(pss / connections)} a connection, all told` : ""}` : ""),
    h("div", { cls: "panel tile" }, h("span", {}, "Pool"), h("strong", {}, number(busy), h("small", {}, `of ${number(size)} slots`)), h("em", {}, `${number(sum(stats.map((s) => s.pool.suspended)))} suspended · ${number(sum(stats.map((s) => s.pool.queued)))} queued`), bar(busy / (size || 1))),
    tile("Waiting handlers", number(sum(stats.map((s) => s.pool.parked + s.pool.detached))), "", `${number(sum(stats.map((s) => s.pool.parked)))} parked, without a task · ${number(sum(stats.map((s) => s.pool.detached)))} in tasks`));
  const said = [];
  if (draining) said.push(h("div", { cls: "notice warn" }, `${several() ? `${draining} workers are` : "The server is"} draining.`));
  if (Object.keys(held).length) said.push(h("div", { cls: "notice" }, `Looks that accepted nothing, since the start: ${Object.entries(held).map(([reason, count]) => `${number(count)} for ${reason}`).join(", ")}.`));
  const rows = answers.map(({ worker, pid, value }) => ({ worker, pid, ...value.statistics, cpu: (history_[worker] || []).at(-1)?.cpuRate ?? null, busy: value.statistics.pool.busy, detached: value.statistics.pool.detached, pss: value.memory.pss, jobs: value.statistics.pool.jobs, up: value.seconds }));
  const per = several() && [h("h2", {}, "Workers"), table("workers", [
    ["worker", "worker", (value, row) => `${value} · pid ${row.pid}`, { text: true }], ["connections", "connections", number, { meter: true }], ["opening", "opening", number, { zero: true }], ["cpu", "processor", (value) => (value === null ? "–" : percent(value))],
    ["lag", "lag", time, { level: (value) => (value > 0.25 ? "hot" : value > 0.05 ? "warm" : "") }], ["busy", "busy", number, { zero: true }], ["detached", "detached", number, { zero: true }], ["jobs", "jobs", number], ["pss", "PSS", bytes], ["up", "up", time]],
    rows, { by: "worker", up: true, onrow: (row) => go("overview", { worker: row.worker }) })];
  const first = all[0];
  return [said, tiles, per, h("h2", {}, several() ? "A worker of them" : "Details"), h("div", { cls: "facts" },
    h("div", { cls: "panel pad" }, listed([["listens on", first.listening.join(", ")], ["process", `${answers[0].pid}, up ${time(first.seconds)}`], ["command", h("code", {}, first.command)], ...Object.entries(first.versions)])),
    h("div", { cls: "panel pad" }, folded("counters", h("div", { cls: "node" }, h("b", {}, "All counters")), listed(flat(first.statistics)))),
    h("div", { cls: "panel pad" }, folded("say", h("div", { cls: "node" }, h("b", {}, "Say something to every WebSocket")), sayForm())))];
}
function flat(value, prefix = "") {
  return Object.entries(value).flatMap(([name, each]) => (each !== null && typeof each === "object" && !Array.isArray(each) ? flat(each, `${prefix}${name}.`) : [[prefix + name, typeof each === "number" ? each.toLocaleString("en-US", { maximumFractionDigits: 6 }) : String(each)]]));
}
let draft = "";
function sayForm() {
  const input = h("input", { type: "text", id: "saytext", value: draft, placeholder: "a text message", "aria-label": "Message", oninput: (event) => (draft = event.target.value) });
  return h("form", { cls: "tools", onsubmit: async (event) => {
    event.preventDefault();
    if (!input.value || !confirm(`Send “${input.value}” to every open WebSocket${query.get("worker") ? ` of worker ${query.get("worker")}` : ""}?`)) return;
    await act("broadcast", { text: input.value, worker: query.get("worker") || undefined }, (each) => `${number(each.sent)} got it in ${time(each.seconds)}${each.left_out ? `, ${number(each.left_out)} were left out: too slow` : ""}`);
  } }, input, h("button", { type: "submit" }, "Send"));
}
async function act(name, parameters, words) {
  try {
    const answer = await change(name, parameters);
    const said = answer.answers.map((each) => (each.error ? `Worker ${each.worker}: ${each.error}` : `${several() ? `Worker ${each.worker}: ` : ""}${words(each.value)}`));
    said.push(...answer.missing.map((worker) => `Worker ${worker} did not answer in ${answer.timeout} s`));
    const bad = answer.missing.length || answer.answers.some((each) => each.error);
    await refresh();
    $("notices").append(h("div", { cls: `notice ${bad ? "bad" : "good"}` }, said.join(". ")));
    return answer;
  } catch (error) { $("notices").append(h("div", { cls: "notice bad" }, String(error.message))); return null; }
}

// ------------------------------------------------------------------------- connections

const STATE = { open: "good", opening: "blue", closing: "warn", lingering: "warn", closed: "", stream: "blue" };
const HANDLER = { parked: "parked", waits: "suspended", receives: "in a task" };
const SORTS = ["queued", "held", "memory", "silent", "stalled", "age", "fd"];
function drawConnections() {
  const answers = values(), summaries = answers.map((answer) => answer.value.summary), sort = query.get("sort") || "queued";
  const merged = (name) => summaries.reduce((all, each) => { for (const [key, count] of Object.entries(each[name])) all[key] = (all[key] || 0) + count; return all; }, {});
  const rows = answers.flatMap(({ worker, pid, value }) => value.rows.map((row) => ({ ...row, worker, pid })));
  rows.sort((a, b) => (b[sort] ?? -1) - (a[sort] ?? -1));
  const matched = sum(summaries.map((each) => each.matched)), total = sum(summaries.map((each) => each.connections));
  const chips = (name, words) => Object.entries(merged(name)).sort((a, b) => b[1] - a[1]).map(([key, count]) => h("button", { type: "button", cls: "chip", "aria-pressed": String(query.get(words) === key), onclick: () => go("connections", { [words]: query.get(words) === key ? "" : key }) }, key, h("b", {}, number(count))));
  const field = (name, title, props = {}) => h("label", {}, title, h("input", { type: "text", id: `filter-${name}`, value: query.get(name) || "", ...props, onchange: (event) => go("connections", { [name]: event.target.value.trim() }) }));
  const protocols = merged("protocols");
  const tools = h("form", { cls: "tools", onsubmit: (event) => event.preventDefault() },
    field("peer", "peer begins with", { placeholder: "10.1." }),
    h("label", {}, "protocol", h("select", { id: "filter-protocol", onchange: (event) => go("connections", { protocol: event.target.value }) }, h("option", { value: "" }, "any"), [...new Set([...Object.keys(protocols), ...(query.get("protocol") ? [query.get("protocol")] : [])])].map((name) => h("option", { value: name, selected: query.get("protocol") === name }, name)))),
    field("min_queued", "queued, at least", { type: "number", min: "0", placeholder: "bytes" }), field("min_silent", "silent, at least", { type: "number", min: "0", placeholder: "seconds" }),
    h("label", {}, "largest first by", h("select", { id: "filter-sort", onchange: (event) => go("connections", { sort: event.target.value === "queued" ? "" : event.target.value }) }, SORTS.map((name) => h("option", { value: name, selected: name === sort }, name)))),
    h("label", {}, "show", h("select", { id: "filter-limit", onchange: (event) => go("connections", { limit: event.target.value === "50" ? "" : event.target.value }) }, ["20", "50", "200", "1000"].map((name) => h("option", { value: name, selected: name === (query.get("limit") || "50") }, name)))),
    [..."state flag peer protocol min_queued min_silent".split(" ")].some((name) => query.get(name)) && h("button", { type: "button", onclick: () => go("connections", { state: "", flag: "", peer: "", protocol: "", min_queued: "", min_silent: "" }) }, "Clear filters"));
  const tiles = h("div", { cls: "tiles" }, tile("Connections", number(total), matched === total ? "" : `${number(matched)} match`), tile("Queued for peers", bytes(sum(summaries.map((each) => each.queued)))), tile("Input held", bytes(sum(summaries.map((each) => each.held)))), tile("Python objects", bytes(sum(summaries.map((each) => each.memory))), "", total ? `${bytes(sum(summaries.map((each) => each.memory)) / total)} a connection` : ""));
  const chipbar = h("div", { cls: "chips" }, chips("states", "state"), Object.keys(merged("flags")).length ? h("span", { cls: "quiet" }, "flags") : null, chips("flags", "flag"));
  const columns = [
    ["peer", "peer", (value, row) => [row.client ? `${row.client} via ${value}` : value || "unix socket", row.key ? h("span", { cls: "badge blue" }, row.key) : null], { text: true, fixed: true, cls: "wide mono" }],
    ["protocol", "protocol", (value, row) => [value, row.tls ? " " : null, row.tls ? h("span", { cls: "badge" }, "TLS") : null, row.subprotocol ? h("span", { cls: "badge" }, row.subprotocol) : null], { text: true, fixed: true, cls: "wide bare" }],
    ["state", "state", (value, row) => [h("span", { cls: `badge ${STATE[value] || ""}` }, value), (row.flags || []).filter((flag) => flag !== "busy").map((flag) => h("span", { cls: "badge warn" }, flag)), row.handler ? h("span", { cls: `badge ${row.handler === "waits" ? "warn" : ""}` }, HANDLER[row.handler]) : null], { text: true, fixed: true, cls: "wide bare" }],
    ["silent", "silent", time, { title: "since the last input" }], ["age", "age", time, { title: "since it was accepted" }],
    ["queued", "queued", bytes, { zero: true, meter: true, title: "waits for the peer to read" }], ["stalled", "stalled", time, { zero: true, title: "the peer has taken nothing of it for", level: (value) => (value > 5 ? "hot" : value > 1 ? "warm" : "") }],
    ["held", "held", (value, row) => (value || row.partial ? bytes((value || 0) + (row.partial || 0)) : ""), { zero: true, value: (row) => (row.held || 0) + (row.partial || 0), title: "input that waits for the handler, and parts of messages" }], ["memory", "memory", bytes, { title: "Python objects, estimated" }], ["fd", "fd", number, { cls: "spare" }], several() && ["worker", "worker", number, { fixed: true }]].filter(Boolean);
  for (const column of columns) if (column[3] ? !column[3].fixed && !SORTS.includes(column[0]) : false) column[3].fixed = true;
  const list = rows.length ? table("c", columns.map((column) => (column.length < 4 ? [...column, {}] : column)), rows.slice(0, Number(query.get("limit") || 50)), { by: sort, sorted: true, onsort: (id) => go("connections", { sort: id === "queued" ? "" : id }), onrow: (row) => inspect(row.id, row.pid) })
    : h("div", { cls: "panel empty" }, h("b", {}, total ? "No connection matches" : "No connections"), h("p", {}, total ? `${number(total)} connections are open, none of them with these filters.` : "Nobody is connected to this server now."));
  return [tiles, h("h2", {}, "By state"), chipbar, tools, list, rows.length < matched && h("p", { cls: "quiet" }, `The first ${number(Math.min(rows.length, Number(query.get("limit") || 50)))} of ${number(matched)}, by ${sort}.`)];
}

async function inspect(id, worker) {
  const dialog = $("dialog");
  const close = () => dialog.close();
  const frame = (...inside) => dialog.replaceChildren(h("div", { cls: "head" }, h("h3", {}, "Connection ", h("code", {}, id)), h("button", { type: "button", onclick: close, autofocus: true }, "Close")), h("div", { cls: "body" }, inside));
  frame(h("p", { cls: "quiet" }, "Asking …"));
  if (!dialog.open) dialog.showModal();
  let facts;
  try {
    const answer = await ask(`connection.json?${new URLSearchParams({ id, ...(worker ? { worker } : {}) })}`);
    const found = answer.answers.find((each) => each.value);
    if (!found) { frame(h("p", { cls: "notice warn" }, answer.answers.map((each) => each.error).join(" ") || `No worker answered in ${answer.timeout} s.`)); return; }
    facts = found.value; worker = found.pid;
  } catch (error) { frame(h("p", { cls: "notice bad" }, String(error.message))); return; }
  const k = facts.kernel || {}, result = h("div", { role: "status" });
  const code = h("input", { type: "number", value: "1008", min: "1000", max: "4999", "aria-label": "Close code" }), reason = h("input", { type: "text", placeholder: "reason, the peer sees it", maxlength: "123", "aria-label": "Reason" }), reset = h("input", { type: "checkbox" });
  const kick = h("form", { cls: "tools", onsubmit: async (event) => {
    event.preventDefault();
    try {
      const answer = await change("kick", { id, worker, code: Number(code.value), reason: reason.value, reset: reset.checked });
      const each = answer.answers[0] || { error: `no answer in ${answer.timeout} s` };
      result.replaceChildren(h("p", { cls: `notice ${each.error ? "bad" : "good"}` }, each.error || each.value.done));
      refresh();
    } catch (error) { result.replaceChildren(h("p", { cls: "notice bad" }, String(error.message))); }
  } }, h("label", {}, "code", code), h("label", {}, "reason", reason), h("label", { cls: "row" }, reset, "at once, by a TCP reset"), h("button", { type: "submit", cls: "danger" }, "Close this connection"));
  frame(h("div", { cls: "facts" },
    listed([["peer", facts.peer], ["client", facts.client], ["our address", facts.local], ["protocol", facts.protocol], ["class", facts.class], ["subprotocol", facts.subprotocol], ["key", facts.key], ["state", [h("span", { cls: `badge ${STATE[facts.state] || ""}` }, facts.state), (facts.flags || []).map((flag) => h("span", { cls: "badge warn" }, flag))]], ["handler", HANDLER[facts.handler]], ["closed", facts.closed], ["data", facts.data && h("code", {}, facts.data)], ["TLS", facts.tls_version && `${facts.tls_version}, ${facts.tls_cipher}`], ["compression", facts.compression]]),
    listed([["age", time(facts.age)], ["silent for", time(facts.silent)], ["queued", facts.queued !== undefined && `${bytes(facts.queued)}, ${number(facts.frames)} frames`], ["stalled for", facts.stalled ? time(facts.stalled) : ""], ["input held", bytes(facts.held)], ["part of a message", facts.partial ? bytes(facts.partial) : ""], ["memory", facts.memory && bytes(facts.memory)], ["next deadline in", facts.next_look !== undefined ? time(facts.next_look) : ""], ["high water", facts.limits && bytes(facts.limits.high_water)], ["write timeout", facts.limits && (facts.limits.write_timeout > 1e8 ? "none" : time(facts.limits.write_timeout))]])),
    Object.keys(k).length > 0 && [h("h4", {}, "The kernel says"), h("div", { cls: "facts" }, listed([["TCP state", k.tcp], ["round trip", k.rtt_ms !== undefined ? `${k.rtt_ms} ms ± ${k.rtt_variation_ms}` : ""], ["retransmits", k.retransmits !== undefined ? number(k.retransmits) : ""], ["not acknowledged", bytes(k.unsent)], ["not read by us", bytes(k.unread)]]), listed([["sent in all", k.sent !== undefined ? bytes(k.sent) : ""], ["received in all", k.received !== undefined ? bytes(k.received) : ""], ["last sent", k.last_sent !== undefined ? `${time(k.last_sent / 1000)} ago` : ""], ["buffers", `${bytes(k.send_buffer)} out, ${bytes(k.receive_buffer)} in`]]))],
    facts.stack && (facts.stack.length ? [h("h4", {}, facts.handler === "parked" ? "Its handler is parked here" : "Its handler waits here"), stack(facts.stack)] : [h("h4", {}, "No handler runs or waits: it is between two messages")]),
    h("h4", {}, "End it"), kick, result);
}

// ------------------------------------------------------------------------------- tasks

function connectionLinks(ids, worker, more) {
  return ids && ids.length ? h("span", { cls: "links" }, ids.length < more ? "connections, for example" : "connection", ids.map((id) => h("button", { type: "button", onclick: () => inspect(id, worker) }, id))) : null;
}
function where(frames) {
  const frame = frames.length && own(frames);
  return frame ? h("span", { cls: "where" }, `${frame.file}:${frame.line} `, h("i", {}, frame.code)) : null;
}
function node(each, path, worker) {
  const title = h("div", { cls: "node" }, h("b", {}, each.name), each.running && h("span", { cls: "badge good" }, "running: it answers this"), each.count > 1 && h("span", { cls: "badge blue" }, `and ${number(each.count - 1)} more like this`), each.handler && h("span", { cls: "badge" }, each.handler), each.nurseries.some((nursery) => nursery.cancelled) && h("span", { cls: "badge warn" }, "cancelled"), where(each.stack));
  const children = each.nurseries.flatMap((nursery, index) => [
    ...nursery.children.map((child, place) => node(child, `${path}/${index}.${place}.${child.name}`, worker)),
    nursery.hidden ? h("li", {}, h("div", { cls: "node quiet" }, `… ${number(nursery.hidden)} more tasks`)) : null]);
  return h("li", {}, folded(path, title, connectionLinks(each.connections, worker, each.count), stack(each.stack)), children.length ? h("ul", {}, children) : null);
}
function drawTasks() {
  return values().map(({ worker, pid, value }) => {
    const waiting = value.parked;
    return [
      h("h2", {}, several() ? `Worker ${worker}: tasks` : "Tasks", h("small", {}, `${number(value.tasks)} in Trio's tree, looked at in ${time(value.seconds)}${value.hidden ? `; ${number(value.hidden)} not shown` : ""}`)),
      h("div", { cls: "panel tree" }, h("ul", {}, node(value.root, `t${pid}`, pid))),
      h("h2", {}, several() ? `Worker ${worker}: handlers without a task` : "Handlers without a task", h("small", {}, `${number(waiting.total)} parked: they wait, and cost a coroutine each${waiting.looked_at < waiting.total ? `; ${number(waiting.looked_at)} of them were looked at` : ""}`)),
      waiting.groups.length ? h("div", { cls: "panel groups" }, waiting.groups.map((group, index) => folded(`p${pid}.${index}`, h("div", { cls: "node" }, h("b", {}, `${number(group.count)} × `, group.handler.split(" ").at(-1)), h("span", { cls: "badge" }, group.handler.split(" ")[0]), where(group.stack)), connectionLinks(group.connections, pid, group.count), stack(group.stack))))
        : h("div", { cls: "panel empty" }, h("b", {}, "None"), h("p", {}, "No straight-line handler waits for a message, and none for room in a queue."))];
  });
}

// ---------------------------------------------------------------------------- handlers

function drawHandlers() {
  const answers = values(), on = answers.filter((answer) => answer.value.on);
  const set = (state) => act("timing", { on: state, worker: query.get("worker") || undefined }, (each) => (each.on ? "measuring" : "no longer measuring"));
  if (!on.length) return h("div", { cls: "panel empty" }, h("b", {}, "Handlers are not measured"), h("p", {}, "Switched on, each job is timed: how long handlers keep the loop to themselves, the longest stretch, and how long they wait. That costs one to two microseconds a job. Off, it costs nothing."), h("button", { cls: "main", type: "button", onclick: () => set(true) }, "Start measuring"));
  const rows = on.flatMap(({ worker, value }) => value.rows.map((row) => ({ ...row, worker, mean: row.stretches ? row.busy / row.jobs : 0, share: row.busy / value.seconds })));
  const seconds = Math.max(...on.map((answer) => answer.value.seconds)), busy = sum(on.map((answer) => answer.value.busy));
  return [h("div", { cls: "tools" }, h("span", { cls: "quiet" }, `Measured for ${time(seconds)}; handlers had the loop for ${percent(busy / sum(on.map((answer) => answer.value.seconds)))} of it.`), h("button", { cls: "right", type: "button", onclick: () => set(true) }, "Begin anew"), h("button", { type: "button", onclick: () => set(false) }, "Stop")),
    rows.length ? table("h", [several() && ["worker", "worker", number, {}], ["handler", "handler", (value) => value, { text: true, cls: "wide" }], ["share", "of the loop", percent, { meter: true }], ["busy", "on the loop", time], ["jobs", "jobs", number], ["mean", "a job", time], ["longest", "longest stretch", time, { title: "nobody else ran meanwhile", level: (value) => (value > 0.1 ? "hot" : value > 0.02 ? "warm" : "") }], ["waited", "waited", time, { zero: true, title: "suspended; holds nobody up" }], ["waiting", "waiting now", number, { zero: true }], ["failed", "failed", number, { zero: true, level: (value) => (value ? "warm" : "") }]].filter(Boolean).map((column) => (column.length < 4 ? [...column, {}] : column)), rows, { by: "busy" })
      : h("div", { cls: "panel empty" }, h("b", {}, "Nothing has run yet"), h("p", {}, "As soon as a handler runs, it is here."))];
}

// -------------------------------------------------------------------------------- heap

function drawHeap() {
  const worker = query.get("worker") || undefined;
  return values().map(({ worker: numbered, pid, value }) => {
    const p = value.process, c = value.collector;
    const set = (state) => act("tracemalloc", { on: state, worker: pid }, (each) => (each.tracing ? "allocations are traced from now on" : "tracing has ended"));
    return [
      h("h2", {}, several() ? `Worker ${numbered}` : "The process"),
      h("div", { cls: "tiles" }, tile("RSS", bytes(p.rss), "", "resident"), tile("PSS", bytes(p.pss), "", "shared pages divided by who shares them"), tile("Private, dirty", bytes(p.private_dirty), "", "freed if this process ends"), tile("Allocated blocks", number(value.allocated_blocks), "", "of CPython's allocator"), tile("Collector", c.enabled ? "on" : "off", "", `thresholds ${c.thresholds.join(", ")} · ${number(c.frozen)} frozen`), tile("Collections", c.collections.map(number).join(" · "), "", `by generation${c.uncollectable ? ` · ${number(c.uncollectable)} uncollectable` : ""}`)),
      h("div", { cls: "tools", id: `heap${pid}` }, h("button", { type: "button", onclick: () => go("heap", { objects: "1", worker: worker || "" }, true) }, value.types ? "Count again" : "Count objects by type"), value.tracing ? [h("button", { type: "button", onclick: () => refresh() }, "New snapshot"), h("button", { type: "button", onclick: () => set(false) }, "Stop tracing allocations")] : h("button", { type: "button", onclick: () => set(true) }, "Trace allocations by line")),
      value.tracing ? null : h("p", { cls: "quiet" }, "Tracing (tracemalloc) tells which lines hold memory that was allocated after it began; it slows the process by a third and more, so switch it off again."),
      value.pause !== undefined && h("p", { cls: "quiet" }, `Looked at in a copy of the process; copying paused the server for ${time(value.pause)}.`),
      value.lines && [h("h2", {}, "By file", h("small", {}, `${bytes(value.traced)} traced, ${bytes(value.peak)} at most; tracing itself takes ${bytes(value.overhead)}`)), table("f", [["file", "file", (each) => each, { text: true, cls: "wide mono" }], ["size", "size", bytes, { meter: true }], ["count", "blocks", number, {}]], value.files.slice(0, 15), { by: "size" }),
        h("h2", {}, "By line"), table("l", [["file", "line", (each, row) => `${each}:${row.line}`, { text: true, cls: "wide mono" }], ["code", "code", (each) => h("code", {}, each), { text: true, fixed: true, cls: "wide" }], ["size", "size", bytes, { meter: true }], ["count", "blocks", number, {}]], value.lines, { by: "size" })],
      value.types && [h("h2", {}, "By type", h("small", {}, `${number(value.objects)} objects that the collector tracks`)), table("t", [["type", "type", (each) => each, { text: true, cls: "wide mono" }], ["count", "objects", number, { meter: true }], ["size", "size, without what they refer to", bytes, {}]], value.types, { by: "count" })]];
  });
}

// ----------------------------------------------------------------------------- profile

let zoom = null, wanted = "", sampling = false, length_ = "5";
function drawProfile() {
  const seconds = h("input", { type: "number", id: "seconds", value: length_, min: "1", max: "120", oninput: (event) => (length_ = event.target.value) });
  const form = h("form", { cls: "tools", onsubmit: async (event) => {
    event.preventDefault();
    sampling = true; taken = null; notices(); draw();
    try {
      const answer = await change("profile", { seconds: Number(length_), worker: query.get("worker") || undefined });
      complain({ ...answer });
      taken = answer.answers.filter((each) => each.value); zoom = null;
    } catch (error) { notices(h("div", { cls: "notice bad" }, String(error.message))); }
    sampling = false;
    if (view === "profile") draw();
  } }, h("label", {}, "seconds", seconds), h("button", { cls: "main", type: "submit", disabled: sampling }, sampling ? "Sampling …" : "Take a profile"));
  if (sampling) return [form, h("div", { cls: "panel empty" }, h("b", {}, `Sampling for ${length_} s`), h("p", {}, "The server goes on meanwhile."))];
  if (!taken || !taken.length) return [form, h("div", { cls: "panel empty" }, h("b", {}, "Where does the processor's time go?"), h("p", {}, "Stacks are sampled a hundred times a second, by py-spy if it is installed. What waits is not sampled: an idle server gives an empty profile."))];
  return [form, taken.map(({ worker, value }) => {
    const save = (name, text) => { const link = h("a", { href: URL.createObjectURL(new Blob([text])), download: name }); link.click(); URL.revokeObjectURL(link.href); };
    const text = () => value.stacks.map(([path, count]) => `${path} ${count}\n`).join("");
    return [h("h2", {}, taken.length > 1 ? `Worker ${worker}` : "Profile", h("small", {}, `${number(value.samples)} samples in ${time(value.seconds)} by ${value.method}; the process used ${percent(value.cpu)} of a core`)),
      value.note && h("p", { cls: "quiet" }, `${value.note}; so the process sampled itself.`),
      value.samples ? h("div", { cls: "panel pad" }, h("div", { cls: "tools" }, h("label", {}, "find a function", h("input", { type: "search", id: `find${worker}`, value: wanted, oninput: (event) => { wanted = event.target.value; draw(); } })), zoom && h("button", { type: "button", onclick: () => { zoom = null; draw(); } }, "Whole graph"), h("button", { cls: "right", type: "button", onclick: () => save("trionet.collapsed.txt", text()) }, "Collapsed stacks"), h("button", { type: "button", onclick: () => save("trionet.speedscope.json", JSON.stringify(scope(value))) }, "speedscope")), h("div", { id: "hint", cls: "quiet" }, "Widths are shares of the samples. Click to look closer."), flame(value), h("div", { cls: "legend" }, h("span", {}, h("i", { cls: "own" }), "your code"), h("span", {}, h("i", { cls: "lib1" }), "trionet"), h("span", {}, h("i", { cls: "lib2" }), "Trio"), h("span", {}, h("i"), "other")))
        : h("div", { cls: "panel empty" }, h("b", {}, "No samples"), h("p", {}, "The process did nothing that could be sampled in this time."))];
  })];
}
function flame(value) {
  const root = { name: "all", count: 0, children: new Map() };
  for (const [path, count] of value.stacks) {
    root.count += count;
    let at = root;
    for (const name of path.split(";")) {
      if (!at.children.has(name)) at.children.set(name, { name, count: 0, children: new Map(), parent: at });
      at = at.children.get(name); at.count += count;
    }
  }
  let start = root;
  if (zoom) for (const name of zoom) start = start.children.get(name) || start;
  else while (start.children.size === 1) { const only = [...start.children.values()][0]; if (only.count < start.count) break; start = only; } // what all have in common says nothing
  const boxes = [], path = (each) => (each.parent ? [...path(each.parent), each.name] : []);
  let depth = 0;
  const put = (each, left, width, level) => {
    if (width < 0.12 || level > 70) return;
    depth = Math.max(depth, level + 1);
    const kind = /\(trionet\//.test(each.name) ? "lib1" : /\(trio\//.test(each.name) ? "lib2" : /\/lib\/|python3|<frozen|\(lib/.test(each.name) || each === root ? "" : "own";
    const miss = wanted && !each.name.toLowerCase().includes(wanted.toLowerCase()) ? "miss" : "";
    const said = `${each.name} — ${number(each.count)} samples, ${percent(each.count / root.count)}`;
    const box = h("div", { cls: `${kind} ${miss}`, title: said, onclick: () => { zoom = path(each); draw(); }, onmouseenter: () => { $("hint").textContent = said; } }, width > 2.5 ? each.name.replace(/ \(.*/, "") : "");
    box.style.left = `${left}%`; box.style.width = `${width}%`; box.style.top = `${level * 20}px`;
    boxes.push(box);
    let x = left;
    for (const child of [...each.children.values()].sort((a, b) => b.count - a.count)) { const share = (width * child.count) / each.count; put(child, x, share, level + 1); x += share; }
  };
  put(start, 0, 100, 0);
  const graph = h("div", { cls: "flame", role: "img", "aria-label": "Flame graph" }, boxes);
  graph.style.height = `${depth * 20}px`;
  return graph;
}
function scope(value) {
  const frames = new Map(), samples = value.stacks.map(([path]) => path.split(";").map((name) => { if (!frames.has(name)) frames.set(name, frames.size); return frames.get(name); })), weights = value.stacks.map(([, count]) => count);
  return { $schema: "https://www.speedscope.app/file-format-schema.json", exporter: "trionet", shared: { frames: [...frames.keys()].map((name) => ({ name })) }, profiles: [{ type: "sampled", name: "trionet", unit: "none", startValue: 0, endValue: sum(weights), samples, weights }] };
}

const DRAW = { overview: drawOverview, connections: drawConnections, tasks: drawTasks, handlers: drawHandlers, heap: drawHeap, profile: drawProfile };
refresh(true);
