"""The notifications example: mailbox and outbox, who may do what, and all of it as processes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
import urllib.request
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

import trionet
from examples.notifications import mailbox as mailbox_module
from examples.notifications import storage as storage_module
from examples.notifications.mailbox import Full, Invalid, Mail, Mailbox, check_name
from examples.notifications.remote import RemoteStorage
from examples.notifications.server import Settings, make
from examples.notifications.session import Sessions, read_secret
from examples.notifications.shared import socket_of
from examples.notifications.storage import open_storage, routes
from trionet.errors import BrokerDown
from trionet.wire.cookies import parse_cookies

SECRET = b"s" * 32


def mail(subject="Hello", box="ada", **fields):
    """A mail to somebody."""
    return Mail(box, "bob", subject, "text", **fields)


@pytest.fixture
def box(tmp_path):
    """A mailbox in a file, and the file's name."""
    opened = Mailbox(str(tmp_path / "mails.db"))
    yield opened
    opened.close()


# --- the mailbox ---------------------------------------------------------------------------------


def test_a_mail_comes_with_its_event(box):
    """What the event says is what the list shows."""
    box.add([mail()])
    (event,) = box.outbox()
    assert (event.topic, json.loads(event.data)) == (
        "mail:ada",
        {"type": "mail", "mail": box.inbox("ada")[0]},
    )


def test_a_mail_that_is_delivered_twice_is_one(box):
    """By its id, whatever else it says; and there is one event."""
    assert [box.add([mail(id="the-same")]), box.add([mail("Other", id="the-same")])] == [1, 0]
    assert len(box.inbox("ada")) == len(box.outbox()) == 1


def test_mails_are_listed_newest_first_and_by_person(box):
    """Nobody sees those of others."""
    box.add([mail("one"), mail("two"), mail("three", box="bob")])
    assert [each["subject"] for each in box.inbox("ada")] == ["two", "one"]


def test_reading_is_an_event_once(box):
    """One's own mails only; what was read before is no news."""
    box.add([mail(id="mine-mine"), mail(box="bob", id="not-mine")])
    assert box.mark_read("ada", ["mine-mine", "not-mine", "no-such-id"]) == 1
    assert box.mark_read("ada", ["mine-mine"]) == 0
    assert [json.loads(event.data) for event in box.outbox()[2:]] == [{"type": "read", "ids": ["mine-mine"]}]
    assert [box.inbox("ada")[0]["read"], box.inbox("bob")[0]["read"]] == [True, False]


def test_a_mailbox_keeps_so_many(box, monkeypatch):
    """The oldest go; those of others stay."""
    monkeypatch.setattr(mailbox_module, "KEPT", 3)
    box.add([mail(box="bob"), *[mail(str(number)) for number in range(5)]])
    assert [each["subject"] for each in box.inbox("ada")] == ["4", "3", "2"]
    assert len(box.inbox("bob")) == 1


def test_what_cannot_be_announced_is_not_taken(box, monkeypatch):
    """While the bus is away for long the outbox is full at some time: then there is neither mail nor event."""
    monkeypatch.setattr(mailbox_module, "UNPUBLISHED", 2)
    box.add([mail("one"), mail("two")])
    with pytest.raises(Full):
        box.add([mail("three")])
    assert (len(box.inbox("ada")), box.waiting()) == (2, 2)
    box.published(box.outbox()[0])
    assert (box.add([mail("three")]), box.waiting()) == (1, 2)


@pytest.mark.parametrize("name", ["", "Ada", "a" * 25, ".a", "a b", "a*", "ä", None, "a\n"])
def test_a_name_is_part_of_a_topic(name):
    """So it has none of the characters that mean something there."""
    with pytest.raises(Invalid):
        check_name(name)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {"to": "ada"},
        {"to": "ada", "text": 1},
        {"to": "ada", "text": "\ud800"},
        {"to": "ada", "text": "x" * 10_001},
        {"to": "ada", "text": "x", "id": "short"},
        {"text": "x"},
    ],
)
def test_what_is_no_mail_is_refused(fields):
    """With a reason in words."""
    with pytest.raises(Invalid, match=r"\w"):
        Mail.of(fields)


# --- the outbox ----------------------------------------------------------------------------------


class Bus:
    """What the storage publishes to; away while `down`."""

    def __init__(self):
        self.got = []
        self.down = False
        self.news = trio.Event()

    async def publish(self, topic, data, key):
        """Take it, or not."""
        await trio.lowlevel.checkpoint()
        if self.down:
            raise BrokerDown("away")
        if not topic.startswith("ops:"):
            self.got.append(key)
            self.news.set()
            self.news = trio.Event()

    async def wait_for(self, count):
        """Wait until so many have come."""
        with trio.fail_after(10):
            while len(self.got) < count:
                await self.news.wait()


async def test_the_outbox_survives_a_crash_between_commit_and_publish(tmp_path):
    """The event is published by whoever opens the file next, with the key it had."""
    path = str(tmp_path / "mails.db")
    crashed = Mailbox(path)
    crashed.add([mail(id="committed-1")])
    crashed.close()
    bus = Bus()
    async with open_storage(path, bus.publish, 0.0):
        await bus.wait_for(1)
    assert bus.got == ["committed-1"]


async def test_a_crash_after_publishing_publishes_again_with_the_same_key(tmp_path, monkeypatch):
    """At least once; the bus knows it by the key."""
    path, bus = str(tmp_path / "mails.db"), Bus()
    with monkeypatch.context() as patch:
        patch.setattr(Mailbox, "published", lambda *_: None)  # killed before it noted that
        async with open_storage(path, bus.publish, 0.0) as storage:
            await storage.add([mail(id="twice-twice")])
            await bus.wait_for(1)
    bus.got.clear()
    async with open_storage(path, bus.publish, 0.0) as storage:
        await bus.wait_for(1)
    assert set(bus.got) == {"twice-twice"}


async def test_mails_are_taken_while_the_bus_is_away_and_published_in_order(tmp_path, monkeypatch):
    """Whoever delivers a mail does not wait for the bus."""
    monkeypatch.setattr(storage_module, "PAUSES", (0.01,))
    bus = Bus()
    bus.down = True
    async with open_storage(str(tmp_path / "mails.db"), bus.publish, 0.0) as storage:
        for number in range(5):
            await storage.add([mail(id=f"number-{number}")])
        await trio.testing.wait_all_tasks_blocked()
        assert bus.got == []
        bus.down = False
        await bus.wait_for(5)
    assert bus.got == [f"number-{number}" for number in range(5)]


async def test_the_storage_as_a_process_of_its_own(tmp_path):
    """The same three calls by HTTP on a socket that nobody else may open; refusals come back as they are."""
    path, bus = str(tmp_path / "m.db"), Bus()
    async with open_storage(path, bus.publish, 0.0) as storage:
        endpoint = trionet.Endpoint(
            protocol=trionet.HttpProtocol(routes(storage)), path=socket_of(path), mode=0o600
        )
        async with trionet.open_server([endpoint]):
            assert os.stat(socket_of(path)).st_mode & 0o777 == 0o600
            remote = RemoteStorage(path)
            await remote.add([mail(id="by-socket")])
            assert [each["id"] for each in await remote.inbox("ada")] == ["by-socket"]
            await remote.mark_read("ada", ["by-socket"])
            assert (await storage.inbox("ada"))[0]["read"]
            with pytest.raises(Invalid, match="A name is"):
                await remote.add([mail(box="no name")])


# --- log-in --------------------------------------------------------------------------------------


def cookie_of(sessions, name="ada", **options):
    """The Cookie header of one who is logged in."""
    return sessions.begin(name, **options).partition(";")[0]


def test_a_cookie_says_who_it_is():
    """Among others, and not to scripts nor to other sites."""
    sessions = Sessions(SECRET)
    assert sessions.user(parse_cookies([f"theme=dark; {cookie_of(sessions)}; x"])) == "ada"
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} < set(sessions.begin("ada").split("; "))
    assert "Secure" in sessions.begin("ada", secure=True).split("; ")


@pytest.mark.parametrize(
    "forge",
    [
        lambda cookie: cookie.replace("ada", "bob"),
        lambda cookie: cookie[:-1] + ("0" if cookie[-1] != "0" else "1"),
        lambda cookie: cookie.replace(":1", ":2", 1),  # a later end
        lambda cookie: cookie.rpartition(":")[0] + ":",
        lambda cookie: cookie.partition("=")[0] + "=ada",
        lambda cookie: cookie.partition("=")[0] + "=\xe4:1:\xff",
        lambda cookie: "",
        lambda cookie: cookie_of(Sessions(b"x" * 32)),
    ],
    ids=["name", "signature", "time", "unsigned", "bare", "bytes", "none", "other-secret"],
)
def test_a_forged_cookie_is_nobody(forge):
    """Whatever part of it was changed."""
    sessions = Sessions(SECRET)
    assert sessions.user(parse_cookies([forge(cookie_of(sessions))])) is None


def test_a_cookie_ends(monkeypatch):
    """A week later it is worth nothing."""
    sessions = Sessions(SECRET)
    cookie = cookie_of(sessions)
    later = time.time() + 8 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    assert sessions.user(parse_cookies([cookie])) is None


def test_the_secret_stays_and_is_ours_alone(tmp_path):
    """All processes read the same one from a file that others cannot."""
    database = str(tmp_path / "mails.db")
    assert read_secret(database) == read_secret(database)
    assert os.stat(f"{database}.secret").st_mode & 0o777 == 0o600


# --- a worker ------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(**settings):
    """A worker with everything in it; yields host and port."""
    application = make(Settings(**settings))
    async with trionet.open_server(application.protocol, lifespan=application.lifespan) as server:
        yield server.addresses[0]


async def ask(address, path, value=None, *, cookie="", content_type="application/json", read=True):
    """Make a request; returns status, headers, body."""

    def exchange():
        connection = http.client.HTTPConnection(*address, timeout=10)
        headers = {"Cookie": cookie, "Content-Type": content_type}
        body = None if value is None else json.dumps(value)
        connection.request("GET" if value is None else "POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return (
            answer.status,
            answer.headers,
            json.loads(text) if answer.status == 200 and read else text.decode(),
        )

    return await trio.to_thread.run_sync(exchange)


async def login(address, name):
    """Log in; returns the Cookie header."""
    _, headers, _ = await ask(address, "/login", {"name": name})
    return headers["Set-Cookie"].partition(";")[0]


@asynccontextmanager
async def listening(address, cookie, topic, since=None):
    """Subscribe by a WebSocket, as a page does; yields a function that returns the next message."""
    url = "ws://{}:{}/bus".format(*address)
    async with trionet.connect_websocket(url, headers={"Cookie": cookie}) as ws:

        async def hear():
            with trio.fail_after(10):
                return json.loads(await ws.receive())

        assert (await hear())["type"] == "welcome"
        await ws.send(json.dumps({"type": "subscribe", "id": 1, "topic": topic, "since": since}))
        yield hear


async def test_a_mail_from_outside_is_in_the_list_and_on_the_bus():
    """Posted by curl; heard by a page that had subscribed from the list's position on, once."""
    async with serving() as address:
        cookie = await login(address, "ada")
        _, _, inbox = await ask(address, "/api/inbox", cookie=cookie)
        async with listening(address, cookie, "mail:ada", inbox["position"]) as hear:
            assert (await hear())["type"] == "subscribed"
            status, _, sent = await ask(address, "/mails", {"to": "ada", "subject": "Hello"})
            heard = [await hear()]
            if heard[-1]["data"]["mail"]["id"] == "welcome-ada":  # published after the position was read
                heard.append(await hear())
            assert (status, heard[-1]["data"]["mail"]["id"]) == (200, sent["id"])
        _, _, inbox = await ask(address, "/api/inbox", cookie=cookie)
        assert [each["sender"] for each in inbox["mails"]] == ["somebody", "trionet"]


async def test_what_came_between_list_and_subscription_is_not_missed():
    """The position is not newer than the list."""
    async with serving() as address:
        cookie = await login(address, "ada")
        _, _, inbox = await ask(address, "/api/inbox", cookie=cookie)
        _, _, sent = await ask(address, "/mails", {"to": "ada", "subject": "Meanwhile"})
        async with listening(address, cookie, "mail:ada", inbox["position"]) as hear:
            assert (await hear())["recovered"]
            while (await hear())["data"]["mail"]["id"] != sent["id"]:
                pass


@pytest.mark.parametrize("topic", ["mail:bob", "mail:*", "*", "ops:*"])
async def test_one_may_not_hear_what_is_not_ones_own(topic):
    """Neither another's mailbox, nor all of them at once, nor the numbers if one is no operator."""
    async with (
        serving(operators=frozenset({"root"})) as address,
        listening(address, await login(address, "ada"), topic) as hear,
    ):
        assert (await hear())["code"] == "forbidden"


async def test_without_a_cookie_nothing_is_to_be_had():
    """Pages are told so by the list, and connections by the first subscription."""
    async with serving() as address:
        forged = (await login(address, "ada")).replace("ada", "bob")
        for cookie in ("", forged):
            assert (await ask(address, "/api/inbox", cookie=cookie))[0] == 401
            assert (await ask(address, "/api/read", {"ids": []}, cookie=cookie))[0] == 401
            assert (await ask(address, "/api/send", {"to": "bob", "text": "x"}, cookie=cookie))[0] == 401
            async with listening(address, cookie, "mail:bob") as hear:
                assert (await hear())["code"] == "forbidden"


async def test_mails_are_sent_under_ones_own_name():
    """Whatever the request says."""
    async with serving() as address:
        ada, bob = await login(address, "ada"), await login(address, "bob")
        await ask(address, "/api/send", {"to": "bob", "subject": "Hi", "sender": "root"}, cookie=ada)
        _, _, inbox = await ask(address, "/api/inbox", cookie=bob)
        assert (inbox["mails"][0]["subject"], inbox["mails"][0]["sender"]) == ("Hi", "ada")


async def test_what_a_foreign_page_could_send_is_refused():
    """A form of another site cannot say that it sends JSON."""
    async with serving() as address:
        for path in ("/mails", "/login"):
            status, _, text = await ask(address, path, {"to": "ada"}, content_type="text/plain")
            assert (status, "JSON" in text) == (415, True)
        assert (await ask(address, "/mails", ["ada"]))[0] == 400


async def test_the_operator_hears_numbers():
    """One message a second from each worker, and one from the storage."""
    async with serving() as address, listening(address, await login(address, "ada"), "ops:*") as hear:
        await hear()
        numbers = {}
        while len(numbers) < 2:
            message = await hear()
            numbers[message["topic"] == "ops:storage"] = message["data"]
        assert (numbers[True]["waiting"], numbers[False]["subscriptions"]) == (0, 1)


# --- all of it -----------------------------------------------------------------------------------


def post(url, value):
    """Post JSON."""
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read()), answer.headers


@pytest.mark.processes
def test_everything_starts_with_one_command_and_ends_with_it(start_program, tmp_path):
    """Two workers, the local broker, a storage: a mail that was taken outlives the storage's end by SIGKILL."""
    database = str(tmp_path / "m.db")
    process, url = start_program(
        *(
            "-m",
            "examples.notifications",
            "--workers",
            "2",
            "--port",
            "0",
            "--rate",
            "0",
            "--database",
            database,
        )
    )
    said = "".join(process.stdout.readline() for _ in range(6))
    storage, api = (int(text) for text in re.findall(r"process (\d+)", said))
    _, headers = post(f"{url}login", {"name": "ada"})
    before, _ = post(f"{url}mails", {"to": "ada", "subject": "before"})
    os.kill(storage, signal.SIGKILL)
    after, _ = post(f"{url}mails", {"to": "ada", "subject": "after"})  # waits until it is back
    request = urllib.request.Request(
        f"{url}api/inbox", headers={"Cookie": headers["Set-Cookie"].partition(";")[0]}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        ids = [each["id"] for each in json.loads(answer.read())["mails"]]
    assert ids == [after["id"], before["id"], "welcome-ada"]
    process.terminate()
    assert process.wait(15) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(api, 0)
