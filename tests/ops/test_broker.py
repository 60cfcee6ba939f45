"""The local broker of a server: real supervisors, workers and a broker process, spoken to from outside."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from served import Nursery, Served, children_of, running, until, until_workers

from trionet.errors import ConfigurationError
from trionet.ops import broker as ops_broker
from trionet.ops.settings import ServeSettings
from trionet.ops.supervisor import Supervisor
from trionet.pubsub.broker import open_publisher

pytestmark = [pytest.mark.processes, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

APP = """
import json, os
from contextlib import asynccontextmanager
import trionet
from trionet.pubsub.broker import open_broker
from trionet.pubsub.bus import open_bus

class Text:
    def publication(self, found):
        return found.data.decode()
    def interrupted(self, topic, position):
        return "interrupted"
    def presence(self, topic, event, member, info):
        return event

class Talk(trionet.WebSocketHandler):
    async def on_open(self, ws):
        await self.bus.subscribe(ws, "talk", begin=self.nothing, replay=self.nothing)
        await ws.send(str(os.getpid()))
    async def nothing(self, what):
        pass
    async def on_message(self, ws, message):
        if message == "?":
            page = await self.bus.history("talk")
            await ws.send(json.dumps([found.data.decode() for found in page.publications]))
        else:
            await self.bus.publish("talk", message.encode())
    async def on_close(self, ws, closed):
        self.bus.forget(ws)

talk = Talk()

@asynccontextmanager
async def lifespan(server):
    async with open_bus(open_broker(), lambda members, message: trionet.broadcast(members, message), Text()) as bus:
        talk.bus = bus
        yield

app = trionet.Application(trionet.WebSocketProtocol(talk, ping_interval=None), lifespan=lifespan)
"""


async def broker_row(served: Served) -> dict[str, Any]:
    """What /workers says of the broker."""
    found: dict[str, Any] = json.loads((await served.get("/workers"))[1])["broker"]
    return found


async def pair(client: Any, url: str) -> tuple[Any, Any]:
    """Connections to two different workers, both subscribed."""
    by_pid: dict[str, Any] = {}
    with trio.fail_after(20):
        while len(by_pid) < 2:
            ws = await client.connect(url)
            pid = str(await ws.receive())
            if pid in by_pid:
                await ws.close()
            else:
                by_pid[pid] = ws
    first, second = by_pid.values()
    return first, second


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, nursery_process: Nursery | None) -> Iterator[Served]:
    """One server with two workers for the tests that do not end it."""
    served = Served(tmp_path_factory.mktemp("talking"), APP, nursery=nursery_process, drain_window=0.1)
    yield served
    served.end()


async def test_what_one_worker_publishes_the_other_has(talking: Served, client: Any) -> None:
    """A message sent to one worker arrives at the connections of both, and the broker is one process more."""
    first, second = await pair(client, await talking.ready())
    await first.send("hello")
    assert [await first.receive(), await second.receive()] == ["hello", "hello"]
    row = await broker_row(talking)
    assert row["state"] == "serving"
    assert row["pid"] in children_of(talking.process.pid)


async def test_a_rolling_restart_keeps_the_history(talking: Served, client: Any) -> None:
    """After SIGHUP the new workers find what the old ones had published, in the same broker."""
    url = await talking.ready()
    before = await broker_row(talking)
    first, second = await pair(client, url)
    await first.send("before")
    assert await second.receive() == "before"
    restarts = talking.said().count("restarted")
    talking.signal(signal.SIGHUP)
    await talking.says("restarted", restarts + 1)
    third, _ = await pair(client, url)
    await third.send("?")
    assert json.loads(str(await third.receive()))[-1] == "before"
    assert await broker_row(talking) == before


async def test_a_broker_that_is_killed_comes_back_and_clients_are_told(talking: Served, client: Any) -> None:
    """SIGKILL: connections stay, everybody is told that something may be missing, and messages flow again."""
    first, second = await pair(client, await talking.ready())
    os.kill((await broker_row(talking))["pid"], signal.SIGKILL)
    assert [await first.receive(), await second.receive()] == ["interrupted", "interrupted"]
    await first.send("again")
    assert [await first.receive(), await second.receive()] == ["again", "again"]
    assert (await broker_row(talking))["restarts"] == 1
    assert "the local broker" in talking.said()


async def test_a_worker_that_is_killed_does_not_hurt_it(talking: Served, client: Any) -> None:
    """The other worker and the history go on; its successor takes part."""
    url = await talking.ready()
    first, second = await pair(client, url)
    pid = (await broker_row(talking))["pid"]
    rows = await talking.workers()
    os.kill(rows[0]["pid"], signal.SIGKILL)
    await until_workers(
        talking, lambda now: rows[0]["pid"] not in {row["pid"] for row in now} and len(now) == 2
    )
    third, fourth = await pair(client, url)
    await third.send("still")
    assert [await third.receive(), await fourth.receive()] == ["still", "still"]
    assert (await broker_row(talking))["pid"] == pid
    for ws in (first, second):
        await ws.close()


async def test_at_a_path_other_programs_publish_and_it_ends_after_the_workers(
    start: Any, client: Any, tmp_path: Path
) -> None:
    """A program that is no worker reaches all; after SIGTERM to every process it ends, and its file is removed."""
    path = tmp_path / "bus"
    served = start(APP, broker=f"local:{path}")
    first, second = await pair(client, await served.ready())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with open_publisher(f"local:{path}") as broker:
        await broker.publish("talk", b"from outside")
        assert [await first.receive(), await second.receive()] == ["from outside", "from outside"]
    pids = children_of(served.process.pid)
    assert (await broker_row(served))["pid"] in pids
    os.killpg(served.process.pid, signal.SIGTERM)
    assert await served.status() == 0
    assert not any(running(pid) for pid in pids)
    assert not path.exists()


async def test_a_publisher_that_would_reach_nobody_is_an_error() -> None:
    """A memory broker of its own, which is what it gets outside of a server, is heard by nobody else."""
    with pytest.raises(ConfigurationError, match="reaches nobody"):
        async with open_publisher():
            pass


async def test_who_does_not_use_it_has_no_broker_process(start: Any) -> None:
    """Its children are the workers and the admin process, and /workers says that it is not used."""
    served = start()
    await served.ready()
    assert len(children_of(served.process.pid)) == 3
    row = await broker_row(served)
    assert (row["pid"], row["state"]) == (None, "not used yet")
    folder = Path(row["path"]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    served.signal(signal.SIGTERM)
    assert await served.status() == 0
    assert not folder.exists()


async def test_children_keep_no_socket_that_is_not_theirs(talking: Served, client: Any) -> None:
    """No worker and not the admin process holds the broker's listening socket, and the broker none of the server."""
    await pair(client, await talking.ready())
    row = await broker_row(talking)
    workers = [each["pid"] for each in await talking.workers()]
    inode = listening_inode(row["path"])
    assert f"socket:[{inode}]" in descriptors(row["pid"])
    others = set(children_of(talking.process.pid)) - {row["pid"]}
    assert set(workers) < others
    assert not any(f"socket:[{inode}]" in descriptors(pid) for pid in others)
    assert f"socket:[{listening_inode(talking.admin)}]" not in descriptors(row["pid"])


async def test_killed_supervisors_leave_no_broker(start: Any, client: Any) -> None:
    """The supervisor gets SIGKILL: the broker ends when no worker is left, and removes their folder."""
    served = start(APP, admin=None)
    await until(lambda: served.out.read_text().endswith("\n"))
    await until(lambda: len(children_of(served.process.pid)) == 3)
    pids = children_of(served.process.pid)
    served.signal(signal.SIGKILL)
    await until(lambda: not any(running(pid) for pid in pids))
    path = served.said().rpartition("the local broker serves at ")[2].split()[0]
    assert not Path(path).parent.exists()


async def test_one_process_serves_it_itself_and_a_second_server_uses_it(
    start: Any, client: Any, tmp_path: Path
) -> None:
    """With a path one worker needs no process more; a server that finds it served uses it, and leaves it there."""
    path = tmp_path / "bus"
    first = start(APP, alone=True, workers=1, broker=f"local:{path}")
    url = await first.ready()
    second = start(APP, alone=True, workers=1, broker=f"local:{path}")
    other = await second.ready()
    assert children_of(first.process.pid) == []
    async with client.connect(url) as one, client.connect(other) as two:
        await one.receive()
        await two.receive()
        await two.send("shared")
        assert [await one.receive(), await two.receive()] == ["shared", "shared"]
    second.signal(signal.SIGTERM)
    assert await second.status() == 0
    assert path.exists()
    first.signal(signal.SIGTERM)
    assert await first.status() == 0
    assert not path.exists()


async def test_a_socket_that_was_removed_is_made_anew(start: Any, client: Any, tmp_path: Path) -> None:
    """A cleaner of /tmp took the folder: the broker starts again where clients look for it, and they are told."""
    place = tmp_path / "t"
    place.mkdir()
    prelude = "import trionet.ops.folder as f; f._LOOK = 0.1"
    served = start(APP, prelude=prelude, environ={"TMPDIR": str(place)})
    first, second = await pair(client, await served.ready())
    [folder] = place.iterdir()
    folder.rename(tmp_path / "gone")  # at once: it is looked after ten times a second
    assert [await first.receive(), await second.receive()] == ["interrupted", "interrupted"]
    await first.send("anew")
    assert [await first.receive(), await second.receive()] == ["anew", "anew"]
    served.signal(signal.SIGTERM)
    assert await served.status() == 0
    assert not folder.exists()


async def test_memory_in_one_of_several_workers_is_an_error(start: Any) -> None:
    """An application that asks for it in a worker does not start, and is told what to use instead."""
    served = start(APP.replace("open_broker()", 'open_broker("memory")'))
    assert await served.status() == 2
    assert "the memory broker does not reach beyond its process, and there are 2 workers" in served.said()
    assert "--broker local" in served.said()


def test_memory_for_several_workers_is_refused_before_anything_is_bound() -> None:
    """The supervisor's constructor names the setting; `trionet serve` does so as for every wrong setting."""
    with pytest.raises(ConfigurationError, match=r"broker is memory, .*2 workers"):
        Supervisor(ServeSettings(app="x", workers=2, broker="memory", port=0))
    with pytest.raises(ConfigurationError, match=r"postgres://u:\*\*\*@h"):
        ServeSettings(app="x", broker="postgres://u:secret@h")


def test_passwords_are_not_shown() -> None:
    """Neither where settings are printed, nor in their repr."""
    settings = ServeSettings(app="x", broker="redis://me:secret@host:6379/0")
    assert "secret" not in repr(settings)
    assert "redis://me:***@host:6379/0" in repr(settings)


def test_pauses_grow_and_are_forgotten() -> None:
    """A broker that ends at once is started again after longer and longer, one that had served at once."""
    post = ops_broker.Post(sockets=None, path="p")  # type: ignore[arg-type]
    pauses = []
    for _ in range(8):
        post.forked(1, None, 0.0)
        pauses.append(post.ended(1.0))
    assert pauses[0] < 0.4 < pauses[2] < pauses[5]
    assert pauses[-1] <= 18
    post.forked(1, None, 0.0)
    assert post.ended(100.0) == 0.0
    assert [post.not_forked(1000.0) > 0 for _ in range(3)] == [True] * 3  # or it would be tried all the time


def test_silence_is_noticed() -> None:
    """It hangs when it has said nothing for as long as a worker may."""
    post = ops_broker.Post(sockets=None, path="p")  # type: ignore[arg-type]
    assert post.next() is None
    post.forked(1, 60.0, 0.0)
    assert not post.hangs(59.0)
    assert post.next() == 60.0
    assert post.hangs(60.0)


# ------------------------------------------------------------------ helpers


def listening_inode(path: str) -> int:
    """The number of the listening socket at `path`, as the kernel has it."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[-1] == path and words[3] == "00010000":
            return int(words[6])
    raise AssertionError(f"nobody listens at {path}")


def descriptors(pid: int) -> set[str]:
    """What the descriptors of a process are."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(fd.readlink()))
        except FileNotFoundError:
            continue
    return found
