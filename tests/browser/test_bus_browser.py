"""trionet.js in real Chromium against a real bus: connections that break, come back, and miss nothing."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from served_bus import serving_bus

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

# What Chromium itself writes into the console when an attempt fails; no script can prevent it.
REFUSED = re.compile(r"WebSocket connection to '\S+' failed|Failed to load resource")


@pytest.fixture(scope="module")
def bus():
    """Return a bus that serves for all tests here."""
    with serving_bus() as served:
        yield served


class Page:
    """A page with a `Bus`, which notes what goes wrong in it."""

    def __init__(self, page, url):
        self.page = page
        self.errors, self.console, self.sockets = [], [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.console.append(message.text))
        page.on("websocket", lambda socket: self.sockets.append(socket.url))
        page.goto(url)
        page.wait_for_function("window.ready")

    def run(self, script, argument=None):
        """Run a script: an expression, or a function of the argument. Waits for a promise."""
        return self.page.evaluate(script, argument)

    def until(self, condition, argument=None):
        """Wait until a condition is so."""
        self.page.wait_for_function(condition, arg=argument, polling=10, timeout=20_000)

    def connect(self, **options):
        """Make the page's bus, and wait until it is open."""
        self.run("options => { connect(options); }", options)
        self.until("bus.state === 'open'")

    def follow(self, topic, script="{}"):
        """Subscribe, and wait until it is so."""
        self.run(f"async topic => {{ window.sub = follow(topic, {script}); await sub.ready; }}", topic)

    def data(self, topic):
        """What the page was given."""
        return self.run("topic => shown[topic].data", topic)

    def has(self, topic, count):
        """Wait until the page has so many messages."""
        self.until("([topic, count]) => shown[topic]?.data.length >= count", [topic, count])

    def states(self):
        """Return the states the bus was in, one after the other."""
        return self.run("states.map(each => each.state)")


@pytest.fixture(scope="module")
def context(browser):
    """Return a browser's profile, for all tests that do nothing to it."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def opened(context, bus):
    """Return a function that opens a page; at the end each must be free of errors."""
    pages = []

    def opened(profile=context):
        pages.append(Page(profile.new_page(), bus.url))
        return pages[-1]

    yield opened
    for page in pages:
        page.page.close()
        assert page.errors == []
        assert [text for text in page.console if not REFUSED.match(text)] == []


def test_random_schedules_against_a_model_of_the_server(opened):
    """Losses, gaps, lost pasts, publications of its own: see bus_model.js. Always the same schedules."""
    page = opened()
    page.page.add_script_tag(
        content=(Path(__file__).parent / "bus_model.js").read_text("utf-8"), type="module"
    )
    page.until("window.schedule")
    problems = page.run(
        """async count => {
          const found = [];
          for (let seed = 1; seed <= count && found.length < 5; seed++) found.push(...await schedule(seed));
          return found;
        }""",
        1000,
    )
    assert problems == []


def test_three_hundred_messages_while_connections_break_are_shown_once_and_in_order(bus, opened):
    """Two tabs, each with a connection of its own, which is torn down ten times."""
    first = opened()
    second = opened()
    for page in (first, second):
        page.connect()
        page.follow("mail:1")
    cut = 0
    for number in range(300):
        if (
            number % 30 == 15
        ):  # what comes now is live; what came since the cut was missed, at least some of it
            while bus.connections() < 2:
                first.page.wait_for_timeout(2)
        bus.publish("mail:1", number)
        if number % 30 == 29:
            cut += bus.cut()
    for page in (first, second):
        page.has("mail:1", 300)
        assert page.data("mail:1") == list(range(300))
        assert page.run("shown['mail:1'].replays") > 0
        assert not page.run("shown['mail:1'].events.some(([name]) => name === 'reset')")
    assert cut == 20


def test_what_a_page_publishes_while_connections_break_is_published_once(bus, opened):
    """Whether the publication or its acknowledgement got lost, it is in the topic once, and in order."""
    page = opened()
    page.connect()
    page.follow("out:1")
    page.run(
        """() => {
          window.done = 0;
          window.publishing = (async () => {
            for (let n = 0; n < 100; n += 5) {
              const five = [0, 1, 2, 3, 4].map(k => bus.publish("out:1", n + k).then(() => { done += 1; }));
              await Promise.all(five);
            }
          })();
        }"""
    )
    while page.run("done") < 100:
        bus.cut()
        page.page.wait_for_timeout(15)
    page.run("publishing")
    expected = list(range(100))
    assert [json.loads(text) for text in bus.history("out:1")] == expected
    page.has("out:1", 100)
    assert page.data("out:1") == expected


def test_states_tell_what_goes_on(bus, opened):
    """The first `connecting` is seen by listeners added behind the constructor; a loss says its code and delay."""
    page = opened()
    page.connect()
    bus.close(1012, "restarting")
    page.until("states.length >= 5")
    assert page.states()[:5] == ["connecting", "open", "waiting", "connecting", "open"]
    lost = page.run("states[2]")
    assert (lost["code"], lost["reason"], lost["willRetry"]) == (1012, "restarting", True)
    assert 5 <= lost["delay"] <= 25
    page.run("bus.close()")
    assert page.states()[-1] == "closed"
    assert page.run("states.at(-1).willRetry") is False


def test_listeners_and_callbacks_may_use_the_bus(bus, opened):
    """Subscribing and publishing as soon as it is open is done once; and one may change one's mind at once."""
    page = opened()
    page.run(
        """() => connect().addEventListener("state", ({detail}) => {
          if (detail.state !== "open") return;
          window.sub = follow("mail:10", {onsubscribed() { window.told = bus.publish("mail:10", "second"); }});
          bus.publish("mail:10", "first");
        })"""
    )
    page.has("mail:10", 2)
    page.run("told.then(() => true)")
    assert bus.history("mail:10") == ['"first"', '"second"']
    page.run(
        """() => {
          for (let n = 0; n < 5; n++) { sub.unsubscribe(); window.sub = follow("mail:10"); }
          return sub.ready.then(() => true);
        }"""
    )
    bus.publish("mail:10", "third")
    page.has("mail:10", 1)
    assert page.data("mail:10") == ["third"]
    assert page.run("shown['mail:10'].errors") == []


def test_close_codes_say_whether_to_come_back(bus, opened):
    """After some there is no attempt until the page makes one, and the subscriptions are there again; others pass."""
    page = opened()
    page.connect()
    page.follow("mail:2")
    missed = []
    for code in (1000, 1008, 1009, 4400, 4401, 4403, 4409, 4499):
        sockets = len(page.sockets)
        bus.close(code)
        page.until("bus.state === 'closed'")
        assert page.run("[states.at(-1).code, states.at(-1).willRetry]") == [code, False]
        assert page.run("bus.publish('mail:2', 'never').catch(error => error.code)") == "closed"
        page.page.wait_for_timeout(30)  # an attempt would have been made after 25 ms at most
        assert len(page.sockets) == sockets
        missed.append(code)
        bus.publish("mail:2", code)
        page.run("bus.connect()")
        page.has("mail:2", len(missed))
    assert page.data("mail:2") == missed
    for code in (1001, 1011, 1013, 4000, 4399, 4500, 4599):
        page.run("() => { states.length = 0; }")
        bus.close(code)
        page.until("states.length >= 3")
        assert page.states()[:3] == ["waiting", "connecting", "open"]
        assert page.run("states[0].code") == code


def test_messages_that_were_left_out_are_recovered(bus, opened):
    """What the server drops on its way to a slow page is found by its offset, and comes from the history."""
    page = opened()
    page.run(
        """() => { connect({open(url) {
          const socket = new WebSocket(url);
          socket.addEventListener("message", event => {
            const {offset, replay} = JSON.parse(event.data);
            if (offset === 3 && !replay) event.stopImmediatePropagation();
          });
          return socket;
        }}); }"""
    )
    page.follow("gap:1")
    for number in range(1, 7):
        bus.publish("gap:1", number)
    page.has("gap:1", 6)
    assert page.data("gap:1") == [1, 2, 3, 4, 5, 6]
    assert page.run("shown['gap:1'].events.map(([name, how]) => [name, how.recovered, how.again])") == [
        ["subscribed", None, False],
        ["subscribed", True, True],
    ]
    assert len(page.sockets) == 1


def test_what_cannot_be_recovered_is_said(bus, opened):
    """More was missed than is kept, and a topic that keeps nothing: `onreset`, after each of which it goes on."""
    page = opened()
    page.connect(minDelay=100_000)
    page.follow("few:1")
    page.follow("none:1")
    bus.publish("few:1", 0)
    bus.publish("none:1", 0)
    page.has("few:1", 1)
    page.has("none:1", 1)
    bus.cut()
    page.until("bus.state === 'waiting'")
    for number in range(1, 6):
        bus.publish("few:1", number)
        bus.publish("none:1", number)
    page.run("bus.connect()")
    page.until("['few:1', 'none:1'].every(topic => shown[topic].events.length === 3)")
    for topic, recovered in (("few:1", False), ("none:1", None)):
        bus.publish(topic, "after")
        page.has(topic, 2)
        assert page.data(topic) == [0, "after"]
        begun, again, reset = page.run("topic => shown[topic].events", topic)
        assert (begun[1]["recovered"], begun[1]["again"]) == (None, False)
        assert (again[1]["recovered"], again[1]["again"]) == (recovered, True)
        assert reset == ["reset"]


def test_a_page_goes_on_where_an_earlier_one_was(bus, opened):
    """`position` is JSON to be kept; `since` with it, or with a page of history, brings what came behind it."""
    first = opened()
    first.connect()
    first.follow("mail:3")
    for number in range(4):
        bus.publish("mail:3", number)
    first.has("mail:3", 4)
    kept = first.run("JSON.parse(JSON.stringify(sub.position))")
    first.run("sub.unsubscribe()")
    for number in range(4, 8):
        bus.publish("mail:3", number)
    assert first.data("mail:3") == [0, 1, 2, 3]
    first.run("bus.close()")

    first.connect()
    first.follow("mail:3", f"{{since: {json.dumps(kept)}}}")
    first.has("mail:3", 4)
    assert first.data("mail:3") == [4, 5, 6, 7]
    first.run("bus.close()")

    first.connect()
    page = first.run("bus.history('mail:3', {limit: 2}).then(page => (window.kept = page))")
    assert [each["data"] for each in page["messages"]] == [6, 7]
    first.run(
        "bus.history('mail:3', {since: {...kept, offset: 1}, limit: 2}).then(page => { window.older = page; })"
    )
    assert first.run("[older.messages.map(each => each.data), older.offset]") == [[1, 2], 3]
    first.follow("mail:3", "{since: kept}")
    bus.publish("mail:3", 8)
    first.has("mail:3", 1)
    assert first.data("mail:3") == [8]


def test_a_link_that_broke_without_a_word_is_found_out(browser, bus, opened):
    """After `heartbeat` seconds of silence the page asks, and 10 s later it goes elsewhere; the clock is the test's."""
    context = browser.new_context()
    context.clock.install()
    page = opened(context)
    context.clock.pause_at(time.time() + 3600)
    page.run(
        """() => {
          Object.assign(window, {deaf: false, pings: 0, pongs: 0});
          connect({open(url) {
            const socket = new WebSocket(url), send = socket.send.bind(socket);
            socket.send = text => { pings += text.includes("ping"); send(text); };
            socket.addEventListener("message", event => {
              if (deaf) event.stopImmediatePropagation();
              else pongs += event.data.includes("pong");
            });
            return socket;
          }});
          window.told = follow("quiet:1");
        }"""
    )
    page.until("bus.state === 'open'")
    page.run("told.ready.then(() => true)")
    context.clock.run_for(10_000)
    for count in (1, 2, 3):
        context.clock.run_for(15_000)
        page.until("count => pongs === count", count)
        context.clock.run_for(10_000)  # it was answered: nothing happens
    assert page.states() == ["connecting", "open"]
    page.run("() => { deaf = true; }")
    bus.publish("quiet:1", "unheard")
    context.clock.run_for(15_000)
    assert page.run("pings") == 4
    context.clock.run_for(9_900)
    assert page.run("bus.state") == "open"
    page.run("() => { deaf = false; }")
    context.clock.run_for(200)
    page.until("states.length >= 5")
    page.has("quiet:1", 1)
    assert page.data("quiet:1") == ["unheard"]
    assert [page.run("states[2].reason"), page.states()[-1]] == ["silent", "open"]
    context.close()


def test_a_network_that_comes_back_is_used_at_once(bus, opened):
    """`online` does not wait for the delay, which is a day here; `offline` makes an open page ask."""
    page = opened()
    page.connect(minDelay=86_400_000)
    page.follow("mail:4")
    page.page.context.set_offline(True)
    bus.cut()
    page.until("bus.state === 'waiting'")
    bus.publish("mail:4", "meanwhile")
    page.page.context.set_offline(False)
    page.until("bus.state === 'open'")
    page.has("mail:4", 1)
    assert page.data("mail:4") == ["meanwhile"]


def test_a_page_that_is_looked_at_again_tries_at_once(bus, opened):
    """So does `visibilitychange`."""
    page = opened()
    page.connect(minDelay=86_400_000)
    bus.cut()
    page.until("bus.state === 'waiting'")
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    page.until("bus.state === 'open'")


def test_a_page_that_is_put_aside_holds_no_connection(bus, opened):
    """`pagehide` closes it, without a delay that would run out; `pageshow` brings it back, and what was missed."""
    page = opened()
    page.connect()
    page.follow("mail:5")
    page.run("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    assert page.run("bus.state") == "waiting"
    while bus.connections():
        page.page.wait_for_timeout(5)
    bus.publish("mail:5", "meanwhile")
    page.page.wait_for_timeout(50)
    assert page.run("bus.state") == "waiting"
    page.run("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    page.has("mail:5", 1)
    assert page.data("mail:5") == ["meanwhile"]


def test_errors_of_callbacks_stop_nothing(bus, opened):
    """They are reported as those of event listeners are; the other messages come all the same."""
    page = opened()
    page.connect()
    page.follow(
        "mail:6",
        """{
          onmessage(data) { shown[topic].data.push(data); if (data % 2) throw new Error("odd " + data); },
          onsubscribed() { throw new Error("at the start"); },
        }""",
    )
    for number in range(4):
        bus.publish("mail:6", number)
    page.has("mail:6", 4)
    assert page.data("mail:6") == [0, 1, 2, 3]
    page.until("true")
    assert page.errors == ["at the start", "odd 1", "odd 3"]
    page.errors.clear()


def test_subscriptions_that_are_refused(bus, opened):
    """For now: asked for again by itself. For good: over, and the topic is free again."""
    page = opened()
    page.connect()
    bus.handler.busy = 2
    page.follow("busy:1")
    assert bus.handler.busy == 0
    assert page.run("shown['busy:1'].errors") == [{"code": "unavailable", "retry": True}] * 2
    assert page.run("follow('secret:1').ready.catch(error => error.code)") == "forbidden"
    assert page.run("shown['secret:1'].errors") == [{"code": "forbidden", "retry": False}]
    assert page.run("() => { try { follow('busy:1'); } catch (error) { return error.code; } }") == (
        "already-subscribed"
    )
    page.run("sub.unsubscribe()")
    page.follow("busy:1")


def test_the_end_of_an_earlier_subscription_ends_no_later_one(bus, opened, monkeypatch):
    """What the server said of it was under way while the topic was asked for again."""
    page = opened()
    page.connect()
    page.follow("mail:11")

    async def ended_before(user, topic):
        ended = {"type": "unsubscribed", "topic": topic, "code": "forbidden"}
        for ws in bus.server.websockets:
            await ws.send(json.dumps(ended))
        return True

    monkeypatch.setattr(bus.handler, "may_subscribe", ended_before)
    page.run("sub.unsubscribe()")
    page.follow("mail:11")
    bus.publish("mail:11", 1)
    page.has("mail:11", 1)
    assert page.run("shown['mail:11'].errors") == []


def test_requests_wait_for_a_connection_within_bounds(bus, opened):
    """A number of them, and each for its time; what is too large is not sent."""
    page = opened()
    page.connect(minDelay=86_400_000, queue=3, timeout=40)
    code = ".catch(error => [error.code, error.retry])"
    assert page.run(f"bus.publish('mail:8', 'x'.repeat(70000)){code}") == ["too-large", False]
    bus.cut()
    page.until("bus.state === 'waiting'")
    four = "[1, 2, 3, 4].map(n => bus.publish('mail:8', n, {timeout: n === 1 ? 60000 : 40})"
    page.run(f"() => {{ window.four = Promise.all({four}{code})); }}")
    page.page.wait_for_timeout(60)
    page.run("bus.connect()")
    first, *others = page.run("four")
    assert first["offset"] == 1
    assert others == [["timeout", True], ["timeout", True], ["queue-full", True]]
    assert bus.history("mail:8") == ["1"]
    page.run("bus.close()")
    assert page.run(f"bus.publish('mail:8', 5){code}") == ["closed", False]


def test_who_publishes_without_an_echo_has_no_gap(bus, opened):
    """What it published for the others does not come, not even after a loss, and is not asked for."""
    page = opened()
    page.connect()
    page.follow("mail:9")
    for number in (1, 2):
        page.run("number => bus.publish('mail:9', 'mine ' + number, {echo: false})", number)
        bus.publish("mail:9", number)
    page.has("mail:9", 2)
    bus.cut()
    page.run("bus.publish('mail:9', 'mine', {echo: false})")
    bus.publish("mail:9", 3)
    page.has("mail:9", 3)
    assert page.data("mail:9") == [1, 2, 3]
    assert page.run("sub.position.offset") == 6
    page.follow("none:9")
    assert page.run("bus.publish('none:9', 'mine', {echo: false, timeout: 5000})") is None


def test_patterns_and_presence(bus, opened):
    """A pattern brings its topics' messages, each once; who comes and goes is told, and listed."""
    page = opened()
    page.connect()
    page.follow("news:*", "{onmessage(data, {topic}) { shown['news:*'].data.push([topic, data]); }}")
    page.follow("news:eu")
    bus.publish("news:eu", 1)
    bus.publish("news:us", 2)
    page.has("news:*", 2)
    assert page.data("news:*") == [["news:eu", 1], ["news:us", 2]]
    assert page.data("news:eu") == [1]

    page.follow("room:1")
    other = opened()
    other.connect()
    other.follow("room:1")
    page.until("shown['room:1'].events.filter(([name]) => name === 'join').length === 2")
    who = page.run("bus.presence('room:1')")
    assert who["count"] == 2
    assert {each["member"] for each in who["members"]} == {
        page.run("bus.session"),
        other.run("bus.session"),
    }
    other.run("sub.unsubscribe()")
    page.until("shown['room:1'].events.some(([name]) => name === 'leave')")
