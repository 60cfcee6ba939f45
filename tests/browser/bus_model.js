// trionet.js against a model of the server, by random schedules (losses, gaps, refusals, lost pasts): what is new, from
// one reset to the next, is what others published, all of it, once and in order. tests/client/test_following.py does the same to the Python client.

import {Bus} from "/trionet.js";

const TOPIC = "t";

class Model {
  everything = []; keys = new Map(); epoch = 1; top = 0; busy = 0;

  constructor(kept, sparse) { Object.assign(this, {kept, sparse}); }

  open() {              // what the Bus takes for a WebSocket
    this.requests = []; this.subscribed = false; this.answering = null;
    this.messages = [{type: "welcome", session: "s", heartbeat: 1000, limits: {}}];
    this.socket = {send: text => this.requests.push(JSON.parse(text)), close() {}};
    return this.socket;
  }

  publish(jump, {mine = false, drop = false} = {}) {
    const previous = this.top;
    this.top += 1 + (this.sparse ? jump : 0);
    const entry = {epoch: this.epoch, offset: this.top, previous, mine};
    this.everything.push(entry);
    if (this.subscribed && !mine && !drop) this.messages.push(this.message(entry));
    return {epoch: String(this.epoch), offset: this.top};
  }

  message({offset, previous}, more = {}) {
    const message = {type: "message", topic: TOPIC, offset, at: 0, data: offset, ...more};
    return previous === offset - 1 ? message : {...message, previous};
  }

  forget() {
    this.epoch += 1;
    this.top = 0;
    if (this.subscribed) this.messages.push({type: "reset", topic: TOPIC, epoch: String(this.epoch), offset: 0});
  }

  end() {               // the broker was gone for a moment
    if (this.subscribed) this.messages.push({type: "unsubscribed", topic: TOPIC, code: "unavailable", retry: true});
    this.subscribed = false;
  }

  step() {              // one request at a time; what is published is acknowledged a step later
    if (this.answering) {
      this.messages.push(this.answering);
      this.answering = null;
      return;
    }
    const request = this.requests.shift();
    if (request?.type === "publish") {
      if (!this.keys.has(request.key)) this.keys.set(request.key, this.publish(1, {mine: true}));
      this.answering = {type: "published", id: request.id, ...this.keys.get(request.key)};
    } else if (request?.type === "unsubscribe") this.subscribed = false;
    else if (request?.type === "subscribe") this.subscribe(request);
  }

  subscribe({id, since}) {
    if (this.subscribed) throw new Error("subscribed twice");
    if (this.busy > 0) {
      this.busy -= 1;
      this.messages.push({type: "error", id, code: "unavailable", text: "not now", retry: true});
      return;
    }
    this.subscribed = true;
    const past = this.everything.filter(entry => entry.epoch === this.epoch);
    const lost = past.slice(0, -this.kept).at(-1)?.offset ?? 0;
    const recovered = since ? since.epoch === String(this.epoch) && lost <= since.offset : null;
    const start = recovered ? since.offset : this.top;
    this.messages.push({type: "subscribed", id, topic: TOPIC, epoch: String(this.epoch), offset: start, recovered});
    for (const entry of past) if (entry.offset > start) this.messages.push(this.message(entry, {replay: true}));
  }

  hand() {              // the page is given a message
    const message = this.messages.shift();
    if (message) this.socket.onmessage({data: JSON.stringify(message)});
  }
}

function random(seed) {         // mulberry32: the same schedule for the same seed
  return most => {
    seed = (seed + 0x6D2B79F5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % most;
  };
}

window.schedule = async seed => {
  const pick = random(seed), kept = [2, 5, 1000][pick(3)];
  const model = new Model(kept, pick(2) === 1), segments = [];
  let resets = 0, forgotten = false;
  const bus = new Bus("ws://model/", {minDelay: 0, open: () => model.open()});
  const turn = () => new Promise(resolve => { queueMicrotask(() => queueMicrotask(() => queueMicrotask(resolve))); });
  const begin = () => segments.push({start: subscription.position, offsets: []});
  const subscription = bus.subscribe(TOPIC, {
    onmessage(data, {offset}) { segments.at(-1).offsets.push(offset); },
    onsubscribed({again}) { if (!again) begin(); },
    onreset() { resets += 1; begin(); },
  });
  await turn();
  for (let left = pick(60); left > 0; left--) {
    const what = pick(10), count = pick(10) + 1;
    if (what < 2) model.publish(count % 3);
    else if (what === 2) model.publish(count % 3, {drop: true});
    else if (what === 3 && bus.state === "open") bus.publish(TOPIC, 0, {echo: false}).catch(() => {});
    else if (what < 6) for (let n = 0; n < count; n++) model.step();
    else if (what < 8) for (let n = 0; n < count; n++) model.hand();
    else if (what === 8 && count < 7) model.end();
    else if (what === 8) model.busy = count - 6;
    else if (count === 1) { model.forget(); forgotten = true; }
    else { model.socket.onclose({code: 1006, reason: ""}); bus.connect(); }
    await turn();
  }
  for (let round = 0; round < 3; round++) {     // one publication more shows whether the last ones were left out
    while (model.requests.length || model.messages.length || model.answering) { model.step(); model.hand(); }
    if (round < 2) model.publish(0);
  }
  const problems = [];
  const {epoch, offset} = subscription.position;
  if (epoch !== String(model.epoch) || offset !== model.top) problems.push(`ends at ${epoch}:${offset}`);
  if (kept === 1000 && !forgotten && resets) problems.push("told of a loss where there was none");
  for (const {start, offsets} of segments) {
    const end = offsets.at(-1) ?? start.offset;
    const between = model.everything.filter(each =>
      String(each.epoch) === start.epoch && each.offset > start.offset && each.offset <= end && !each.mine);
    if (String(between.map(each => each.offset)) !== String(offsets)) {
      problems.push(`from ${start.epoch}:${start.offset} ${offsets}, and not ${between.map(each => each.offset)}`);
    }
  }
  bus.close();
  return problems.map(problem => `seed ${seed}: ${problem}`);
};
