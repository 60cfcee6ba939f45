"""The chat example in real Chromium: two windows, a server that dies and comes back, a phone."""

from __future__ import annotations

import re
import signal
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
# What Chromium itself writes into the console while the server is away; no script can prevent it.
REFUSED = re.compile(r"WebSocket connection to '\S+' failed")


class Window:
    """A browser window of a person of their own, which notes what goes wrong in it."""

    def __init__(self, browser, url, *, viewport=DESKTOP, route=None, script=None, **options):
        self.context = browser.new_context(viewport=viewport, **options)
        self.page = self.context.new_page()
        self.console, self.errors, self.requests = [], [], []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        if script is not None:
            self.page.add_init_script(script)
        if route is not None:
            self.page.route_web_socket("**/chat", route)
        self.page.goto(url)
        expect(self.page.locator("#door")).to_be_visible()

    def join(self, name):
        """Enter under a name."""
        self.page.fill("#name", name)
        self.page.press("#name", "Enter")
        expect(self.page.locator("#talk")).to_be_visible()

    def say(self, text):
        """Type a line and press Enter."""
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def lines(self):
        """Return every line on the page, in order."""
        return self.page.locator("#log .text").all_text_contents()

    def hears(self, *lines, timeout=20_000):
        """Wait until exactly these lines are on the page, in any case each once."""
        expect(self.page.locator("#log .text")).to_have_text(list(lines), timeout=timeout)

    def is_state(self, state, timeout=20_000):
        """Wait until the page shows a state of the connection."""
        expect(self.page.locator("#state")).to_have_text(state, timeout=timeout)

    def sideways(self):
        """How many pixels the page can be scrolled sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.fixture
def chat(start_program):
    """Return a function that starts the chat on a port (0: any) and returns its process and address."""

    def start(port=0):
        return start_program("-m", "examples.chat", "--port", str(port))

    return start


@pytest.fixture
def window(browser):
    """Return a function that opens a window; at the end, each must be free of errors and remote requests."""
    opened = []

    def window(url, **options):
        opened.append(Window(browser, url, **options))
        return opened[-1]

    yield window
    for each in opened:
        each.context.close()
        assert each.errors == []
        assert [text for text in each.console if not REFUSED.match(text)] == []
        hosts = {urlsplit(url).hostname for url in each.requests if not url.startswith("data:")}
        assert hosts == {"127.0.0.1"}


def test_two_windows_talk_and_a_third_reads_it_later(chat, window):
    """Both ways, with history on entry, people, notices, and markup shown as it was typed."""
    _, url = chat()
    ada, bob = window(f"{url}?room=garden"), window(f"{url}?room=garden")
    ada.join("Ada")
    bob.join("Bob")
    expect(ada.page.locator("#log .notice").last).to_have_text("Bob joined")
    ada.say("Hello Bob")
    bob.hears("Hello Bob")
    bob.say("<img src=x onerror=alert(1)> & so on")
    lines = ["Hello Bob", "<img src=x onerror=alert(1)> & so on"]
    ada.hears(*lines)
    assert ada.page.locator("#log img").count() == 0
    assert ada.page.locator("#log .own .text").all_text_contents() == ["Hello Bob"]
    assert bob.page.locator("#log .group:not(.own) b").all_text_contents() == ["Ada"]

    cem = window(f"{url}?room=garden")
    expect(cem.page.locator("#rooms a[aria-current] .count")).to_have_text("2")
    cem.join("Cem")
    cem.hears(*lines)
    assert cem.page.locator("#people bdi").all_text_contents() == ["Cem", "Ada", "Bob"]
    cem.page.click("#leave")
    expect(ada.page.locator("#log .notice").last).to_have_text("Cem left")
    expect(ada.page.locator("#people bdi")).to_have_text(["Ada", "Bob"])


def test_a_taken_name_is_said_and_another_gets_in(chat, window):
    """The error stands beside the field, in words; so does that of a name that is none."""
    _, url = chat()
    ada, eve = window(url), window(url)
    ada.join("Ada")
    error = eve.page.locator("#door-error")
    wrong = {"ada": "“Ada” is taken", "x" * 25: "at most 24", "a\u202eb": "control characters"}
    for name, text in wrong.items():
        eve.page.fill("#name", name)
        eve.page.click("#door button")
        expect(error).to_contain_text(text)
    eve.join("Eve")
    eve.say("in")
    ada.hears("in")


def test_the_last_fifty_lines_are_shown_on_entry(chat, window):
    """Fifty of sixty, and lines typed faster than the server allows all arrive, once and in order."""
    _, url = chat()
    ada = window(url)
    ada.join("Ada")
    # The server takes twenty at once and then four a second: the page waits and goes on by itself.
    ada.page.evaluate(
        """for (let n = 1; n <= 60; n++) {
             document.getElementById("text").value = `line ${n}`;
             document.getElementById("composer").requestSubmit();
           }"""
    )
    lines = [f"line {n}" for n in range(1, 61)]
    ada.hears(*lines, timeout=60_000)
    bob = window(url)
    bob.join("Bob")
    bob.hears(*lines[10:])


def test_windows_come_back_by_themselves_when_the_server_does(chat, window):
    """Killed without a word and restarted: nothing lost, nothing twice, the names are the same."""
    server, url = chat()
    ada, bob = window(f"{url}?room=garden"), window(f"{url}?room=garden")
    ada.join("Ada")
    bob.join("Bob")
    ada.say("one")
    bob.hears("one")
    bob.say("two")
    ada.hears("one", "two")

    server.send_signal(signal.SIGKILL)
    server.wait()
    ada.is_state("reconnecting")
    bob.is_state("reconnecting")
    expect(ada.page.locator("#banner")).to_be_visible()
    expect(ada.page.locator("#now")).to_be_visible()
    ada.say("three")
    ada.say("four")
    assert ada.page.locator("#outbox .text").all_text_contents() == ["three", "four"]

    chat(urlsplit(url).port)
    ada.is_state("online", timeout=40_000)
    bob.is_state("online", timeout=40_000)
    bob.hears("one", "two", "three", "four")
    expect(ada.page.locator("#outbox .text")).to_have_count(0)
    bob.say("five")
    ada.hears("one", "two", "three", "four", "five")
    bob.hears("one", "two", "three", "four", "five")
    for each in (ada, bob):
        expect(each.page.locator("#people bdi")).to_have_count(2)
        expect(each.page.locator("#banner")).to_be_hidden()


def test_a_line_whose_answer_got_lost_is_said_once(chat, window):
    """The connection breaks after the server took a line, before the page knows it: no one hears it twice."""
    _, url = chat()
    lost = []

    def cut_once(to_page):
        to_server = to_page.connect_to_server()

        def answer(message):
            if '"said"' in message and not lost:
                lost.append(message)
                to_server.close()
                to_page.close(code=4000, reason="cut by the test")
            else:
                to_page.send(message)

        to_server.on_message(answer)

    ada, bob = window(url, route=cut_once), window(url)
    ada.join("Ada")
    bob.join("Bob")
    ada.say("once")
    ada.say("and then this")
    ada.hears("once", "and then this")
    bob.hears("once", "and then this")
    assert len(lost) == 1
    expect(ada.page.locator("#outbox .text")).to_have_count(0)
    expect(bob.page.locator("#log .notice")).to_have_count(0)


def test_a_server_that_is_stopped_politely_comes_back_at_a_click(chat, window):
    """SIGTERM ends the server by itself; a click need not wait for the clock, which would be slow here."""
    server, url = chat()
    ada = window(url, script="Math.random = () => 100")  # the page waits random() x 0.5 s and a bit
    ada.join("Ada")
    server.terminate()
    assert server.wait(20) == 0
    ada.is_state("reconnecting")
    expect(ada.page.locator("#countdown")).to_have_text(re.compile(r"^Next try in \d+ s\.$"))
    chat(urlsplit(url).port)
    ada.page.click("#now")
    ada.is_state("online")
    ada.say("back")
    ada.hears("back")


def test_a_reload_keeps_the_name_and_a_second_tab_takes_it_over(chat, window):
    """Neither is announced as leaving or joining; the older tab says what happened and can take it back."""
    _, url = chat()
    ada, bob = window(url), window(url)
    ada.join("Ada")
    bob.join("Bob")
    ada.say("before")
    ada.page.reload()
    ada.is_state("online")
    ada.hears("before")
    ada.say("after")
    bob.hears("before", "after")
    assert ada.page.locator("#log .own .text").all_text_contents() == ["before", "after"]

    with ada.context.expect_page() as opened:  # a window opened by a script inherits the storage of its tab
        ada.page.evaluate("open(location.href)")
    twin = opened.value
    expect(twin.locator("#state")).to_have_text("online", timeout=20_000)
    ada.is_state("refused")
    twin.fill("#text", "from the twin")
    twin.press("#text", "Enter")
    bob.hears("before", "after", "from the twin")
    ada.page.click("#now")
    ada.is_state("online")
    ada.say("here again")
    bob.hears("before", "after", "from the twin", "here again")
    assert bob.page.locator("#log .notice").all_text_contents() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_nothing_to_scroll_sideways(chat, window, scheme):
    """Long words and long names wrap; rooms and people are in a drawer that opens and closes by keyboard."""
    _, url = chat()
    url += f"?room={'r' * 32}"
    phone = window(url, viewport=PHONE, is_mobile=True, has_touch=True, color_scheme=scheme)
    assert phone.sideways() <= 0
    phone.join("n" * 24)
    other = window(url)
    other.join("W" * 24)
    other.say("w" * 600)
    phone.hears("w" * 600)
    phone.say("x" * 600)
    phone.hears("w" * 600, "x" * 600)
    assert phone.sideways() <= 0
    page = phone.page
    expect(page.locator("#people")).to_be_hidden()
    page.click("#menu")
    expect(page.locator("#people")).to_be_visible()
    expect(page.locator("#menu-close")).to_be_focused()
    assert phone.sideways() <= 0
    page.keyboard.press("Escape")
    expect(page.locator("#people")).to_be_hidden()
    box = page.locator("#composer").bounding_box()
    assert box["y"] + box["height"] <= PHONE["height"]


def test_who_reads_further_up_is_not_torn_away(chat, window):
    """A new line below is announced by a button instead, and the title counts what a hidden window missed."""
    _, url = chat()
    ada, bob = window(url, viewport={"width": 800, "height": 420}), window(url)
    ada.join("Ada")
    bob.join("Bob")
    bob.say("\n".join("tall" * 3 for _ in range(40)))
    expect(ada.page.locator("#log .text")).to_have_count(1)
    ada.page.evaluate("document.getElementById('scroll').scrollTop = 0")
    expect(ada.page.locator("#jump")).to_be_hidden()
    bob.say("news")
    expect(ada.page.locator("#jump")).to_have_text("1 new line ↓")
    assert ada.page.evaluate("document.getElementById('scroll').scrollTop") == 0
    ada.page.click("#jump")
    expect(ada.page.locator("#jump")).to_be_hidden()
    expect(ada.page.locator("#log .text").last).to_be_in_viewport()

    ada.page.evaluate("document.hasFocus = () => false")
    bob.say("psst")
    expect(ada.page).to_have_title("(1) #lobby · trionet chat")
    ada.page.evaluate("delete document.hasFocus; window.dispatchEvent(new Event('focus'))")
    expect(ada.page).to_have_title("#lobby · trionet chat")
