// The inbox. What happens on the bus, topic mail:<name>: {type: "mail", mail} and {type: "read", ids}.
//
// The list comes by HTTP with a position on the bus that was read before it, and the bus is subscribed to from there
// on. So an event may come for what the list has already (it is known by the mail's id), and none is missing.

import {Bus} from "/trionet.js";
import {$, ask, make, paint, showState} from "./page.js";

const KEPT = 400;                   // mails on the page; the oldest go
const TOASTS = 3, TOAST_TIME = 7_000;
const SAY_LOST_AFTER = 2_500;       // ms; most losses are over sooner, and nobody needs to know

const mails = new Map();            // id → {mail, row}
const unsaved = new Set();          // ids of mails that were read, which the server does not know yet
let user = null, bus = null;
let live = false;                   // subscribed: what happens from now on comes
let away = 0;                       // mails that came while there was no connection
let lostTimer;

// --- the list and the bus --------------------------------------------------------------------------------------

async function start() {
  let inbox;
  try {
    inbox = await ask("/api/inbox");
  } catch (error) {
    if (error.status === 401) { openDoor(); return; }
    document.body.dataset.state = $("state").textContent = "reconnecting";
    setTimeout(start, 1000 + Math.random() * 2000);
    return;
  }
  user = inbox.user;
  $("app").hidden = $("account").hidden = false;
  $("operator").hidden = !inbox.operator;
  $("me").textContent = user;
  paint($("me-face"), user);
  merge(inbox.mails);
  route();
  connect(inbox.position);
}

function connect(since) {
  let back = false;                 // not the first time
  bus = new Bus("/bus");
  bus.addEventListener("state", ({detail}) => {
    live = false;                   // until we are subscribed again
    // Logged out in another window: is our cookie gone as well? It is by then, if that was the same browser.
    if (detail.code === 4401) setTimeout(() => location.reload(), 500);
    show();
  });
  addEventListener("offline", show);
  bus.subscribe(`mail:${user}`, {
    since,
    onsubscribed({recovered, again}) {
      live = true;
      back = again;
      if (recovered === null && !again) reload();       // there was no position: the broker was away
      show();
      saveRead();
    },
    onmessage(event, {replay}) {
      if (event.type === "read") event.ids.forEach(markRead);
      else if (add(event.mail)) {
        if (replay && back) missed(1);
        else if (!replay) announce(event.mail);
      }
      showCount();
    },
    onreset: reload,                // more was missed than the bus keeps
    onerror(error) {
      live = false;
      show();
      if (error.code === "forbidden") openDoor();       // the log-in has expired
    },
  });
}

async function reload() {
  try {
    missed(merge((await ask("/api/inbox")).mails));
  } catch (error) {
    if (error.status === 401) location.reload();
    else setTimeout(reload, 1000 + Math.random() * 2000);
  }
}

function show() {
  const lost = showState(bus, live);
  if (lost) lostTimer ??= setTimeout(() => { $("lost").hidden = false; }, SAY_LOST_AFTER);
  else if (live) { clearTimeout(lostTimer); lostTimer = undefined; $("lost").hidden = true; }
}

// --- mails -----------------------------------------------------------------------------------------------------

/** Take in a list, newest first; how many were not known. */
function merge(list) {
  const fresh = list.filter(mail => !mails.has(mail.id));
  for (const mail of [...list].reverse()) { add(mail); if (mail.read) markRead(mail.id); }
  showCount();
  return fresh.length;
}

/** Add a mail to the list, where its time says; whether it is new. */
function add(mail) {
  if (mails.has(mail.id)) return false;
  const row = make("li"), link = make("a"), face = make("span");
  link.href = `#mail/${mail.id}`;
  paint(face, mail.sender);
  face.setAttribute("aria-hidden", "true");
  const top = make("span", "top"), sender = make("bdi", "sender", mail.sender), at = make("time", "", brief(mail.at));
  at.dateTime = new Date(mail.at).toISOString();
  top.append(sender, at);
  link.append(face, top, make("span", "subject", mail.subject || "(no subject)"), make("span", "snippet", mail.text.slice(0, 200)));
  row.append(link);
  row.classList.toggle("unread", !mail.read);
  link.setAttribute("aria-label", `${mail.read ? "" : "Unread. "}${mail.sender}: ${mail.subject}`);
  row.dataset.id = mail.id;
  const rows = [...$("mails").children];
  $("mails").insertBefore(row, rows.find(({dataset}) => mails.get(dataset.id).mail.at <= mail.at) ?? null);
  mails.set(mail.id, {mail, row, link});
  if (rows.length >= KEPT) { mails.delete($("mails").lastChild.dataset.id); $("mails").lastChild.remove(); }
  return true;
}

function markRead(id) {
  const found = mails.get(id);
  if (!found || found.mail.read) return;
  found.mail.read = true;
  found.row.classList.remove("unread");
  found.link.setAttribute("aria-label", `${found.mail.sender}: ${found.mail.subject}`);
}

/** These were read here: tell the server, and by it all other pages. */
function read(ids) {
  const fresh = ids.filter(id => !mails.get(id).mail.read);
  for (const id of fresh) { markRead(id); unsaved.add(id); }
  if (fresh.length) { showCount(); saveRead(); }
}

async function saveRead() {
  const ids = [...unsaved];
  if (!ids.length) return;
  try {
    await ask("/api/read", {ids});
    for (const id of ids) unsaved.delete(id);
  } catch (error) {
    if (error.status === 0 || error.status >= 500) setTimeout(saveRead, 3_000);      // or when we are back, if sooner
  }
}

function showCount() {
  const unread = [...mails.values()].filter(({mail}) => !mail.read).length;
  $("count").textContent = unread;
  $("badge").hidden = $("read-all").hidden = unread === 0;
  $("empty").hidden = mails.size > 0;
  document.title = `${unread ? `(${unread}) ` : ""}Inbox · trionet mail`;
  $("icon").href = icon(unread);
}

function icon(unread) {
  const envelope = "<rect x='2.5' y='7' width='27' height='19' rx='4.5'/><path d='m4 10 12 9 12-9'/>";
  const count = `<circle cx='22.5' cy='9.5' r='9' fill='#c2342c' stroke='none'/><text x='22.5' y='14.2' font-size='13' font-weight='700'
    font-family='sans-serif' text-anchor='middle' fill='#fff' stroke='none'>${unread > 9 ? "9+" : unread}</text>`;
  const image = `<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><g fill='none' stroke='#0e7a69'
    stroke-width='2.8' stroke-linejoin='round'>${envelope}${unread ? count : ""}</g></svg>`;
  return `data:image/svg+xml,${encodeURIComponent(image)}`;
}

const clock = new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit"});
const day = new Intl.DateTimeFormat(undefined, {day: "numeric", month: "short"});
const full = new Intl.DateTimeFormat(undefined, {dateStyle: "long", timeStyle: "short"});
const brief = at => (new Date(at).toDateString() === new Date().toDateString() ? clock : day).format(at);

// --- news ------------------------------------------------------------------------------------------------------

/** Mails came while there was no connection. */
function missed(count) {
  away += count;
  if (!away) return;
  $("away-text").textContent = away === 1 ? "A mail arrived while you were away." : `${away} mails arrived while you were away.`;
  $("away").hidden = false;
}

function announce(mail) {
  $("said").textContent = `New mail from ${mail.sender}: ${mail.subject}`;
  toast(mail.sender, mail.subject || mail.text, `#mail/${mail.id}`);
}

function toast(title, text, href) {
  const box = make(href ? "a" : "div", "toast"), face = make("span"), words = make("span", "words");
  if (href) box.href = href;
  paint(face, title);
  words.append(make("b", "", title), make("span", "", text));
  box.append(face, words);
  $("toasts").append(box);
  while ($("toasts").children.length > TOASTS) $("toasts").firstChild.remove();
  let timer;
  const leave = () => { timer = setTimeout(() => box.remove(), TOAST_TIME); };
  box.addEventListener("pointerenter", () => clearTimeout(timer));
  box.addEventListener("pointerleave", leave);
  box.addEventListener("click", () => box.remove());
  leave();
}

// --- the reader: the address says which mail is open, so Back closes it -------------------------------------------

const openId = () => location.hash.match(/^#mail\/([\w-]+)$/)?.[1];

function route() {
  const id = openId(), found = mails.get(id);
  for (const {link} of mails.values()) link.removeAttribute("aria-current");
  document.body.classList.toggle("reading", Boolean(found));
  $("mail").hidden = !found;
  $("none").hidden = Boolean(found);
  if (!found) return;
  const {mail, link} = found;
  link.setAttribute("aria-current", "true");
  paint($("from-face"), mail.sender);
  $("subject").textContent = mail.subject || "(no subject)";
  $("from").textContent = mail.sender;
  $("to").textContent = user;
  $("at").textContent = full.format(mail.at);
  $("text").textContent = mail.text;
  $("reply").hidden = !NAME.test(mail.sender);
  link.scrollIntoView({block: "nearest"});
  $("mail").focus({preventScroll: true});
  $("reader").scrollTop = 0;
  for (const toast of $("toasts").querySelectorAll("a")) if (toast.hash === location.hash) toast.remove();
  read([id]);
}

function step(by) {
  const ids = [...$("mails").children].map(row => row.dataset.id), at = ids.indexOf(openId());
  const id = ids[at < 0 ? 0 : Math.min(Math.max(at + by, 0), ids.length - 1)];
  if (id) location.hash = `mail/${id}`;
}

addEventListener("hashchange", route);
addEventListener("keydown", event => {
  if (user === null || $("compose").open || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea")) return;
  if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "c") { event.preventDefault(); compose(); }
  else if (event.key === "Escape" && openId()) { const {link} = mails.get(openId()) ?? {}; location.hash = ""; link?.focus(); }
});
$("read-all").addEventListener("click", () => read([...mails.keys()]));
$("away-close").addEventListener("click", () => { away = 0; $("away").hidden = true; });
$("now").addEventListener("click", () => bus.connect());

// --- writing: a draft has an id, so it is sent once however often that is tried ---------------------------------

const NAME = /^[a-z0-9][a-z0-9._-]{0,23}$/;
const word = () => [...crypto.getRandomValues(new Uint8Array(9))].map(byte => byte.toString(16).padStart(2, "0")).join("");
let draft = word();

function compose(to = "", subject = "") {
  if (to) { $("draft-to").value = to; $("draft-subject").value = subject; }
  $("draft-error").textContent = "";
  $("compose").showModal();
  (to ? $("draft-text") : $("draft-to")).focus();
}

async function send() {
  const to = $("draft-to").value.trim().toLowerCase(), button = $("draft").querySelector("[type=submit]");
  button.disabled = true;
  $("draft-error").textContent = "";
  try {
    await ask("/api/send", {id: draft, to, subject: $("draft-subject").value, text: $("draft-text").value});
    draft = word();
    $("compose").close();
    $("draft").reset();
    if (to !== user) toast(to, "Your mail is on its way.");
    $("said").textContent = "Sent.";
  } catch (error) {
    $("draft-error").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

$("write").addEventListener("click", () => compose());
$("reply").addEventListener("click", () => {
  const {mail} = mails.get(openId());
  compose(mail.sender, mail.subject.startsWith("Re: ") ? mail.subject : `Re: ${mail.subject}`);
});
$("compose-close").addEventListener("click", () => $("compose").close());
$("draft").addEventListener("submit", event => { event.preventDefault(); send(); });
$("draft").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("draft").requestSubmit();
});

// --- the door --------------------------------------------------------------------------------------------------

function openDoor() {
  bus?.close();
  document.body.dataset.state = "out";
  $("app").hidden = $("account").hidden = $("lost").hidden = true;
  $("door").hidden = false;
  $("name").focus();
}

async function enter(name) {
  try {
    await ask("/login", {name: name.trim().toLowerCase()});
  } catch (error) {
    $("door-error").textContent = error.message;
    return;
  }
  if (bus) location.reload();       // may be somebody else
  $("door").hidden = true;
  start();
}

$("door").addEventListener("submit", event => { event.preventDefault(); enter($("name").value); });
for (const button of $("door").querySelectorAll(".names button")) button.addEventListener("click", () => enter(button.textContent));
$("logout").addEventListener("click", async () => {
  bus.close();
  try { await ask("/logout", {}); } finally { location.assign("/"); }
});

start();
