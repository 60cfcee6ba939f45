// The page of the chat. The messages it exchanges with the server are listed at the top of server.py.
//
// Whatever people wrote is put into the page as text (textContent), never as markup.

import {Link} from "./link.js";

const $ = id => document.getElementById(id);
const make = (tag, className = "", text = "") => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
};

const KEPT = 500;                   // lines on the page; older ones go
const UNSENT = 100;                 // lines that may wait for the connection
const RESEND = 10_000;              // milliseconds without an answer before a line is sent again
const RETURN = 60_000;              // people who come back within this time after a restart are not announced
const TOGETHER = 5 * 60_000;        // lines of one person within this time stand under one name

const room = (new URLSearchParams(location.search).get("room") ?? "").trim() || "lobby";
const state = load();
const limits = {name: 24, room: 32, text: 2000};
const people = new Map();           // who is here: name -> list item
const shown = new Map();            // key of a line -> its element, to never show one twice; oldest first
let entered = false;                // the server has let us in on this connection
let wanted = Boolean(state.name);   // go in without asking for a name
let superseded = false;             // a newer page of ours has been in this room
let epoch = null, seq = 0;          // how far we have read this room
let unread = 0, below = 0;          // lines not seen: in a hidden page, under the edge
let awaited = new Set(), awaitedUntil = 0;      // who was here before we lost the server: their return is no news
let inFlight = null, resend;        // one line at a time is on its way, so order and "sent once" are simple
let retryAt = 0, ticking;           // when the link tries again; the clock that shows it

// --- what this tab remembers (a reload, a trip to another room) --------------------------------------------

function load() {
  const fresh = {author: word(), n: 0, name: "", tokens: {}, unsent: {}};
  try { return {...fresh, ...JSON.parse(sessionStorage.getItem("trionet-chat"))}; } catch { return fresh; }
}

function save() {
  // Full or forbidden storage only costs what a reload would have brought back.
  try { sessionStorage.setItem("trionet-chat", JSON.stringify(state)); } catch { /* see above */ }
}

function word() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map(byte => byte.toString(16).padStart(2, "0")).join("");
}

const unsent = state.unsent[room] ??= [];   // [{n, text}], oldest first

// --- the connection ----------------------------------------------------------------------------------------

const link = new Link(new URL("/chat", location.href.replace(/^http/, "ws")));

link.addEventListener("state", ({detail}) => {
  if (detail.state !== "open") entered = false;
  inFlight = null;
  clearTimeout(resend);
  if (detail.state === "refused" && detail.code === 4001) superseded = true;
  showState(detail);
  if (detail.state === "waiting") { retryAt = performance.now() + detail.delay; tick(); }
});

link.addEventListener("message", ({detail: message}) => handlers[message.type]?.(message));

const handlers = {
  hello(message) {
    Object.assign(limits, message.limits);
    $("text").maxLength = limits.text;
    $("other-name").maxLength = limits.room;
    showRooms(message.rooms);
    if (wanted) enter(); else openDoor();
  },

  welcome(message) {
    link.settled();
    state.name = message.name;
    state.tokens[room] = message.token;
    if (superseded) unsent.forEach((line, index) => { line.n = message.last + index + 1; });
    state.n = Math.max(state.n, message.last, unsent.at(-1)?.n ?? 0);
    superseded = false;
    save();
    closeDoor();
    showState({state: "online"});
    awaited = new Set(people.keys());
    awaitedUntil = performance.now() + RETURN;
    people.clear();
    $("people").replaceChildren();
    message.people.forEach(addPerson);
    showCrowd();
    catchUp(message);
    while (unsent.length && unsent[0].n <= message.last) arrived(unsent[0].n);
    entered = true;
    showOutbox();
    flush();
  },

  said(message) {
    if (message.seq !== seq + 1) { link.renew(); return; }      // we were too slow for some lines: read them again
    seq = message.seq;
    addLine(message);
    if (message.author === state.author) arrived(message.n);
  },

  ack({n}) { arrived(n); },

  joined({name}) {
    addPerson(name);
    showCrowd();
    if (!awaited.delete(name) || performance.now() > awaitedUntil) addNotice("joined", name);
  },

  left({name}) { removePerson(name); showCrowd(); addNotice("left", name); },

  rooms(message) { showRooms(message.rooms); },

  error(message) {
    if (message.n !== undefined) { refusedLine(message); return; }
    if (entered) { hint(message.text); return; }
    wanted = false;
    openDoor(message.text);
  },
};

function enter() {
  link.send({type: "enter", room, name: state.name, author: state.author, token: state.tokens[room]});
}

// --- sending: lines wait in `unsent` until the server has answered them ------------------------------------

function say(text) {
  if (unsent.length >= UNSENT) {
    hint(`${UNSENT} lines are waiting to be sent already. Please wait for the connection.`);
    return false;
  }
  unsent.push({n: ++state.n, text});
  save();
  showOutbox();
  flush();
  stick();
  return true;
}

function flush() {
  if (!entered || inFlight !== null || !unsent.length) return;
  const {n, text} = unsent[0];
  if (!link.send({type: "say", n, text})) return;
  inFlight = n;
  clearTimeout(resend);
  resend = setTimeout(() => { inFlight = null; flush(); }, RESEND);
}

function arrived(n) {
  if (!unsent.length || unsent[0].n !== n) return;
  const line = unsent.shift();
  save();
  clearTimeout(resend);
  inFlight = null;
  // Taken by the server, but never shown to us: show it where it would have stood.
  addLine({author: state.author, name: state.name, n, at: Date.now(), text: line.text});
  showOutbox();
  flush();
}

function refusedLine({n, text, wait}) {
  if (!unsent.length || unsent[0].n !== n) return;
  clearTimeout(resend);
  if (wait !== undefined) {
    resend = setTimeout(() => { inFlight = null; flush(); }, wait * 1000);
    return;
  }
  const line = unsent.shift();
  save();
  inFlight = null;
  hint(text);
  if (!$("text").value) { $("text").value = line.text; grow(); }
  showOutbox();
  flush();
}

// --- lines and notices -------------------------------------------------------------------------------------

const key = (name, author, n) => `${name}\n${author}\n${n}`;
const clock = new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit"});
const day = new Intl.DateTimeFormat(undefined, {weekday: "long", day: "numeric", month: "long"});
const full = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "medium"});

function catchUp({history, ...message}) {
  const missed = epoch === message.epoch ? (history[0]?.seq ?? message.seq + 1) - seq - 1 : 0;
  epoch = message.epoch;
  $("log").setAttribute("aria-live", "off");        // nobody wants fifty lines read out
  const first = shown.size === 0;
  if (missed > 0) addPlain(missed === 1 ? "One line was missed here" : `${missed} lines were missed here`);
  for (const line of history) addLine(line, true);
  seq = message.seq;
  if (first && !history.length && !unsent.length) addPlain("Nothing has been said here yet.", "empty");
  requestAnimationFrame(() => $("log").setAttribute("aria-live", "polite"));
  if (first) stick();
}

function addLine(line, old = false) {
  const id = key(line.name, line.author, line.n);
  if (shown.has(id)) return;
  const follow = atBottom();
  const own = line.author === state.author;
  const at = new Date(line.at);
  const group = groupFor(line, own, at);
  const text = make("p", "text", line.text);
  text.dir = "auto";
  text.title = full.format(at);
  group.append(text);
  group.dataset.last = line.at;
  shown.set(id, text);
  trim();
  if (!own && !old && !present()) { unread++; showTitle(); }
  if (own || follow) stick(); else if (!old) { below++; showJump(); }
}

function groupFor({author, name}, own, at) {
  const log = $("log");
  log.querySelector(".empty")?.remove();
  const label = day.format(at);
  if (log.dataset.day !== label) {
    log.dataset.day = label;
    log.append(make("h3", "day", label === day.format(new Date()) ? "Today" : label));
  }
  const last = log.lastElementChild;
  const same = last?.dataset.author === author && last.dataset.name === name;
  if (same && at - last.dataset.last < TOGETHER) return last;
  const group = make("section", own ? "group own" : `group hue-${hue(name)}`);
  Object.assign(group.dataset, {author, name});
  const head = make("header");
  const who = make("b");
  who.append(make("bdi", "", name));
  const time = make("time", "", clock.format(at));
  time.dateTime = at.toISOString();
  head.append(who, time);
  if (!own) group.append(face(name));
  group.append(head);
  log.append(group);
  return group;
}

function addNotice(verb, name) {
  const follow = atBottom();
  const last = $("log").lastElementChild;
  // Comings and goings in a row share a line.
  if (last?.dataset.verb === verb && last.childElementCount < 8) {
    last.lastChild.before(", ", make("bdi", "", name));
  } else {
    const notice = make("p", "notice");
    notice.dataset.verb = verb;
    notice.append(make("bdi", "", name), ` ${verb}`);
    $("log").append(notice);
    trim();
  }
  if (follow) stick();
}

function addPlain(text, className = "") { $("log").append(make("p", `notice ${className}`, text)); }

function trim() {
  while (shown.size > KEPT) {
    const [id, text] = shown.entries().next().value;
    const group = text.parentElement;
    shown.delete(id);
    text.remove();
    if (!group.querySelector(".text")) group.remove();
  }
  while ($("log").childElementCount > 2 * KEPT) $("log").firstElementChild.remove();   // notices and days
}

function showOutbox() {
  const follow = atBottom();
  const box = $("outbox");
  box.replaceChildren();
  if (unsent.length) {
    const group = make("section", "group own waiting");
    for (const {text} of unsent) { const line = make("p", "text", text); line.dir = "auto"; group.append(line); }
    group.append(make("p", "note", entered ? "sending" : "goes out when the connection is back"));
    box.append(group);
  }
  if (follow) stick();
}

function hidden(element) { element.setAttribute("aria-hidden", "true"); return element; }

function face(name) {
  const [initial] = new Intl.Segmenter().segment(name);
  return hidden(make("span", "face", initial.segment.toLocaleUpperCase()));
}

function hue(name) {
  let hash = 7;
  for (const char of name.toLowerCase()) hash = (hash * 31 + char.codePointAt(0)) % 9973;
  return hash % 8;
}

// --- people and rooms --------------------------------------------------------------------------------------

function addPerson(name) {
  if (people.has(name)) return;
  const item = make("li", name === state.name ? "me" : `hue-${hue(name)}`);
  item.dataset.name = name;
  item.append(face(name), make("bdi", "", name));
  if (name === state.name) item.append(make("small", "", "you"));
  people.set(name, item);
  // Oneself first, then by the alphabet.
  const list = $("people");
  const rank = element => `${element.className === "me" ? 0 : 1}${element.dataset.name}`;
  const next = [...list.children].find(other => rank(other).localeCompare(rank(item)) > 0);
  list.insertBefore(item, next ?? null);
}

function removePerson(name) { people.get(name)?.remove(); people.delete(name); }

function showCrowd() {
  $("people-count").textContent = people.size;
  $("crowd").textContent = people.size === 1 ? "only you" : `${people.size} here`;
}

function showRooms(rooms) {
  const list = [...rooms];
  const same = name => name.toLowerCase() === room.toLowerCase();
  if (!list.some(({name}) => same(name))) list.unshift({name: room, people: 0});
  if (!list.some(({name}) => name === "lobby")) list.push({name: "lobby", people: 0});
  $("rooms").replaceChildren(...list.map(({name, people: count}) => {
    const item = make("li"), anchor = make("a");
    anchor.href = `?room=${encodeURIComponent(name)}`;
    if (same(name)) anchor.setAttribute("aria-current", "page");
    anchor.append(hidden(make("span", "hash", "#")), make("bdi", "", name));
    if (count) {
      const badge = make("span", "count", String(count));
      badge.title = count === 1 ? "one person" : `${count} people`;
      anchor.append(badge);
    }
    item.append(anchor);
    return item;
  }));
}

// --- the frame of the page ---------------------------------------------------------------------------------

const STATES = {
  connecting: "connecting",
  open: "connecting",         // the socket is open; "online" is said when the server has answered
  online: "online",
  waiting: "reconnecting",
  refused: "refused",
};

function showState({state: now, reason}) {
  $("app").dataset.state = now;
  if ($("state").textContent !== STATES[now]) $("state").textContent = STATES[now];
  // Once shown it stays while we try, so that nothing jumps at each try.
  if (now === "online") $("banner").hidden = true;
  if (now === "waiting" || now === "refused") $("banner").hidden = false;
  $("now").disabled = now === "connecting" || now === "open";
  if ($("now").disabled) $("countdown").textContent = "Trying …";
  if (now === "waiting") {
    $("banner-text").textContent = $("talk").hidden
      ? "The server cannot be reached."
      : "The connection is lost. What you write is kept and goes out when it is back.";
    $("now").textContent = "Try now";
  }
  if (now === "refused") {
    $("banner-text").textContent = superseded
      ? "You went on in another tab."
      : `The server refused this page${reason ? `: ${reason}` : "."}`;
    $("countdown").textContent = "";
    $("now").textContent = superseded ? "Go on here" : "Try again";
  }
  showOutbox();
}

function tick() {
  if ($("app").dataset.state !== "waiting") return;
  const left = Math.max(1, Math.ceil((retryAt - performance.now()) / 1000));
  $("countdown").textContent = `Next try in ${left} s.`;
  clearTimeout(ticking);
  ticking = setTimeout(tick, 250);
}

function openDoor(error = "") {
  showState({state: "online"});
  if (!$("door").hidden && !error) return;         // reconnected while somebody is typing here
  $("door").hidden = false;
  $("talk").hidden = $("here").hidden = true;
  $("name").value ||= state.name;
  $("name").toggleAttribute("aria-invalid", Boolean(error));
  $("door-error").textContent = error;
  $("name").focus();
  $("name").select();
}

function closeDoor() {
  const first = $("talk").hidden;
  $("door").hidden = true;
  $("talk").hidden = $("here").hidden = false;
  if (first) { $("text").focus(); grow(); stick(); }
}

const present = () => !document.hidden && document.hasFocus();
const atBottom = () => { const box = $("scroll"); return box.scrollHeight - box.scrollTop - box.clientHeight < 48; };

function stick() { const box = $("scroll"); box.scrollTop = box.scrollHeight; below = 0; showJump(); }

function showJump() {
  $("jump").hidden = below === 0;
  $("jump").textContent = below === 1 ? "1 new line ↓" : `${below} new lines ↓`;
}

function showTitle() { document.title = `${unread ? `(${unread}) ` : ""}#${room} · trionet chat`; }

function hint(text) { $("hint").textContent = text; }

function grow() { const box = $("text"); box.style.height = "auto"; box.style.height = `${box.scrollHeight}px`; }

function drawer(open) {
  $("app").classList.toggle("drawer", open);
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("menu-close").focus();
}

// --- what people do ----------------------------------------------------------------------------------------

$("door").addEventListener("submit", event => {
  event.preventDefault();
  state.name = $("name").value.trim();
  save();
  $("door-error").textContent = "";
  wanted = true;
  if (link.open) enter();
  else $("door-error").textContent = "Not connected. You will be let in as soon as the server answers.";
});

$("composer").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("text").value.trim();
  hint("");
  if (text && say(text)) { $("text").value = ""; grow(); }
  $("text").focus();
});

$("text").addEventListener("keydown", event => {
  // Shift+Enter begins a new line. Enter while an input method composes a word belongs to that.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

$("text").addEventListener("input", () => {
  grow();
  const left = limits.text - $("text").value.length;
  hint(left <= 100 ? `${left} characters left` : "");
});

$("other").addEventListener("submit", event => {
  event.preventDefault();
  const name = $("other-name").value.trim();
  if (name) location.search = `?room=${encodeURIComponent(name)}`;
});

$("leave").addEventListener("click", () => {
  link.send({type: "leave"});
  delete state.tokens[room];
  Object.assign(state, {name: "", author: word(), n: 0});
  unsent.length = 0;
  save();
  location.reload();
});

$("now").addEventListener("click", () => link.now());
$("jump").addEventListener("click", () => { stick(); $("text").focus(); });
$("menu").addEventListener("click", () => drawer(true));
$("menu-close").addEventListener("click", () => { drawer(false); $("menu").focus(); });
$("veil").addEventListener("click", () => drawer(false));
addEventListener("keydown", event => {
  if (event.key === "Escape" && $("app").classList.contains("drawer")) { drawer(false); $("menu").focus(); }
});
$("scroll").addEventListener("scroll", () => { if (below && atBottom()) { below = 0; showJump(); } }, {passive: true});
for (const type of ["focus", "visibilitychange"]) {
  (type === "focus" ? window : document).addEventListener(type, () => { if (present()) { unread = 0; showTitle(); } });
}

// A keyboard that slides in makes the list shorter; its end stays in sight.
let pinned = true;
$("scroll").addEventListener("scroll", () => { pinned = atBottom(); }, {passive: true});
new ResizeObserver(() => { if (pinned) stick(); }).observe($("scroll"));

$("room").textContent = $("door-room").textContent = room;
$("text").placeholder = `Message #${room}`;
showTitle();
showRooms([]);
link.start();
