// trionet.js: topics of a trionet bus in a page, over one WebSocket that comes back by itself.
//
//   import {Bus} from "/trionet.js";
//   const bus = new Bus("/bus");                             // relative to the page; https becomes wss
//   bus.addEventListener("state", ({detail}) => show(detail.state));     // connecting, open, waiting, closed
//   const inbox = bus.subscribe("mail:7", {since: null, onmessage(data, {offset, at}) {}, onreset() {}});
//   await bus.publish("room:1", {any: "JSON"});              // → position, when it is published
//
// Everything there is, with its meaning, is in trionet.d.ts. Every message comes once and in order, from the first
// `subscribed` (or `since`) on, however often the connection is lost; where that cannot be kept, onreset says so.
// Requests wait for a connection, and are asked again on the next one if theirs is lost.

const STABLE = 5_000;           // ms: what lived so long was a success, and the distances grow anew
const OPENING = 15_000;         // a connection that takes longer to be made is given up
const PATIENCE = 10_000;        // an answer to a ping that takes longer does not come
const DEFAULTS = {minDelay: 300, maxDelay: 30_000, timeout: 30_000, queue: 1_000, open: url => new WebSocket(url)};
const UNWANTED = new Set([1000, 1002, 1003, 1007, 1008, 1009, 1010]);
const isFinal = code => UNWANTED.has(code) || (code >= 4400 && code < 4500);
const now = () => performance.now();

export class BusError extends Error {
  constructor(code, text = code, retry = false, key = undefined) {
    super(text);
    Object.assign(this, {name: "BusError", code, retry, key});
  }
}

export class Bus extends EventTarget {
  user = null; session = null; limits = {};
  #url; #options; #state = "connecting"; #subscriptions = new Map(); #requests = new Map();
  #name = crypto.getRandomValues(new Uint32Array(4)).join("."); #serial = 0; #listening = new AbortController();
  #attempt = null; #socket = null; #timer; #tries = 0; #heartbeat = 25_000; #openedAt = 0; #heardAt = 0; #asking = false;

  /** options: minDelay, maxDelay (ms between attempts), timeout (of requests), queue (requests that may wait),
   *  open(url) → a WebSocket, or a promise of one: to fetch a token first, to offer a subprotocol. */
  constructor(url, options = {}) {
    super();
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#options = {...DEFAULTS, ...options};
    const {signal} = this.#listening;
    const on = (type, heard, target = globalThis) => target?.addEventListener?.(type, heard, {signal});
    on("online", () => this.#nudge());
    on("offline", () => this.#nudge(false));
    on("visibilitychange", () => { if (!document.hidden) this.#nudge(); }, globalThis.document);
    // A page in the back/forward cache must not hold a socket; it gets a new one when it is shown again.
    on("pagehide", () => { if (this.#state !== "closed") this.#lose(1001, "page hidden", Infinity); });
    on("pageshow", event => { if (event.persisted) this.#nudge(); });
    queueMicrotask(() => { if (this.#state !== "closed") this.#connect(); });      // listeners come first
  }

  get state() { return this.#state; }

  connect() { if (!this.#attempt && !this.#listening.signal.aborted) this.#connect(); }

  close() {
    this.#listening.abort();
    this.#end(1000, "closed by the page", true);
  }

  subscribe(topic, {since = null, ...callbacks} = {}) {
    if (this.#subscriptions.has(topic)) throw new BusError("already-subscribed", `subscribed to ${topic} already`);
    if (this.#listening.signal.aborted) throw new BusError("closed", "the bus is closed");
    const subscription = new Subscription(topic, since, callbacks, {
      ask: message => this.#ask(message),
      delay: tries => this.#delay(tries),
      forget: () => this.#subscriptions.delete(topic),
    });
    this.#subscriptions.set(topic, subscription);
    subscription.begin();
    return subscription;
  }

  async publish(topic, data, {key, tag, echo, timeout} = {}) {
    key ??= `${this.#name}.${this.#serial + 1}`;
    const answer = await this.#request({type: "publish", topic, data: data ?? null, key, tag, echo}, timeout);
    return place(answer) ?? null;
  }

  async presence(topic, {timeout} = {}) {
    const {members, count = members.length} = await this.#request({type: "presence", topic}, timeout);
    return {count, members};
  }

  async history(topic, {since, limit, timeout} = {}) {
    const {epoch, offset, complete, messages} = await this.#request(
      {type: "history", topic, since: place(since), limit}, timeout);
    const last = messages.at(-1)?.offset ?? offset;     // there may be more behind it
    return {epoch, offset: last, complete, messages: messages.map(each => ({...each, at: new Date(each.at)}))};
  }

  // --- requests: kept until they are answered, and sent again on each new connection -----------------------------

  #request(message, timeout = this.#options.timeout) {
    return new Promise((resolve, reject) => {
      if (this.#state === "closed") throw new BusError("closed", "the bus is closed", false, message.key);
      if (this.#requests.size >= this.#options.queue) throw new BusError("queue-full", "too many requests wait", true);
      const id = ++this.#serial, {topic, key} = message, text = JSON.stringify({id, ...message});
      const late = () => request.fail(new BusError("timeout", `no answer within ${timeout} ms`, true, key));
      const timer = setTimeout(late, Math.min(timeout, 2 ** 31 - 1));
      const then = settle => value => { clearTimeout(timer); this.#requests.delete(id); settle(value); };
      const request = {text, topic, key, silent: message.echo === false, done: then(resolve), fail: then(reject)};
      this.#requests.set(id, request);
      if (this.#state === "open") this.#transmit(request);
    });
  }

  #transmit({text, key, fail}) {
    const most = this.limits.message ?? Infinity;       // one that is too large would cost us the connection
    const size = text.length * 3 > most ? new TextEncoder().encode(text).length : 0;
    if (size > most) fail(new BusError("too-large", `${size} bytes, and the server takes ${most}`, false, key));
    else this.#socket.send(text);
  }

  /** Send a message of a subscription if there is a connection; its id, or null. */
  #ask(message) {
    if (this.#state !== "open") return null;
    this.#socket.send(JSON.stringify({id: ++this.#serial, ...message}));
    return this.#serial;
  }

  // --- what the server says --------------------------------------------------------------------------------------

  #hear(message) {
    const {type, id, topic} = message;
    const request = this.#requests.get(id), subscription = this.#subscriptions.get(topic);
    if (type === "welcome") this.#welcome(message);
    else if (type === "message" || type === "join" || type === "leave" || type === "reset") {
      subscription?.hear(message);
      if (message.replay) return;       // that was asked for by the topic's own
      for (const each of this.#subscriptions.values()) if (each.isPatternOf(topic)) each.hear(message);
    } else if (type === "subscribed" || type === "unsubscribed") subscription?.hear(message);
    else if (type === "error") {
      const error = new BusError(message.code, message.text, message.retry, request?.key);
      const refused = [...this.#subscriptions.values()].find(each => id !== undefined && each.id === id);
      if (request) request.fail(error);
      else if (refused) refused.refused(error);
      else if (id === undefined) this.dispatchEvent(new CustomEvent("error", {detail: error}));
    } else if (request) {
      if (request.silent) this.#subscriptions.get(request.topic)?.skip(message);
      request.done(message);
    }
  }

  #welcome({user, session, heartbeat, limits}) {
    Object.assign(this, {user: user ?? null, session, limits: limits ?? {}});
    if (heartbeat) this.#heartbeat = heartbeat * 1000;
    this.#openedAt = now();
    this.#state = "open";
    for (const request of this.#requests.values()) this.#transmit(request);
    for (const subscription of this.#subscriptions.values()) subscription.begin();
    this.#watch();
    this.#set("open");          // last: listeners may publish, subscribe, close
  }

  // --- the connection --------------------------------------------------------------------------------------------

  #set(state, detail = {}) {
    this.#state = state;
    this.dispatchEvent(new CustomEvent("state", {detail: {state, willRetry: state !== "closed", ...detail}}));
  }

  #after(delay, act) {
    clearTimeout(this.#timer);
    if (delay < Infinity) this.#timer = setTimeout(act, delay);
  }

  #delay(tries) {       // full jitter over a floor: pages that lost their server together do not come back together
    const {minDelay, maxDelay} = this.#options;
    return minDelay + Math.random() * Math.min(maxDelay, minDelay * 2 ** tries);
  }

  async #connect() {
    const attempt = this.#attempt = {};
    this.#after(OPENING, () => this.#lose(1006, "no answer"));
    this.#set("connecting");
    try {
      const socket = await this.#options.open(this.#url.href);
      if (attempt !== this.#attempt) { socket.close(); return; }
      this.#socket = socket;
      socket.onclose = ({code, reason}) => this.#lose(code, reason);
      socket.onmessage = ({data}) => {
        this.#heardAt = now();
        this.#asking = false;
        const message = parse(data);
        if (message) this.#hear(message);
      };
    } catch (error) {
      if (attempt === this.#attempt) this.#lose(1006, String(error));
    }
  }

  // A link that broke without a word stays silent, and a script never sees the protocol's own pings: it asks.
  #watch() {
    const quiet = now() - this.#heardAt;
    if (quiet < this.#heartbeat) this.#after(this.#heartbeat - quiet, () => this.#watch());
    else this.#probe();
  }

  #probe(again = false) {
    const asked = now();
    this.#asking = true;
    this.#socket.send('{"type":"ping"}');
    this.#after(PATIENCE, () => {
      if (!this.#asking) this.#watch();
      // The page itself was asleep, and the answer lies there unread, perhaps.
      else if (!again && now() - asked > PATIENCE + STABLE) this.#probe(true);
      else this.#lose(1006, "silent");
    });
  }

  /** Something suggests that the network, or the page's state, has changed: find out rather than wait. */
  #nudge(connect = true) {
    if (this.#state === "open" && !this.#asking) this.#probe();
    else if (this.#state === "waiting" && connect) this.#connect();
  }

  #drop() {
    const socket = this.#socket;
    this.#attempt = this.#socket = null;
    this.#after(Infinity);
    if (!socket) return;
    socket.onclose = socket.onmessage = null;
    socket.close();             // and without waiting for it: a peer that is gone never answers
  }

  #lose(code, reason, delay) {
    if (isFinal(code)) { this.#end(code, reason); return; }
    this.#drop();
    if (this.#state === "open" && now() - this.#openedAt > STABLE) this.#tries = 0;
    delay ??= this.#delay(this.#tries++);
    this.#after(delay, () => this.#connect());
    this.#set("waiting", {code, reason, delay});
  }

  #end(code, reason, byUs = false) {
    this.#drop();
    for (const {fail, key} of this.#requests.values()) fail(new BusError("closed", reason, false, key));
    if (byUs) for (const subscription of this.#subscriptions.values()) subscription.end();
    if (this.#state !== "closed") this.#set("closed", {code, reason});
  }
}

class Subscription {
  /** Behind the last message that onmessage was given; null where nothing is kept. For `since`, and JSON. */
  position;
  ready; id = null;
  #topic; #on; #bus; #settle; #begun = false; #live = false; #ended = false; #conflated = false;
  #tries = 0; #askedAt = -Infinity; #timer;
  #own = new Set();             // offsets ahead of our position that we published with echo: false

  constructor(topic, since, callbacks, bus) {
    [this.#topic, this.#on, this.#bus, this.position] = [topic, callbacks, bus, place(since) ?? null];
    this.ready = new Promise((resolve, reject) => { this.#settle = {resolve, reject}; });
    this.ready.catch(() => {});         // who does not look has onerror
  }

  isPatternOf(topic) { return this.#topic.endsWith("*") && topic.startsWith(this.#topic.slice(0, -1)); }

  /** Ask for what we lack and all that follows: at first, on each new connection, and after a gap. */
  begin() {
    clearTimeout(this.#timer);
    this.#live = false;
    this.#askedAt = now();
    this.id = this.#bus.ask({type: "subscribe", topic: this.#topic, since: this.position ?? undefined});
  }

  unsubscribe() {
    if (this.#ended) return;
    this.#bus.ask({type: "unsubscribe", topic: this.#topic});
    this.end();
    this.#on = {};              // also what is under way is heard no more
  }

  end(error = new BusError("closed", "unsubscribed")) {
    this.#ended = true;
    clearTimeout(this.#timer);
    this.#bus.forget();
    this.#settle.reject(error);
  }

  /** The server has refused it, or ended it. */
  refused(error) {
    this.#live = false;
    if (error.retry) this.#beginAgain();
    else this.end(error);
    this.#call("onerror", error);
  }

  /** We published this with echo: false, so it is no gap. */
  skip({epoch, offset}) {
    if (offset === undefined || this.position?.epoch !== epoch || offset <= this.position.offset) return;
    this.#own.add(offset);
    if (this.#live) this.#advance(this.position.offset);        // else what we have asked for begins before it
  }

  hear(message) {
    if (this.#ended) return;
    if (message.type === "subscribed") { if (message.id === this.id) this.#subscribed(message); return; }
    if (message.type === "unsubscribed") {
      if (message.code && this.#live) this.refused(new BusError(message.code, message.text, message.retry));
      return;
    }
    if (!this.#live) return;            // of an earlier subscription to the same topic
    if (message.type === "message") this.#message(message);
    else if (message.type !== "reset") this.#call(`on${message.type}`, message);
    else {
      if (this.position) this.position = place(message);
      this.#own.clear();
      this.#call("onreset");
    }
  }

  #subscribed(message) {
    const again = this.#begun, {recovered = null, conflated = false} = message;
    this.#begun = this.#live = true;
    this.#conflated = conflated;
    if (!recovered) this.#own.clear();
    this.position = place(message) ?? null;
    if (recovered) this.#advance(this.position.offset);
    this.#call("onsubscribed", {recovered, again, conflated});
    if (recovered === false || (again && recovered === null)) this.#call("onreset");
    this.#settle.resolve(this);
  }

  #message({topic, data, at, tag, replay = false, epoch, offset, previous = offset - 1}) {
    const seen = topic === this.#topic && offset !== undefined ? this.position : null;
    if (seen) {
      const missing = (epoch ?? seen.epoch) !== seen.epoch || (previous > seen.offset && !this.#conflated);
      if (missing) { this.#recover(); return; }
      if (offset <= seen.offset) return;
      const mine = this.#own.delete(offset);
      this.#advance(offset);
      if (mine) return;
    }
    this.#call("onmessage", data, {topic, offset, at: new Date(at), tag, replay});
  }

  #advance(offset) {
    while (this.#own.delete(offset + 1)) offset += 1;
    this.position = {epoch: this.position.epoch, offset};
  }

  /** Some were left out, because we read too slowly perhaps: get them from the history. */
  #recover() {
    this.#bus.ask({type: "unsubscribe", topic: this.#topic});
    this.#live = false;
    this.#beginAgain(true);
  }

  #beginAgain(atOnce = false) {
    if (now() - this.#askedAt > STABLE) this.#tries = 0;
    const delay = atOnce && !this.#tries ? 0 : this.#bus.delay(this.#tries);
    this.#tries += 1;
    clearTimeout(this.#timer);
    if (delay) this.#timer = setTimeout(() => this.begin(), delay);
    else this.begin();
  }

  #call(name, ...values) {
    try {
      this.#on[name]?.(...values);
    } catch (error) {
      reportError(error);               // as an event listener's: it stops nothing else
    }
  }
}

const place = where => where?.epoch === undefined ? undefined : {epoch: where.epoch, offset: where.offset};

function parse(text) {
  try { return JSON.parse(text); } catch (error) { reportError(error); return null; }
}
