"""Peers that do not run in Trio: an asyncio loop in a thread, and a Node process."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import trio

PACKAGES = ("ws@8", "undici@6")


async def settled(future: concurrent.futures.Future) -> Any:
    """Wait in Trio for what another thread does."""
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()

    def wake(_: object) -> None:
        try:
            token.run_sync_soon(done.set)
        except trio.RunFinishedError:  # it was given up
            pass

    future.add_done_callback(wake)
    try:
        await done.wait()
    except trio.Cancelled:
        future.cancel()
        raise
    return future.result()


class Loop:
    """An asyncio event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="asyncio peers", daemon=True)
        self.thread.start()

    async def run(self, work: Coroutine) -> Any:
        """Run a coroutine there and return what it returns."""
        return await settled(asyncio.run_coroutine_threadsafe(work, self.loop))

    def stop(self) -> None:
        """End what still runs, and the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        await self.loop.shutdown_default_executor()


class NodeError(Exception):
    """What a script in Node threw."""


class Node:
    """A process that runs peers.mjs."""

    def __init__(self, folder: Path, authority: Path) -> None:
        self._ids = itertools.count(1)
        self._asked: dict[int, concurrent.futures.Future] = {}
        self._lock = threading.Lock()
        self.process = subprocess.Popen(
            [shutil.which("node"), str(Path(__file__).with_name("peers.mjs")), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(authority), "NODE_NO_WARNINGS": "1"},
        )
        self.thread = threading.Thread(target=self._read, name="answers of Node", daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            answer = json.loads(line)
            future = self._asked.pop(answer["id"])
            if not future.set_running_or_notify_cancel():
                continue
            if "error" in answer:
                future.set_exception(NodeError(answer["error"]))
            else:
                future.set_result(answer["result"])
        while self._asked:
            future = self._asked.popitem()[1]
            if future.set_running_or_notify_cancel():
                future.set_exception(NodeError("Node has ended"))

    async def ask(self, op: str, args: Any = None, on: int | None = None) -> Any:
        """Have something done, and return the answer."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        number = next(self._ids)
        self._asked[number] = future
        line = json.dumps({"id": number, "op": op, "on": on, "args": args}) + "\n"

        def write() -> None:
            with self._lock:
                self.process.stdin.write(line)
                self.process.stdin.flush()

        if len(line) < 4096:
            write()
        else:
            await trio.to_thread.run_sync(write)
        return await settled(future)

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.thread.join(5)
        self.process.stdout.close()


def pack(message: str | bytes) -> dict[str, str]:
    """Return a message as peers.mjs wants it."""
    if isinstance(message, str):
        return {"text": message}
    return {"data": base64.b64encode(message).decode()}


def unpack(message: dict[str, str]) -> str | bytes:
    """Return a message of peers.mjs."""
    return message["text"] if "text" in message else base64.b64decode(message["data"])


def install_packages(folder: Path) -> str:
    """Have npm put what peers.mjs needs into `folder`, if it is not there. Returns why that is impossible, or ""."""
    if shutil.which("node") is None:
        return "no node on PATH"
    if (folder / "node_modules" / "ws").exists():
        return ""
    npm = shutil.which("npm")
    if npm is None:
        return "no npm on PATH, to install ws"
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent))
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--prefix", str(fresh))
    try:
        subprocess.run(
            [npm, "install", *options, *PACKAGES], capture_output=True, text=True, timeout=45, check=True
        )
        fresh.rename(folder)
    except subprocess.TimeoutExpired:
        return "npm install ws: no answer within 45 s"
    except subprocess.CalledProcessError as error:
        return f"npm install ws: {error.stderr.strip()[-200:]}"
    except OSError:  # another run of the tests was faster
        pass
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ""
