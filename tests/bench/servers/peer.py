"""The smallest idiomatic echo and broadcast server of each library.

peer.py LIBRARY PORT echo|bcast [asyncio|uvloop|trio] [options]

Compression and access logs are off everywhere, the backlog is 65535 where it can be set.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import sys

lib, port, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
loop = sys.argv[4] if len(sys.argv) > 4 else "asyncio"
opts = set(sys.argv[5:])
BC = mode == "bcast"
HOST, BL = "127.0.0.1", 65535


def arun(coro):
    if loop == "uvloop":
        import uvloop

        uvloop.run(coro)
    else:
        asyncio.run(coro)


def m_websockets():
    from websockets.asyncio.server import broadcast, serve

    conns = set()

    async def echo(ws):
        async for m in ws:
            await ws.send(m)

    async def bc(ws):
        conns.add(ws)
        try:
            async for m in ws:
                broadcast(conns, m)
        finally:
            conns.discard(ws)

    kw = {}
    if "noping" in opts:
        kw["ping_interval"] = None

    async def main():
        async with serve(bc if BC else echo, HOST, port, compression=None, backlog=BL, max_size=None, **kw):
            await asyncio.Future()

    arun(main())


def m_wstrio():
    import trio
    from websockets.trio.server import serve

    conns = set()

    async def echo(ws):
        async for m in ws:
            await ws.send(m)

    async def bc(ws):
        conns.add(ws)
        try:
            async for m in ws:
                for c in list(conns):
                    await c.send(m)
        finally:
            conns.discard(ws)

    kw = {}
    if "noping" in opts:
        kw["ping_interval"] = None

    async def main():
        await serve(bc if BC else echo, port, host=HOST, compression=None, backlog=BL, max_size=None, **kw)

    trio.run(main)


def m_picows():
    from picows import WSListener, WSMsgType, ws_create_server

    conns = set()

    class L(WSListener):
        def on_ws_connected(self, transport):
            if BC:
                conns.add(transport)

        def on_ws_disconnected(self, transport):
            conns.discard(transport)

        def on_ws_frame(self, transport, frame):
            if frame.msg_type == WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            elif BC:
                m, t = frame.get_payload_as_bytes(), frame.msg_type
                for c in conns:
                    c.send(t, m)
            else:
                transport.send(frame.msg_type, frame.get_payload_as_memoryview())

    async def main():
        kw = {"use_aiofastnet": False} if "nofastnet" in opts else {}
        if "rb1k" in opts:
            kw["read_buffer_init_size"] = 1024
        s = await ws_create_server(lambda r: L(), HOST, port, backlog=BL, **kw)
        await s.serve_forever()

    arun(main())


def m_picows_ws():
    """picows.websockets: the API of websockets on top of picows"""
    from picows.websockets.asyncio.server import serve

    async def echo(ws):
        async for m in ws:
            await ws.send(m)

    async def main():
        async with serve(echo, HOST, port, compression=None, backlog=BL, max_size=None):
            await asyncio.Future()

    arun(main())


def m_aiohttp():
    from aiohttp import WSMsgType, web

    conns = set()

    async def h(req):
        ws = web.WebSocketResponse(compress=False, max_msg_size=0)
        await ws.prepare(req)
        if BC:
            conns.add(ws)
        try:
            async for m in ws:
                if BC:
                    for c in list(conns):
                        await c.send_str(m.data)
                elif m.type == WSMsgType.TEXT:
                    await ws.send_str(m.data)
                elif m.type == WSMsgType.BINARY:
                    await ws.send_bytes(m.data)
        finally:
            conns.discard(ws)
        return ws

    async def main():
        app = web.Application()
        app.router.add_get("/", h)
        r = web.AppRunner(app, access_log=None)
        await r.setup()
        await web.TCPSite(r, HOST, port, backlog=BL).start()
        await asyncio.Future()

    arun(main())


def m_tornado():
    import tornado.httpserver
    import tornado.web
    import tornado.websocket

    conns = set()

    class H(tornado.websocket.WebSocketHandler):
        def get_compression_options(self):
            return None

        def check_origin(self, o):
            return True

        def open(self):
            self.set_nodelay(True)
            if BC:
                conns.add(self)

        def on_close(self):
            conns.discard(self)

        def on_message(self, m):
            if BC:
                for c in conns:
                    c.write_message(m)
            else:
                self.write_message(m, binary=isinstance(m, bytes))

    async def main():
        app = tornado.web.Application(
            [("/", H)], websocket_max_message_size=64 << 20, log_function=lambda h: None
        )
        s = tornado.httpserver.HTTPServer(app)
        from tornado.netutil import bind_sockets

        s.add_sockets(bind_sockets(port, HOST, backlog=BL))
        await asyncio.Future()

    arun(main())


conns_asgi = set()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            m = await receive()
            if m["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await send({"type": "lifespan.shutdown.complete"})
                return
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    if BC:
        conns_asgi.add(send)
    try:
        while True:
            m = await receive()
            if m["type"] == "websocket.disconnect":
                return
            t = m.get("text")
            if BC:
                ev = {"type": "websocket.send", "text": t}
                for s in list(conns_asgi):
                    await s(ev)
            elif t is not None:
                await send({"type": "websocket.send", "text": t})
            else:
                await send({"type": "websocket.send", "bytes": m["bytes"]})
    finally:
        conns_asgi.discard(send)


def m_uvicorn():
    import uvicorn

    ws = [o[3:] for o in opts if o.startswith("ws=")][0]
    kw = {"ws_ping_interval": None} if "noping" in opts else {}
    uvicorn.run(
        app,
        host=HOST,
        port=port,
        ws=ws,
        loop=loop,
        http="httptools",
        log_level="error",
        access_log=False,
        ws_per_message_deflate=False,
        backlog=BL,
        lifespan="off",
        ws_max_size=64 << 20,
        **kw,
    )


def m_hypercorn():
    from hypercorn.config import Config

    cfg = Config()
    cfg.bind = [f"{HOST}:{port}"]
    cfg.backlog = BL
    cfg.accesslog = None
    cfg.errorlog = None
    cfg.loglevel = "CRITICAL"
    cfg.websocket_max_message_size = 64 << 20
    if "trio" in opts:
        import trio
        from hypercorn.trio import serve

        trio.run(serve, app, cfg)
    else:
        from hypercorn.asyncio import serve

        arun(serve(app, cfg))


def m_triows():
    import trio
    from trio_websocket import ConnectionClosed, serve_websocket

    conns = set()

    async def h(req):
        ws = await req.accept()
        if BC:
            conns.add(ws)
        try:
            while True:
                m = await ws.get_message()
                if BC:
                    for c in list(conns):
                        try:
                            await c.send_message(m)
                        except ConnectionClosed:
                            pass
                else:
                    await ws.send_message(m)
        except ConnectionClosed:
            pass
        finally:
            conns.discard(ws)

    async def main():
        await serve_websocket(h, HOST, port, ssl_context=None, max_message_size=64 << 20)

    trio.run(main)


def m_socketify():
    from socketify import App, AppListenOptions, CompressOptions

    a = App()

    def op(ws):
        if BC:
            ws.subscribe("b")

    def msg(ws, m, opcode):
        if BC:
            a.publish("b", m, opcode)
        else:
            ws.send(m, opcode)

    a.ws(
        "/*",
        {
            "compression": CompressOptions.DISABLED,
            "max_payload_length": 16 << 20,
            "idle_timeout": 120,
            "open": op,
            "message": msg,
            "max_backpressure": 64 << 20,
        },
    )
    a.listen(AppListenOptions(port=port, host=HOST), lambda c: None)
    a.run()


h = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (h, h))
if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    if "nogc" in opts:
        gc.disable()
    globals()["m_" + lib]()
