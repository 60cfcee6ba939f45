// A WebSocket that comes back by itself. Knows nothing of chats.
//
// Events: `open`, `message` (detail: the object received) and `state`, whose detail has `state`:
//   connecting            a socket is being opened
//   open                  it is open; call settled() once the server has taken us in
//   waiting               lost; `delay` milliseconds until the next try, which now() brings forward
//   refused               the server does not want us to try again: `code` and `reason`; now() tries nevertheless

const FLOOR = 300;              // milliseconds before the first new try ...
const STEP = 500;               // ... plus a random part of this, doubled with each try ...
const CEILING = 30_000;         // ... up to this: a restarted server is not run over by all its pages at once
const STABLE = 5_000;           // a connection that lived this long starts the doubling anew
const OPENING = 15_000;         // a try that takes longer is given up
const QUIET = 20_000;           // nothing heard for this long: ask whether anybody is there ...
const PATIENCE = 10_000;        // ... and do not wait longer than this for the answer
const FINAL = new Set([1008, 4001]);    // policy violation; our name was taken over by a newer page

export class Link extends EventTarget {
  #url; #socket = null; #state = ""; #tries = 0; #settledAt = Infinity; #retry; #watch; #stopped = false;

  constructor(url) {
    super();
    this.#url = url;
    addEventListener("online", () => this.probe());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.probe(); });
    // A page in the back/forward cache must not hold a socket; it gets a new one when it is shown again.
    addEventListener("pagehide", () => { this.#stopped = true; clearTimeout(this.#retry); this.#socket?.close(1000); });
    addEventListener("pageshow", event => { if (event.persisted) { this.#stopped = false; this.#connect(); } });
  }

  start() { this.#connect(); }

  get open() { return this.#socket?.readyState === WebSocket.OPEN; }

  /** Send an object; false if there is nobody to send it to. */
  send(message) {
    if (!this.open) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** The server has taken us in: if this lasts, the next loss is a new one. */
  settled() { this.#settledAt = performance.now(); }

  /** Try at once instead of waiting. */
  now() { if (this.#state === "waiting" || this.#state === "refused") this.#connect(); }

  /** Close and come back, to be shown the room anew. */
  renew() { this.#lost(this.#socket, 4000, "renewed"); }

  /** Something suggests that the network changed: find out rather than wait. */
  probe() {
    if (this.#state === "waiting") this.now();
    else if (this.open) this.#ask();
  }

  #set(state, detail = {}) {
    this.#state = state;
    this.dispatchEvent(new CustomEvent("state", {detail: {state, ...detail}}));
  }

  #connect() {
    clearTimeout(this.#retry);
    this.#settledAt = Infinity;
    const socket = this.#socket = new WebSocket(this.#url);
    this.#set("connecting");
    this.#watchFor(OPENING);
    socket.onopen = () => { this.#heard(); this.#set("open"); this.dispatchEvent(new Event("open")); };
    socket.onmessage = event => {
      if (socket !== this.#socket) return;
      this.#heard();
      this.dispatchEvent(new CustomEvent("message", {detail: JSON.parse(event.data)}));
    };
    socket.onclose = event => this.#lost(socket, event.code, event.reason);
  }

  #heard() {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => this.#ask(), QUIET);
  }

  // A link that broke without a word stays silent, and a script never sees the protocol's own pings: it asks.
  #ask() { if (this.send({type: "ping"})) this.#watchFor(PATIENCE); }

  #watchFor(time) {
    clearTimeout(this.#watch);
    const socket = this.#socket;
    // close() alone would wait for a peer that is gone: do not.
    this.#watch = setTimeout(() => this.#lost(socket, 4000, "silent"), time);
  }

  #lost(socket, code, reason) {
    if (socket === null || socket !== this.#socket) return;
    this.#socket = null;
    clearTimeout(this.#watch);
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (socket.readyState < WebSocket.CLOSING) socket.close(4000, reason);
    if (this.#stopped) return;
    if (FINAL.has(code)) { this.#set("refused", {code, reason}); return; }
    if (performance.now() - this.#settledAt > STABLE) this.#tries = 0;
    const delay = FLOOR + Math.random() * Math.min(CEILING, STEP * 2 ** this.#tries++);
    this.#retry = setTimeout(() => this.#connect(), delay);
    this.#set("waiting", {code, delay});
  }
}
