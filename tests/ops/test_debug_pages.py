"""The serving side of the look inside: pages, JSON, and who may ask."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

sys.path.append(str(Path(__file__).resolve().parent))

from debug_server import looked_into

import trionet
from trionet import ConfigurationError, Endpoint, HttpProtocol, open_server
from trionet.ops.control import ControlError, Worker
from trionet.ops.debug import DebugProtocol, routes
from trionet.ops.debug.guard import is_private


@attrs.frozen
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self):
        return json.loads(self.body)


async def fetch(server, target, *lines, method="GET", host="127.0.0.1", body=""):
    """Ask the server's first listener."""
    address = server.addresses[0]
    head = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *lines]
    if method == "POST":
        head.append(f"Content-Length: {len(body)}")
    if isinstance(address, str):
        stream = await trio.open_unix_socket(address)
    else:
        stream = await trio.open_tcp_stream(*address)
    with trio.fail_after(20):
        async with stream:
            await stream.send_all("\r\n".join([*head, "", body]).encode())
            received = b"".join([bytes(piece) async for piece in stream]).decode()
    first, _, rest = received.partition("\r\n\r\n")
    status, *fields = first.split("\r\n")
    return Answer(int(status.split()[1]), dict(field.lower().split(": ", 1) for field in fields), rest)


async def post(server, target, *lines, host="127.0.0.1", **parameters):
    """Ask for a change, as a program does."""
    own = lines or ("X-Trionet: 1",)
    return await fetch(
        server, f"/debug/{target}", *own, method="POST", host=host, body=json.dumps(parameters)
    )


@asynccontextmanager
async def pages(**options):
    """Yield a server to look into, and one that serves its debug pages."""
    async with (
        looked_into() as looked,
        open_server(DebugProtocol(looked.server, **options)) as server,
        looked.stack,  # what is opened inside is closed inside
    ):
        yield looked, server


class Fleet:
    """Workers that answer what they are told to, or not at all."""

    def __init__(self, *answers):
        self.workers = {100 + number: Worker(100 + number, number) for number in range(1, len(answers) + 1)}
        self.answers = {100 + number: answer for number, answer in enumerate(answers, 1)}
        self.asked = []

    async def ask(self, command, /, *, worker=None, timeout=2.0, **arguments):
        """Note what was asked."""
        self.asked.append((command, worker, arguments))
        return {
            pid: answer
            for pid, answer in self.answers.items()
            if worker in {None, pid} and answer is not None
        }


# ------------------------------------------------------------------------ what is served


async def test_people_get_a_page_and_programs_json():
    """By what they accept, and by the path."""
    async with pages() as (_, server):
        for path in ("/debug/", "/debug/connections?state=open", "/debug/profile"):
            page = await fetch(server, path, "Accept: text/html,*/*")
            assert page.status == 200
            assert page.body.startswith("<!doctype html>")
        assert "tasks.json" in (await fetch(server, "/debug/", "Accept: */*")).json["views"]
        for view in ("overview", "connections", "tasks", "handlers", "heap"):
            by_path = await fetch(server, f"/debug/{view}.json", "Accept: text/html")
            assert by_path.json["answers"][0]["worker"] == 1, view
            assert (await fetch(server, f"/debug/{view}")).json.keys() == by_path.json.keys()
        assert "tasks" in (await fetch(server, "/debug/tasks.txt")).body
        assert (await fetch(server, "/debug")).headers["location"] == "/debug/"


async def test_the_page_needs_nobody_and_runs_nothing_but_its_own():
    """No address of another host in it; its policy allows the script and the style by their hash, and no frame."""
    async with pages() as (_, server):
        page = await fetch(server, "/debug/", "Accept: text/html")
    policy = page.headers["content-security-policy"]
    for kind, element in (("script", "script"), ("style", "style")):
        [text] = re.findall(rf"<{element}>(.*?)</{element}>", page.body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().lower()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["cache-control"] == "no-store"
    addresses = set(re.findall(r"https?://[^\s'\"%)]+", page.body))
    assert addresses <= {"http://www.w3.org/2000/svg", "https://www.speedscope.app/file-format-schema.json"}
    assert "innerHTML" not in page.body  # what peers chose goes through text nodes


@pytest.mark.parametrize(
    "target, status, words",
    [
        ("nonsense", 404, "connections"),
        ("a/b.json", 404, "view"),
        ("connections.json?color=red", 400, "min_queued"),
        ("connections.json?limit=many", 400, "limit is 'many'"),
        ("connections.json?sort=beauty", 502, "must be one of"),
        ("connections.json?worker=7", 404, "worker '7'"),
        ("connection.json?id=9-9", 502, "it has ended"),
        ("profile.json", 405, "POST"),
        ("kick", 405, "POST"),
    ],
)
async def test_what_cannot_be_answered_says_why(target, status, words):
    """Unknown views, parameters and workers, values that cannot be read."""
    async with pages() as (_, server):
        answer = await fetch(server, f"/debug/{target}")
        assert answer.status == status
        assert words in answer.body


@pytest.mark.parametrize(
    "target, body, status",
    [
        ("kick", '{"id": []}', 400),
        ("kick", '{"id": {}}', 400),
        ("kick", '{"id": "\\ud800"}', 400),
        ("kick", '{"id": "1-1", "code": 1e400}', 400),
        ("kick", '{"id": "1-1", "worker": []}', 404),
        ("kick", '{"id": "1-1", "format": []}', 400),
        ("kick", '{"id": "' + "9" * 5000 + '-1"}', 502),
        ("tracemalloc", '{"on": []}', 400),
        ("tracemalloc", '{"on": true, "frames": 1e400}', 400),
        ("profile", '{"seconds": NaN}', 400),
        ("profile", '{"seconds": 1e400}', 400),
        ("broadcast", '{"text": "\\ud800"}', 400),
    ],
)
async def test_nonsense_is_the_askers_mistake(target, body, status, caplog):
    """Values of any type and size: no error of ours, no traceback in the log, and nothing is done."""
    async with pages() as (_, server):
        answer = await fetch(server, f"/debug/{target}", "X-Trionet: 1", method="POST", body=body)
        assert answer.status == status
    assert caplog.records == []


async def test_the_newest_of_two_workers_with_one_number():
    """While an old one drains, its number means its successor."""
    fleet = Fleet({"on": True}, {"on": True})
    old, new = fleet.workers.values()
    old.number = new.number = 1
    new.generation = 2
    async with open_server(HttpProtocol(routes(fleet))) as server:
        await fetch(server, "/debug/handlers.json?worker=1")
    assert [worker for _, worker, _ in fleet.asked] == [new.pid]


async def test_a_kick_and_a_word_to_all_by_post():
    """Parameters are a JSON object; what the worker says comes back."""
    async with pages() as (looked, server):
        ws = await looked.connect("/echo")
        said = await post(server, "broadcast", text="hello")
        assert said.json["answers"][0]["value"]["sent"] == 1
        assert await ws.receive() == "hello"
        [row] = (await fetch(server, "/debug/connections.json")).json["answers"][0]["value"]["rows"]
        kicked = await post(server, "kick", id=row["id"], code=4000, worker=1)
        assert kicked.status == 200
        with pytest.raises(trionet.ConnectionClosed):
            await ws.receive()
        assert (await fetch(server, "/debug/kick", "X-Trionet: 1", method="POST", body="[1]")).status == 400
        assert (await post(server, "kick")).status == 400  # which one?


async def test_a_profile_in_the_formats_of_the_tools():
    """Collapsed stacks as text, and a file for speedscope."""
    async with pages() as (_, server):
        document = await post(server, "profile", seconds=0.1, method="signal")
        assert document.json["answers"][0]["value"]["method"] == "signal"
        stacks = await post(server, "profile", seconds=0.1, method="signal", format="collapsed")
        assert stacks.headers["content-type"] == "text/plain; charset=utf-8"
        scope = await post(server, "profile", seconds=0.1, method="signal", format="speedscope")
        assert scope.json["profiles"][0]["type"] == "sampled"
        assert (await post(server, "profile", seconds=0.1, format="gif")).status == 400


# ---------------------------------------------------------------------------- many workers


@asynccontextmanager
async def fleet_of(*answers):
    """Yield a fleet and a server of its pages."""
    fleet = Fleet(*answers)
    async with open_server(HttpProtocol(routes(fleet))) as server:
        yield fleet, server


async def test_a_worker_that_is_silent_or_fails_is_an_entry_of_the_answer():
    """One answers, one fails, one does not answer: the page has all three."""
    async with fleet_of({"n": 1}, ControlError("it broke"), None) as (_, server):
        answer = await fetch(server, "/debug/overview.json")
        assert answer.status == 200
        assert answer.json["answers"] == [
            {"worker": 1, "pid": 101, "value": {"n": 1}},
            {"worker": 2, "pid": 102, "error": "it broke"},
        ]
        assert answer.json["missing"] == [3]
        assert [each["worker"] for each in answer.json["workers"]] == [1, 2, 3]


@pytest.mark.parametrize("given, status", [((None, None), 504), ((ControlError("no"), None), 502), ((), 504)])
async def test_when_nobody_answers_the_status_says_so(given, status):
    """Gateway timeout if all are silent, bad gateway if one failed."""
    async with fleet_of(*given) as (_, server):
        assert (await fetch(server, "/debug/overview.json")).status == status


async def test_one_worker_is_asked_by_number_or_process_id():
    """And the others are not."""
    async with fleet_of({}, {}) as (fleet, server):
        for name in ("2", "102"):
            answer = await fetch(server, f"/debug/connections.json?worker={name}&limit=5&state=")
            assert [each["worker"] for each in answer.json["answers"]] == [2]
        assert fleet.asked == [("debug.connections", 102, {"limit": 5})] * 2


# ------------------------------------------------------------------------------- who may ask


async def test_names_that_are_not_ours_are_refused():
    """DNS rebinding: a foreign name that resolves to this machine gets nothing, neither page nor change."""
    async with pages(hosts=["debug.internal"]) as (_, server):
        for host in (
            "127.0.0.1:8000",
            "localhost",
            "LOCALHOST:1",
            "[::1]:9",
            "10.1.2.3",
            "debug.internal:80",
        ):
            assert (await fetch(server, "/debug/overview.json", host=host)).status == 200, host
        for host in ("evil.example", "evil.example:80", "localhost.evil.example"):
            assert (await fetch(server, "/debug/overview.json", host=host)).status == 403, host
            assert (await post(server, "timing", on=True, host=host)).status == 403, host


async def test_a_foreign_page_cannot_change_anything():
    """Without the header that a form cannot set, or with a foreign Origin, a POST is refused."""
    async with pages() as (looked, server):
        own = "X-Trionet: 1"
        refused = [
            ("Content-Type: text/plain",),
            (own, "Origin: https://evil.example"),
            (own, "Origin: null"),
            (own, "Sec-Fetch-Site: cross-site"),
        ]
        for lines in refused:
            assert (await post(server, "timing", *lines, on=True)).status == 403, lines
        assert looked.server.engine.pool.clock is None
        good = (own, "Origin: http://127.0.0.1", "Sec-Fetch-Site: same-origin")
        assert (await post(server, "timing", *good, on=True)).status == 200
        assert looked.server.engine.pool.clock is not None
        foreign = "Sec-Fetch-Site: cross-site"
        assert (await fetch(server, "/debug/overview.json", foreign)).status == 403
        # Somebody clicks on a link: they see it, the page with the link does not.
        assert (await fetch(server, "/debug/", foreign, "Sec-Fetch-Dest: document")).status == 200
        assert (await post(server, "timing", foreign, "Sec-Fetch-Dest: document", on=False)).status == 403


async def test_a_public_address_is_refused_unless_told():
    """When it would be listened on; a loopback address and a Unix socket are fine."""
    async with looked_into() as looked:
        with pytest.raises(ConfigurationError, match="public=True"):
            async with open_server(DebugProtocol(looked.server), "0.0.0.0", 0):
                pass
        async with open_server(DebugProtocol(looked.server, public=True), "0.0.0.0", 0):
            pass


async def test_the_pages_inside_a_public_server_answer_on_loopback_only(monkeypatch):
    """Mounted below a path nobody asks at listening; so each request's own address is looked at."""
    async with looked_into() as looked:
        for public, status in ((False, 403), (True, 200)):
            nested = HttpProtocol(routes(looked.local, public=public))
            async with open_server(nested, "0.0.0.0", 0) as server:
                assert (await fetch(server, "/debug/overview.json")).status == 200
                monkeypatch.setattr("trionet.ops.debug.guard.is_private", lambda local: False)
                assert (await fetch(server, "/debug/overview.json")).status == status
                monkeypatch.undo()


@pytest.mark.parametrize(
    "local, private",
    [
        (("127.0.0.1", 80), True),
        (("127.9.9.9", 80), True),
        (("::1", 80, 0, 0), True),
        (("::ffff:127.0.0.1", 80, 0, 0), True),
        ("/run/x.sock", True),
        (b"\0abstract", True),
        (("10.0.0.1", 80), False),
        (("0.0.0.0", 80), False),
        (("::", 80, 0, 0), False),
        (("fe80::1%eth0", 80, 0, 2), False),
        (("::ffff:10.0.0.1", 80, 0, 0), False),
    ],
)
def test_what_only_this_machine_reaches(local, private):
    """Loopback, also as IPv6 writes it, and Unix sockets."""
    assert is_private(local) is private


async def test_on_a_unix_socket(tmp_path):
    """As an embedded program mounts it: `curl --unix-socket debug.sock http://localhost/debug/tasks.txt`."""
    async with looked_into() as looked:
        endpoint = Endpoint(
            protocol=DebugProtocol(looked.server), path=str(tmp_path / "debug.sock"), mode=0o600
        )
        async with open_server([endpoint]) as server:
            answer = await fetch(server, "/debug/tasks.txt", host="localhost")
            assert answer.status == 200
            assert "trionet worker" in answer.body


def test_hosts_is_a_list():
    """One name given as a string would be taken for its letters."""
    with pytest.raises(ConfigurationError, match="list"):
        routes(Fleet(), hosts="localhost")
