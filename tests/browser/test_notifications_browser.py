"""The notifications example in real Chromium: two windows, an operator, workers and a broker that are killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from urllib.parse import urlsplit

import pytest
import trio

from examples.notifications.mailbox import Mail, Mailbox
from examples.notifications.remote import RemoteStorage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
# What Chromium itself writes into the console: nobody is logged in yet, what was sent is refused, the server is away.
NOISE = re.compile(
    r"Failed to load resource: the server responded with a status of 40[01]|WebSocket connection to"
)
PATIENCE = 20_000  # ms


class Window:
    """A browser window of a person of their own, which notes what goes wrong in it."""

    def __init__(self, browser, url, name, *, viewport=DESKTOP, script=None, **options):
        self.context = browser.new_context(viewport=viewport, locale="en-GB", **options)
        self.page = self.context.new_page()
        self.noise, self.requests = [], []
        self.page.on("console", lambda message: self.noise.append(message.text))
        self.page.on("pageerror", lambda error: self.noise.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        if script is not None:
            self.page.add_init_script(script)
        self.url = url
        self.page.goto(url)
        self.page.fill("#name", name)
        self.page.press("#name", "Enter")
        self.is_online()

    def is_online(self):
        """Wait until it is."""
        expect(self.page.locator("#state")).to_have_text("online", timeout=PATIENCE)

    def shows(self, *subjects):
        """Wait until exactly these mails are listed, the newest first."""
        expect(self.page.locator("#mails .subject")).to_have_text(
            [*reversed(subjects), "Welcome to your inbox"], timeout=PATIENCE
        )

    def open(self, subject):
        """Open a mail."""
        self.page.locator("#mails a", has_text=subject).click()
        expect(self.page.locator("#subject")).to_have_text(subject)

    def operator(self):
        """A second tab with the numbers."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.noise.append(str(error)))
        page.goto(f"{self.url}operator")
        return page


@pytest.fixture
def window(browser):
    """Return a function that opens a window; at the end, each must be free of errors and remote requests."""
    opened = []

    def window(url, name="ada", **options):
        opened.append(Window(browser, url, name, **options))
        return opened[-1]

    yield window
    for each in opened:
        each.context.close()
        assert [text for text in each.noise if not NOISE.match(text)] == []
        assert {urlsplit(url).hostname for url in each.requests if not url.startswith("data:")} == {
            "127.0.0.1"
        }


@pytest.fixture
def notifications(start_program, tmp_path):
    """Return a function that starts everything and returns the launcher, the address and the database."""

    def start(*options, port=0):
        database = str(tmp_path / "m.db")
        given = ("--port", str(port), "--rate", "0", "--database", database, *options)
        process, url = start_program("-m", "examples.notifications", *given)
        return process, url, database

    return start


def post(url, subject, to="ada", sender="cem"):
    """Deliver a mail from outside."""
    body = json.dumps({"to": to, "sender": sender, "subject": subject, "text": "Text."}).encode()
    request = urllib.request.Request(f"{url}mails", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_a_mail_appears_in_two_windows_and_is_read_in_both(notifications, window):
    """Badge, title, list and toast; markup is shown as it was typed; what is read in one is read in the other."""
    _, url, _ = notifications()
    one, two = window(url), window(url)
    post(url, "<b>Hello</b>")
    for each in (one, two):
        each.shows("<b>Hello</b>")
        expect(each.page.locator("#count")).to_have_text("2")
        expect(each.page).to_have_title("(2) Inbox · trionet mail")
        expect(each.page.locator(".toast")).to_contain_text("<b>Hello</b>")
        expect(each.page.locator("#said")).to_contain_text("New mail from cem")
    one.page.click(".toast")
    expect(one.page.locator("#subject")).to_have_text("<b>Hello</b>")
    for each in (one, two):
        expect(each.page.locator("#count")).to_have_text("1")
        expect(each.page.locator("#mails .unread .subject")).to_have_text("Welcome to your inbox")
    two.page.click("#read-all")
    for each in (one, two):
        expect(each.page.locator("#badge")).to_be_hidden()
        expect(each.page).to_have_title("Inbox · trionet mail")


def test_two_people_write_to_each_other_and_the_operator_sees_it(notifications, window):
    """By keyboard; a name that is none is said in words; numbers move on the operator's page; who logs out is out."""
    _, url, _ = notifications()
    ada, bob = window(url), window(url, "bob", viewport=PHONE, is_mobile=True, has_touch=True)
    numbers = ada.operator()
    expect(numbers.locator("#parts tr")).to_have_count(2, timeout=PATIENCE)
    ada.page.bring_to_front()
    ada.page.keyboard.press("c")
    ada.page.fill("#draft-to", "bob the builder")
    ada.page.fill("#draft-subject", "w" * 150)
    ada.page.press("#draft-text", "Control+Enter")
    expect(ada.page.locator("#draft-error")).to_contain_text("A name is")
    ada.page.fill("#draft-to", "bob")
    ada.page.press("#draft-text", "Control+Enter")
    expect(ada.page.locator("#compose")).to_be_hidden()
    bob.shows("w" * 150)
    bob.open("w" * 150)
    assert bob.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    bob.page.click("#reply")
    bob.page.fill("#draft-subject", "Re: it")
    bob.page.click("#draft [type=submit]")
    ada.shows("Re: it")
    bob.page.go_back()
    expect(bob.page.locator("#reader")).to_be_hidden()
    ada.page.keyboard.press("j")
    expect(ada.page.locator("#from")).to_have_text("bob")
    ada.page.keyboard.press("Escape")
    expect(ada.page.locator("#mail")).to_be_hidden()

    numbers.bring_to_front()
    worker = numbers.locator("#parts tr").nth(0).locator("td")
    expect(worker.nth(3)).to_have_text("3", timeout=PATIENCE)  # two inboxes and this page
    expect(worker.nth(8)).to_contain_text("memory")
    expect(numbers.locator(".chart path.line-0").first).to_be_attached()
    ada.page.click("#logout")
    expect(ada.page.locator("#door")).to_be_visible()
    expect(numbers.locator("#door")).to_be_visible()
    bob.is_online()


def test_workers_are_killed_and_nothing_is_missed(notifications, window):
    """Both pages come back, say how many mails came meanwhile, and show each mail once, in order."""
    _, url, database = notifications("--workers", "2")
    slow = "Math.random = () => 100"  # to come back by itself takes half a minute
    one, two = window(url, script=slow), window(url, script=slow)
    numbers = one.operator()
    parts = numbers.locator("#parts tr", has_text="worker")
    expect(parts).to_have_count(2, timeout=PATIENCE)
    pids = [int(text) for text in parts.locator("td:nth-child(2)").all_text_contents()]
    post(url, "before")
    one.shows("before")
    two.shows("before")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for each in (one, two):
        expect(each.page.locator("#state")).to_have_text("reconnecting", timeout=PATIENCE)
    storage = RemoteStorage(database)
    trio.run(storage.add, [Mail("ada", "cem", f"meanwhile {number}", "Text.") for number in range(3)])
    post(url, "after")  # waits for a worker
    for each in (one, two):
        expect(each.page.locator("#lost")).to_be_visible(timeout=PATIENCE)
        each.page.click("#now")
        each.is_online()
        each.shows("before", *(f"meanwhile {number}" for number in range(3)), "after")
        expect(each.page.locator("#away-text")).to_have_text("4 mails arrived while you were away.")
        expect(each.page.locator("#lost")).to_be_hidden()
    post(url, "live again")
    for each in (one, two):
        expect(each.page.locator(".toast").last).to_contain_text("live again")


def test_everything_is_killed_and_the_list_is_loaded_anew(notifications, window):
    """The memory broker forgets what it knew, the storage does not: the page is told, and says how many mails came."""
    process, url, database = notifications()
    ada = window(url)
    post(url, "before")
    ada.shows("before")
    process.kill()
    process.wait()
    mailbox = Mailbox(database)
    mailbox.add([Mail("ada", "cem", "meanwhile", "Text.")])
    mailbox.close()
    notifications(port=urlsplit(url).port)
    ada.shows("before", "meanwhile")
    expect(ada.page.locator("#away-text")).to_have_text("A mail arrived while you were away.")
    post(url, "after")
    ada.shows("before", "meanwhile", "after")
    expect(ada.page.locator(".toast").last).to_contain_text("after")


@pytest.fixture
def redis(tmp_path):
    """Return a function that starts Redis, with all it knew, and returns its process; and the URL."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server")
    pytest.importorskip("hiredis")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = f"--port {port} --bind 127.0.0.1 --dir {tmp_path} --save --appendonly yes --appendfsync always"
    running = []

    def start():
        running.append(subprocess.Popen([program, *options.split()], stdout=subprocess.DEVNULL))
        return running[-1]

    yield start, f"redis://127.0.0.1:{port}/0"
    for process in running:
        process.kill()
        process.wait()


def test_redis_is_killed_and_nothing_is_missed(notifications, window, redis):
    """Connections stay up; mails are taken meanwhile, and are there when it is back; then pages are live as before."""
    start, broker = redis
    engine = start()
    _, url, _ = notifications("--broker", broker)
    one, two = window(url), window(url)
    post(url, "before")
    one.shows("before")
    engine.kill()
    engine.wait()
    post(url, "meanwhile 1")
    post(url, "meanwhile 2")
    one.is_online()
    start()
    for each in (one, two):
        each.shows("before", "meanwhile 1", "meanwhile 2")
    post(url, "after")
    for each in (one, two):
        each.shows("before", "meanwhile 1", "meanwhile 2", "after")
