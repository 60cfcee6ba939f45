// Clients and servers of npm's `ws`, and undici's client (the one that Node has built in), for tests in Python.
//
//     node peers.mjs FOLDER     FOLDER/node_modules has ws and undici
//
// Reads requests from standard input, a line of JSON each: {id, op, on, args}; writes {id, result} or {id, error}.
// `on` is the number that `connect` or `serve` gave. A message is {text} or {data} (base64). Ends with its input.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.argv[2] + "/");
const { WebSocket, WebSocketServer } = require("ws");
const BuiltIn = globalThis.WebSocket ?? require("undici").WebSocket;

const things = new Map();
let count = 0;

function register(thing) {
  things.set(++count, thing);
  return count;
}

function encode(data, isBinary) {
  return isBinary ? { data: Buffer.from(data).toString("base64") } : { text: data.toString() };
}

function decode(message) {
  return message.text ?? Buffer.from(message.data, "base64");
}

class Connection {
  constructor(socket) {
    this.socket = socket;
    this.messages = [];
    this.wanted = [];
    this.close = new Promise((resolve) => (this.closed = resolve));
    this.close.then(() => this.wanted.splice(0).forEach((want) => want.reject(new Error("closed"))));
  }

  arrived(message) {
    const want = this.wanted.shift();
    if (want) want.resolve(message);
    else this.messages.push(message);
  }

  receive() {
    if (this.messages.length) return Promise.resolve(this.messages.shift());
    return new Promise((resolve, reject) => this.wanted.push({ resolve, reject }));
  }
}

function connect({ url, subprotocols, headers, deflate }) {
  const socket = new WebSocket(url, subprotocols, { headers, perMessageDeflate: deflate });
  const connection = new Connection(socket);
  return new Promise((resolve, reject) => {
    let response = {};
    socket.on("upgrade", (head) => (response = head.headers));
    socket.on("open", () => {
      resolve({
        on: register(connection),
        subprotocol: socket.protocol || null,
        extensions: response["sec-websocket-extensions"] ?? "",
        headers: response,
      });
    });
    socket.on("unexpected-response", (request, answer) => {
      let body = "";
      answer.on("data", (piece) => (body += piece));
      answer.on("end", () => resolve({ status: answer.statusCode, body }));
    });
    socket.on("message", (data, isBinary) => connection.arrived(encode(data, isBinary)));
    socket.on("close", (code, reason) => connection.closed([code, reason.toString()]));
    socket.on("error", reject);
  });
}

function connectBuiltIn({ url, subprotocols, headers }) {
  const socket = new BuiltIn(url, { protocols: subprotocols, headers });
  const connection = new Connection(socket);
  socket.binaryType = "arraybuffer";
  return new Promise((resolve, reject) => {
    socket.onopen = () =>
      resolve({
        on: register(connection),
        subprotocol: socket.protocol || null,
        extensions: socket.extensions,
        headers: null,
      });
    socket.onmessage = ({ data }) => connection.arrived(encode(data, typeof data !== "string"));
    socket.onclose = ({ code, reason }) => connection.closed([code, reason]);
    // As in a browser, the script learns of no status.
    socket.onerror = () => resolve({ status: null, body: "" });
  });
}

// Does what its clients say; otherwise an echo. The words are those of the servers in interop_servers.py.
function serve({ tls, deflate, limit }) {
  const { createServer } = tls ? require("node:https") : require("node:http");
  const server = createServer(tls ?? {});
  const sockets = new WebSocketServer({
    server,
    perMessageDeflate: deflate,
    maxPayload: limit,
    verifyClient: ({ req }, answer) => answer(req.url !== "/forbidden", 403, "not here"),
    handleProtocols: (offered) => (offered.has("chat") ? "chat" : false),
  });
  sockets.on("headers", (headers, request) => headers.push(`X-Seen: ${request.headers["x-token"]}`));
  sockets.on("connection", (socket) => {
    socket.on("error", () => {});
    socket.on("message", (data, isBinary) => {
      const words = isBinary ? [] : data.toString().split(" ");
      if (words[0] === "/close") socket.close(Number(words[1]), words[2]);
      else if (words[0] === "/vanish") socket.terminate();
      else if (words[0] === "/ping") {
        socket.once("pong", (payload) => socket.send(`pong ${payload}`));
        socket.ping(words[1]);
      } else if (words[0] === "/pieces") {
        socket.send("one ", { fin: false });
        socket.send("two ", { fin: false });
        socket.send("three", { fin: true });
      } else socket.send(data, { binary: isBinary });
    });
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () =>
      resolve({
        on: register({
          stop: () =>
            new Promise((done) => {
              sockets.clients.forEach((socket) => socket.terminate());
              sockets.close();
              server.close(() => done(null));
            }),
        }),
        port: server.address().port,
      }),
    );
  });
}

const ops = {
  version: () => ({
    node: process.version,
    ws: require("ws/package.json").version,
    undici: process.versions.undici,
    builtIn: "WebSocket" in globalThis,
  }),
  connect,
  connectBuiltIn,
  serve,
  stop: (server) => server.stop(),
  send: ({ socket }, message) => socket.send(decode(message)),
  pieces: ({ socket }, pieces) =>
    pieces.forEach((piece, i) => socket.send(decode(piece), { fin: i === pieces.length - 1 })),
  receive: (connection) => connection.receive(),
  exchange: (connection, messages) => {
    messages.forEach((message) => connection.socket.send(decode(message)));
    return Promise.all(messages.map(() => connection.receive()));
  },
  ping: ({ socket }, payload) =>
    new Promise((resolve) => {
      socket.once("pong", (answer) => resolve(answer.toString()));
      socket.ping(payload);
    }),
  close: (connection, [code, reason]) => {
    connection.socket.close(code, reason);
    return connection.close;
  },
  ended: (connection) => connection.close,
  vanish: ({ socket }) => socket.terminate(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, op, on, args } = JSON.parse(line);
  const answer = (what) => process.stdout.write(JSON.stringify({ id, ...what }) + "\n");
  const begun = on ? () => ops[op](things.get(on), args) : () => ops[op](args);
  new Promise((resolve) => resolve(begun())).then(
    (result) => answer({ result: result ?? null }),
    (error) => answer({ error: String(error) }),
  );
}
process.exit(0);
