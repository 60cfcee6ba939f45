"""The rules of the chat example, and its messages as a client without a browser sees them."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, cast

import pytest
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

import trionet
from examples.chat.room import House, Limits, Line, Person, Refusal, clean_name, clean_text, fold
from examples.chat.server import MAX_MESSAGE, QUEUE, STATIC, TAKEN_OVER, Chat, field, pack, parse, protocol

if TYPE_CHECKING:
    from trionet import WebSocket

AUTHOR = "author-1"


def connection() -> WebSocket:
    """Anything with an identity: the rules never look inside a connection."""
    return cast("WebSocket", object())


def enter(
    house: House, name: str, room: str = "garden", token: str | None = None, now: float = 0.0
) -> Person:
    """Let somebody in on a connection of their own."""
    return house.enter(connection(), room, name, AUTHOR, token, now).person


def say(person: Person, n: int, text: str = "hello", now: float = 0.0) -> Line | None:
    """Say a line at a time that does not matter."""
    return person.room.say(person, n, text, now, at=0)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, shown",
    [
        ("Ada", "Ada"),
        ("  Ada  ", "Ada"),
        ("Ada   Lovelace", "Ada Lovelace"),
        ("e\u0301mile", "émile"),
        ("松本", "松本"),
        ("🌱", "🌱"),
        ("x" * 24, "x" * 24),
    ],
)
def test_a_name_is_shown_trimmed_and_composed(given: str, shown: str) -> None:
    """Spaces around and between are tidied, letters composed, any script allowed."""
    assert clean_name(given, 24, "name") == shown


@pytest.mark.parametrize(
    "given",
    [
        "",
        "   ",
        "x" * 25,
        "a\nb",
        "a\x00b",
        "\x1b[31mred",
        "a\u202eb",
        "a\u200bb",
        "\ud800",
        "--",
        "…",
        "\u2028",
    ],
)
def test_a_name_that_cannot_be_shown_is_refused(given: str) -> None:
    """Empty, too long, control and invisible characters, only punctuation: each has a text for people."""
    with pytest.raises(Refusal, match="name") as caught:
        clean_name(given, 24, "name")
    assert caught.value.code == "bad-name"


@pytest.mark.parametrize("other", ["ada", "ADA", "Ada ", "\uff21\uff44\uff41"])
def test_names_that_look_alike_are_one_name(other: str) -> None:
    """Case, width and spaces make no second Ada."""
    house = House()
    enter(house, "Ada")
    with pytest.raises(Refusal, match="“Ada” is taken") as caught:
        enter(house, other)
    assert caught.value.code == "name-taken"


def test_the_same_name_can_be_in_two_rooms() -> None:
    """A name belongs to a room."""
    house = House()
    enter(house, "Ada", "garden")
    enter(house, "Ada", "kitchen")
    assert house.listing() == [{"name": "garden", "people": 1}, {"name": "kitchen", "people": 1}]


@pytest.mark.parametrize("text", ["", " \n ", "x" * 11, "a\x00b", "a\x1bb", "a\ud800b"])
def test_a_line_that_cannot_be_shown_is_refused(text: str) -> None:
    """Empty, too long, control characters, lone surrogates (which no encoder takes)."""
    with pytest.raises(Refusal) as caught:
        clean_text(text, 10)
    assert caught.value.code == "bad-text"


def test_a_line_keeps_its_breaks_and_tabs() -> None:
    """Line breaks and tabs are the only control characters with a meaning here."""
    assert clean_text(" a\r\n\tb\n", 10) == "a\n\tb"


# --- coming back ----------------------------------------------------------------------------------


def test_a_token_takes_the_name_back_from_a_connection_that_is_half_dead() -> None:
    """One's own old connection never stands in the way; the room hears nothing of it."""
    house = House()
    old, new = connection(), connection()
    first = house.enter(old, "garden", "Ada", AUTHOR, None, 0.0)
    again = house.enter(new, "garden", "Ada", AUTHOR, first.person.token, 1.0)
    assert again.person is first.person
    assert (again.fresh, again.replaced) == (False, old)
    assert first.person.room.connections == [new]


@pytest.mark.parametrize("token", [None, "", "wrong", "\u00e9"])
def test_without_the_token_the_name_stays_taken_while_its_owner_is_away(token: str | None) -> None:
    """Within the grace nobody else gets the name of somebody whose train is in a tunnel."""
    house = House()
    ada = enter(house, "Ada")
    house.lose(ada, 1.0)
    with pytest.raises(Refusal, match="taken"):
        enter(house, "Ada", token=token, now=2.0)


def test_who_comes_back_in_time_was_never_gone() -> None:
    """The room hears neither "left" nor "joined"."""
    house = House(Limits(grace=10))
    ada = enter(house, "Ada")
    house.lose(ada, 1.0)
    assert house.expire(10.9) == []
    entry = house.enter(connection(), "garden", "Ada", AUTHOR, ada.token, 10.9)
    assert (entry.fresh, entry.replaced) == (False, None)
    assert house.expire(100.0) == []


def test_who_stays_away_too_long_leaves_and_frees_the_name() -> None:
    """After the grace the name is anybody's."""
    house = House(Limits(grace=10))
    ada = enter(house, "Ada")
    house.lose(ada, 1.0)
    assert house.expire(11.0) == [ada]
    assert enter(house, "Ada", now=12.0) is not ada


def test_a_line_sent_again_is_said_once_even_after_having_left() -> None:
    """The page cannot know whether a line arrived before the connection broke; the token remembers."""
    house = House(Limits(grace=10))
    ada = enter(house, "Ada")
    assert say(ada, 7) is not None
    assert say(ada, 7) is None
    house.lose(ada, 1.0)
    house.expire(20.0)
    entry = house.enter(connection(), "garden", "Ada", AUTHOR, ada.token, 30.0)
    assert (entry.fresh, entry.person.last) == (True, 7)
    assert say(entry.person, 7) is None
    assert say(entry.person, 8) is not None


def test_a_refused_line_may_come_again_under_its_number() -> None:
    """Only what was said counts as said."""
    ada = enter(House(), "Ada")
    with pytest.raises(Refusal):
        say(ada, 1, "\x00")
    assert say(ada, 1, "better") is not None


# --- limits ---------------------------------------------------------------------------------------


def test_history_keeps_the_last_lines_only() -> None:
    """Fifty lines by default, oldest first."""
    house = House()
    ada = enter(house, "Ada")
    for n in range(1, 61):
        assert say(ada, n, f"line {n}", now=float(n)) is not None
    assert [line.text for line in ada.room.history] == [f"line {n}" for n in range(11, 61)]
    assert [line.seq for line in ada.room.history] == list(range(11, 61))


def test_a_flood_of_lines_is_slowed_down_and_told_how_long() -> None:
    """A burst passes, then a steady rate."""
    ada = enter(House(Limits(burst=3, rate=2.0)), "Ada")
    for n in (1, 2, 3):
        say(ada, n)
    with pytest.raises(Refusal) as caught:
        say(ada, 4)
    assert caught.value.code == "too-fast"
    assert caught.value.details == {"wait": 0.5}
    assert say(ada, 4, now=0.5) is not None


def test_a_full_room_lets_nobody_in_but_its_own_people() -> None:
    """Coming back is not coming in."""
    house = House(Limits(people=2))
    ada, _ = enter(house, "Ada"), enter(house, "Bob")
    with pytest.raises(Refusal, match="full") as caught:
        enter(house, "Eve")
    assert caught.value.code == "room-full"
    assert enter(house, "Ada", token=ada.token) is ada


def test_the_room_that_stood_empty_longest_makes_space_for_a_new_one() -> None:
    """Empty rooms keep their history until the space is needed; rooms with people are safe."""
    house = House(Limits(rooms=3))
    people = {room: enter(house, "Ada", room) for room in ("one", "two", "three")}
    with pytest.raises(Refusal, match="rooms") as caught:
        enter(house, "Ada", "four")
    assert caught.value.code == "too-many-rooms"
    house.leave(people["two"])
    house.leave(people["one"])
    enter(house, "Ada", "four")
    assert list(house.rooms) == ["three", "one", "four"]


def test_whoever_is_refused_leaves_no_trace() -> None:
    """A refused name opens no room and pushes none out."""
    house = House(Limits(rooms=1))
    house.leave(enter(house, "Ada", "old"))
    for name, room, author in (("", "new", AUTHOR), ("Ada", "\x00", AUTHOR), ("Ada", "new", "x")):
        with pytest.raises(Refusal):
            house.enter(connection(), room, name, author, None, 0.0)
    assert list(house.rooms) == ["old"]


def test_those_who_left_are_remembered_up_to_a_bound() -> None:
    """Coming and going all night does not fill the memory."""
    house = House(Limits(people=2))
    enter(house, "Host")
    for n in range(10):
        house.leave(enter(house, f"Guest {n}"))
    [room] = house.rooms.values()
    assert [person.name for person in room.departed.values()] == ["Guest 8", "Guest 9"]


def test_the_list_of_rooms_is_short_and_has_no_empty_ones() -> None:
    """Fullest first, bounded."""
    house = House(Limits(listed=2))
    house.leave(enter(house, "Ada", "empty"))
    for name in ("Ada", "Bob"):
        enter(house, name, "full")
    enter(house, "Ada", "a")
    enter(house, "Ada", "b")
    assert house.listing() == [{"name": "full", "people": 2}, {"name": "a", "people": 1}]


@pytest.mark.parametrize("name", ["Ada", "ǅ", "\ufb01", "\u0130", "ß"])
def test_folding_twice_changes_nothing(name: str) -> None:
    """Otherwise a name could be taken and free at once."""
    assert fold(fold(name)) == fold(name)


# --- messages -------------------------------------------------------------------------------------


DEEP, ENDLESS = '{"a":' * 3_000, '{"n":' + "9" * 5_000 + "}"


@pytest.mark.parametrize(
    "message", [b"{}", "", "{", "[]", "1", "null", "[" * 10_000, DEEP, ENDLESS], ids=range(9)
)
def test_what_is_no_object_is_refused(message: str | bytes) -> None:
    """Binary, broken, too deep, a number without end: an answer, never an accident."""
    with pytest.raises(Refusal, match="JSON object"):
        parse(message)


@pytest.mark.parametrize("value", [None, True, 1.0, "1", [1], {}])
def test_a_field_of_the_wrong_kind_is_refused(value: object) -> None:
    """True is no number, whatever Python thinks."""
    with pytest.raises(Refusal, match="field n"):
        field({"n": value}, "n", int)


def test_the_longest_line_fits_into_a_message() -> None:
    """The two limits agree, even if each character needs three bytes and each line break an escape."""
    for char in "\u6f22", "\n", '"':
        assert (
            len(json.dumps({"type": "say", "n": 2**53, "text": char * 2000}, ensure_ascii=False).encode())
            < MAX_MESSAGE
        )


def test_the_longest_history_fits_into_the_queue_of_a_page():
    """Else the welcome of a slow page would close it, and again when it comes back."""
    room = House().enter(connection(), "garden", "Ada", AUTHOR, None, 0.0).person.room
    line = room.say(room.people["ada"], 2**53 - 1, "\u6f22" * 2000, 0.0, 2**41)
    history = [line._asdict()] * room.limits.history
    people = ["\u6f22" * 24] * room.limits.people
    assert len(pack("welcome", history=history, people=people).encode()) < QUEUE - 10_000


def test_messages_keep_letters_as_they_are() -> None:
    """No escapes: half the bytes for most of the world."""
    assert pack("said", text="é\n") == '{"type":"said","text":"é\\n"}'


def test_the_page_has_no_inline_script_or_style_and_nothing_remote() -> None:
    """What the strict policy in the page promises holds for the files."""
    page = (STATIC / "index.html").read_text()
    assert "default-src 'none'" in page
    assert "<style" not in page
    assert " style=" not in page
    assert page.count("<script") == page.count('<script type="module" src="/static/')
    files = [page, *((STATIC / name).read_text() for name in ("chat.css", "chat.js", "link.js"))]
    for text in files:
        assert "https://" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in text


# --- with a real server ---------------------------------------------------------------------------


class Page:
    """What a page does, without a browser."""

    def __init__(self, ws) -> None:
        self.ws = ws

    async def send(self, kind, **fields):
        """Send a message."""
        await self.ws.send_message(json.dumps({"type": kind, **fields}))

    async def receive(self, kind):
        """Return the next message, which has to be of this kind; lists of rooms are passed over."""
        while True:
            message = json.loads(await self.ws.get_message())
            if message["type"] == kind or message["type"] != "rooms":
                assert message["type"] == kind, message
                return message

    async def enter(self, name, **fields):
        """Enter the garden."""
        await self.send("enter", room="garden", name=name, author=f"author-of-{name}", **fields)
        return await self.receive("welcome")


@pytest.fixture
async def server():
    """Return a server of the chat, in which whoever vanishes is gone within a second."""
    chat = Chat(House(Limits(grace=0.0)))
    async with trionet.open_server(protocol(chat), "127.0.0.1", 0, lifespan=chat.lifespan) as server:
        yield server


@pytest.fixture
async def visit(server):
    """Return a function that opens a page of the chat."""
    port = server.addresses[0][1]

    @contextlib.asynccontextmanager
    async def visit():
        with trio.fail_after(10):
            # A stream of our own: the client leaves its own open when the server closes first.
            async with (
                await trio.open_tcp_stream("127.0.0.1", port) as stream,
                trio.open_nursery() as nursery,
            ):
                page = Page(await wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", "/chat"))
                hello = await page.receive("hello")
                assert hello["limits"] == {"name": 24, "room": 32, "text": 2000}
                yield page
                nursery.cancel_scope.cancel()

    return visit


async def test_a_line_goes_to_everyone_and_into_the_history(visit):
    """Two people hear each other, a third reads it later; who left is announced."""
    async with visit() as ada, visit() as bob:
        assert (await ada.enter("Ada"))["people"] == ["Ada"]
        assert (await bob.enter("Bob"))["people"] == ["Ada", "Bob"]
        assert (await ada.receive("joined"))["name"] == "Bob"
        await ada.send("say", n=1, text="<b>hi</b>")
        line = await ada.receive("said")
        assert await bob.receive("said") == line
        told = {
            "seq": 1,
            "author": "author-of-Ada",
            "n": 1,
            "name": "Ada",
            "at": line["at"],
            "text": "<b>hi</b>",
        }
        assert line == {"type": "said", **told}
        async with visit() as cem:
            welcome = await cem.enter("Cem")
            assert welcome["history"] == [told]
            assert welcome["seq"] == 1
            await cem.send("leave")
            with pytest.raises(ConnectionClosed):
                await cem.receive("nothing more")
        assert (await ada.receive("joined"))["name"] == "Cem"
        assert (await ada.receive("left"))["name"] == "Cem"


async def test_who_vanishes_is_announced_as_gone(visit):
    """Without a word: the connection broke, and nobody came back in time."""
    async with visit() as ada:
        await ada.enter("Ada")
        async with visit() as bob:
            await bob.enter("Bob")
        assert (await ada.receive("joined"))["name"] == "Bob"
        assert (await ada.receive("left"))["name"] == "Bob"


async def test_a_taken_name_is_an_answer_and_the_next_name_gets_in(visit):
    """The connection stays; a line before entering is refused too."""
    async with visit() as ada, visit() as eve:
        await ada.enter("Ada")
        await eve.send("say", n=1, text="hi")
        assert (await eve.receive("error"))["text"] == "Enter a room first."
        await eve.send("enter", room="garden", name="ada", author="author-of-eve")
        error = await eve.receive("error")
        assert error["code"] == "name-taken"
        assert error["text"] == "“Ada” is taken in this room. Please choose another name."
        await eve.enter("Eve")
        await eve.send("ping")
        await eve.receive("pong")


async def test_a_new_page_with_the_token_takes_over(visit):
    """The old connection is closed with 4001, and a line sent on both is said once."""
    async with visit() as old, visit() as new:
        token = (await old.enter("Ada"))["token"]
        await old.send("say", n=1, text="hi")
        await old.receive("said")
        welcome = await new.enter("Ada", token=token)
        assert (welcome["last"], welcome["people"], welcome["token"]) == (1, ["Ada"], token)
        with pytest.raises(ConnectionClosed) as caught:
            await old.receive("nothing more")
        assert caught.value.reason.code == TAKEN_OVER
        await new.send("say", n=1, text="hi")
        assert (await new.receive("ack"))["n"] == 1


async def test_nonsense_is_answered_and_the_connection_lives(visit):
    """What a page sends wrongly is told to this page, and that is all."""
    async with visit() as eve:
        lone = '{"type":"enter","room":"a","name":"\\ud800","author":"author-1"}'
        for message in ("", "[]", '{"type":1}', '{"type":"enter"}', lone, b"{}"):
            await eve.ws.send_message(message)
            await eve.receive("error")
        await eve.enter("Eve")
        await eve.send("say", n=1, text="\ud800")
        assert (await eve.receive("error"))["n"] == 1


async def test_the_page_and_the_health_check_come_from_the_same_port(server):
    """A browser needs nothing but the one address."""
    port = server.addresses[0][1]
    for path, kind, text in (
        ("/?room=tea%20house", b"text/html", b"<!doctype html>"),
        ("/static/chat.js", b"javascript", b"import"),
        ("/static/chat.css", b"text/css", b":root"),
        ("/healthz", b"text/plain", b"ok"),
    ):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b"".join([chunk async for chunk in stream])
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert kind in head
        assert text in body
