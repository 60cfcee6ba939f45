"""A bus, served by a thread, that a test can hurt: for `test_bus_browser.py`."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import trio

import trionet
from trionet.bus import BusHandler, Refused, bus_protocol, client_module
from trionet.pubsub.topics import HistoryLimits, TopicOptions

PAGE = """<!doctype html><meta charset=utf-8><title>bus</title><link rel=icon href="data:,">
<script type=module>
import {Bus, BusError} from "/trionet.js";
Object.assign(window, {Bus, BusError, shown: {}, states: []});
// A bus whose states are noted, and a subscription whose messages are: what the tests look at.
window.connect = options => {
  const bus = window.bus = new Bus("/bus", {minDelay: 5, maxDelay: 20, ...options});
  bus.addEventListener("state", ({detail}) => states.push(detail));
  return bus;
};
window.follow = (topic, options = {}) => {
  const notes = shown[topic] = {data: [], replays: 0, events: [], errors: []};
  const note = name => (...values) => { notes.events.push([name, ...values]); };
  return bus.subscribe(topic, {
    onmessage(data, {replay}) { notes.data.push(data); notes.replays += replay; },
    onsubscribed: note("subscribed"), onreset: note("reset"), onjoin: note("join"), onleave: note("leave"),
    onerror(error) { notes.errors.push({code: error.code, retry: error.retry}); },
    ...options,
  });
};
window.ready = true;
</script>
"""


class Handler(BusHandler):
    """Everybody may everything, but what begins with `secret`; `busy` is refused as often as the test says."""

    def __init__(self):
        rules = {
            "few:*": TopicOptions(history=HistoryLimits(count=3)),
            "none:*": TopicOptions(history=None),
            "room:*": TopicOptions(presence=True),
            "*": TopicOptions(history=HistoryLimits(count=1000)),
        }
        super().__init__("memory", rules=rules, linger=0.05)
        self.busy = 0

    async def may_subscribe(self, user, topic):
        if topic.startswith("busy") and self.busy:
            self.busy -= 1
            raise Refused("unavailable", "not now")
        return not topic.startswith("secret")

    async def may_subscribe_pattern(self, user, pattern):
        return True

    async def may_publish(self, user, topic, data):
        return not topic.startswith("secret")


class Served:
    """What a test holds. Its methods may be called from the test's thread."""

    def __init__(self):
        self.handler = Handler()
        self.url = ""
        self.server = None
        self.token = None
        self.done = None

    def publish(self, topic, value, **options):
        """Publish on the server."""
        return self.call(lambda: self.handler.publish(topic, value, **options))

    def history(self, topic):
        """What was published on a topic, as JSON texts."""
        page = self.call(lambda: self.handler.bus.history(topic))
        return [publication.data.decode() for publication in page.publications]

    def cut(self):
        """Break all connections of the bus, without a word. Returns how many they were."""
        return self._each(lambda ws: ws.abort())

    def close(self, code, reason=""):
        """Close all connections of the bus."""
        return self._each(lambda ws: ws.close_nowait(code, reason))

    def connections(self):
        """How many connections the bus has."""
        return self._each(lambda ws: None)

    def _each(self, act):
        async def run():
            found = [ws for ws in self.server.connections if isinstance(ws, trionet.WebSocket) and ws.is_open]
            for ws in found:
                act(ws)
            return len(found)

        return self.call(run)

    def call(self, function):
        """Run an async function in the server's thread."""
        return trio.from_thread.run(function, trio_token=self.token)

    async def serve(self, ready):
        """Serve until the test has done."""
        self.token = trio.lowlevel.current_trio_token()
        self.done = trio.Event()
        page = trionet.Response.html(PAGE)
        http = trionet.HttpProtocol({"/": page, "/elsewhere": page, "/trionet.js": client_module()})
        protocol = bus_protocol(self.handler, http=http, max_messages_per_second=None)
        async with trionet.open_server(
            protocol, "127.0.0.1", 0, lifespan=self.handler.lifespan
        ) as self.server:
            self.url = self.server.endpoints[0].url.replace("ws:", "http:")
            ready.set()
            await self.done.wait()


@contextmanager
def serving_bus():
    """Serve a bus for the length of the block."""
    served, ready = Served(), threading.Event()
    thread = threading.Thread(target=trio.run, args=(served.serve, ready), daemon=True)
    thread.start()
    assert ready.wait(20), "the server did not start"
    yield served
    trio.from_thread.run_sync(served.done.set, trio_token=served.token)
    thread.join(20)
    assert not thread.is_alive()
