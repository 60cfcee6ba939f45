"""Prefork: one process that owns the sockets and starts, watches and replaces the workers.

It has a single thread, imports trionet's libraries and never the application, and never runs Trio: forking it is safe,
and what it has imported is shared by all workers. `slots` decides; this module waits, forks and tells.

=========  ======================================================================================
SIGHUP     read the settings again, and replace all workers by new ones: loads new code
SIGTERM    drain all workers, then end; so does SIGINT. Again: kill them
SIGUSR1    write the state to the log, here and in each worker
=========  ======================================================================================

Metrics and other operator's pages are served by a child of its own, which the workers connect to.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import importlib
import json
import logging
import os
import select
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from trionet.errors import TrionetError
from trionet.ops import logs, systemd
from trionet.ops.changes import changed_sources
from trionet.ops.desk import run_desk
from trionet.ops.settings import ServeSettings
from trionet.ops.slots import Act, Rules, Slots
from trionet.ops.sockets import Sockets, open_admin, open_sockets, remove_admin
from trionet.ops.worker import Place, run_worker
from trionet.protocols.websocket import WebSocketHandler, WebSocketProtocol

__all__ = ["Supervisor", "run"]

log = logging.getLogger("trionet.ops")

_SIGNALS: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)
_LOOK: Final = 0.5  # seconds between looks at the source files
_DESK_PAUSE: Final = 1.0
#: Settings that live in the sockets and processes there are: a reload cannot change them.
_FIXED: Final = (
    "host",
    "port",
    "unix",
    "unix_mode",
    "fd",
    "backlog",
    "workers",
    "admin",
    "reload",
    "reload_dirs",
)


def run(
    settings: ServeSettings,
    reload_settings: Callable[[], ServeSettings] | None = None,
    announce: Callable[[Sequence[str]], object] | None = None,
) -> int:
    """Serve with `settings.workers` processes until told to end; returns the exit code.

    0 after SIGTERM or SIGINT; 1 if the workers cannot be started, 2 if that is for a setting. `reload_settings` is
    called at SIGHUP; what it raises is logged, and the old settings hold. `announce` gets the addresses once all
    workers accept. Raises `ConfigurationError` and `OSError` before any process is started.
    """
    supervisor = Supervisor(settings, reload_settings, announce)
    try:
        return supervisor.run()
    finally:
        supervisor.close()


@attrs.define(eq=False)
class _Line:
    """The supervisor's end of a child's line."""

    pid: int
    sock: socket.socket
    buffer: bytes = b""


class Supervisor:
    """See the module. `run` is the whole life of it."""

    def __init__(
        self,
        settings: ServeSettings,
        reload_settings: Callable[[], ServeSettings] | None = None,
        announce: Callable[[Sequence[str]], object] | None = None,
    ) -> None:
        self.settings = settings
        self._reload_settings = reload_settings
        self._announce = announce
        self._urls: list[str] = []
        inherited = systemd.inherited_sockets()
        self.sockets: Sockets = open_sockets(settings, [fd for name, fd in inherited if name != "admin"])
        self._admin: list[socket.socket] = [
            socket.socket(fileno=fd) for name, fd in inherited if name == "admin"
        ]
        self._folder: str | None = None
        self._control: socket.socket | None = None
        try:
            if settings.admin and not self._admin:
                self._admin = open_admin(settings.admin)
            if self._admin:
                self._open_control()
        except BaseException:
            self.close()
            raise
        rules = Rules(
            grace=settings.grace,
            start_timeout=settings.start_timeout,
            worker_timeout=settings.worker_timeout,
            patient=settings.reload,
        )
        self.slots = Slots(settings.workers, rules)
        self.lines: dict[int, _Line] = {}
        self._selector = selectors.DefaultSelector()
        self._desk = 0  # the process id of the admin child
        self._desk_at: float | None = None  # when it is started again
        self._desk_table = ""
        self._signals: list[int] = []
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._status: int | None = None
        self._sources: dict[str, float] = {}
        self._look_at = 0.0
        self._watchdog = systemd.watchdog_interval()
        self._watchdog_at = 0.0

    def _open_control(self) -> None:
        """Where workers find the admin process: a Unix socket in a folder that nobody else may enter."""
        self._folder = tempfile.mkdtemp(prefix="trionet-")
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.bind(str(Path(self._folder, "control")))
        self._control.listen(1024)

    @property
    def control_path(self) -> str | None:
        """The path of that socket."""
        return str(Path(self._folder, "control")) if self._folder is not None else None

    # ---------------------------------------------------------------- the loop

    def run(self) -> int:
        """Start the workers and keep them until told to end; returns the exit code."""
        logs.set_process("supervisor")
        self._take_signals()
        _preload(self.settings)
        gc.collect()
        gc.freeze()  # what children share is not to be touched by their collectors
        log.info("supervisor %d starts %d workers", os.getpid(), self.settings.workers)
        if self._admin:
            self._start_desk()
        if self.settings.reload:
            changed_sources(self._watched, self._sources)
        self._do(self.slots.start())
        while self._status is None:
            for key, _ in self._selector.select(self._pause()):
                key.data()
            self._reap()
            self._heed()
            self._look()
            self._do(self.slots.tick(time.monotonic()))
            self._tell_desk()
        return self._status

    def _pause(self) -> float | None:
        """How long to wait: until the next thing that is due."""
        times = [self.slots.next(), self._desk_at]
        if self.settings.reload:
            times.append(self._look_at)
        if self._watchdog is not None:
            times.append(self._watchdog_at)
        first = min((time for time in times if time is not None), default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    def _look(self) -> None:
        """What is done by the clock, besides `Slots.tick`."""
        now = time.monotonic()
        if self._desk_at is not None and self._desk_at <= now and not self.slots.stopping:
            self._start_desk()
        if self._watchdog is not None and self._watchdog_at <= now:
            systemd.notify("WATCHDOG=1")
            self._watchdog_at = now + self._watchdog
        if self.settings.reload and self._look_at <= now:
            self._look_at = now + _LOOK
            changed = changed_sources(self._watched, self._sources)
            if changed:
                log.info("%s changed", ", ".join(changed[:3]) + (" …" if len(changed) > 3 else ""))
                self._do(self.slots.hang_up(now))

    @property
    def _watched(self) -> Sequence[str]:
        return self.settings.reload_dirs or (str(Path.cwd()),)

    # ---------------------------------------------------------------- signals

    def _take_signals(self) -> None:
        """Signals wake the selector, and are worked off there: nothing is done within a handler."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._wake = (ours, theirs)
        for number in _SIGNALS:
            signal.signal(number, self._note)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._selector.register(ours, selectors.EVENT_READ, self._woken)

    def _note(self, number: int, _: object) -> None:
        self._signals.append(number)

    def _woken(self) -> None:
        assert self._wake is not None
        try:
            while self._wake[0].recv(4096):
                pass
        except BlockingIOError:
            pass

    def _heed(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            now = time.monotonic()
            if number == signal.SIGHUP:
                self._reload()
                self._do(self.slots.hang_up(now))
            elif number in {signal.SIGTERM, signal.SIGINT}:
                log.info(
                    "%s: %s",
                    signal.Signals(number).name,
                    "again: killing" if self.slots.stopping else "draining",
                )
                systemd.notify(
                    "STOPPING=1",
                    "STATUS=draining",
                    f"EXTEND_TIMEOUT_USEC={int((self.settings.grace + 10) * 1e6)}",
                )
                self._do(self.slots.stop(now))
            elif number == signal.SIGUSR1:
                self._dump()

    def _reload(self) -> None:
        systemd.notify(*systemd.reloading())
        if self._reload_settings is None:
            return
        try:
            fresh = self._reload_settings()
        except (TrionetError, OSError) as error:
            log.error("the settings cannot be read, the old ones hold: %s", error)  # noqa: TRY400
            return
        fixed = {name: getattr(self.settings, name) for name in _FIXED}
        ignored = [name for name, value in fixed.items() if getattr(fresh, name) != value]
        if ignored:
            log.warning("changed, but only a new start changes it: %s", ", ".join(ignored))
        if (fresh.log_format, fresh.log_level) != (self.settings.log_format, self.settings.log_level):
            logs.configure(fresh.log_format, fresh.log_level)
        self.settings = attrs.evolve(fresh, **fixed)
        self.slots.rules = attrs.evolve(
            self.slots.rules,
            grace=fresh.grace,
            start_timeout=fresh.start_timeout,
            worker_timeout=fresh.worker_timeout,
        )

    def _dump(self) -> None:
        rows = [
            f"  {row['number']:>3}  pid {row['pid']:<8} {row['state']:<9} generation {row['generation']}"
            for row in self._table()
        ]
        log.info("%d of %d workers serve\n%s", self.slots.serving, len(self.slots.slots), "\n".join(rows))
        for pid in self.slots.children:
            self._tell(pid, {"do": "dump"})

    # ---------------------------------------------------------------- children

    def _do(self, acts: Sequence[Act]) -> None:
        for act in acts:
            if act.do == "fork":
                self._fork(act.slot, act.generation)
            elif act.do == "retire":
                self._tell(act.pid, {"do": "retire"})
            elif act.do == "drain":
                stopping = self.slots.stopping
                code, reason = (1001, "server is going away") if stopping else (1012, "service restart")
                self._tell(act.pid, {"do": "drain", "code": code, "reason": reason})
                self.slots.drains(act.pid, time.monotonic())
            elif act.do == "kill":
                _kill(act.pid, act.number)
            elif act.do == "exit":
                self._status = act.number
            else:
                self._say(act.text)

    def _say(self, text: str) -> None:
        if text in {"ready", "restarted"}:
            log.info("%s: %d workers serve", text, self.slots.serving)
            systemd.notify("READY=1", f"STATUS={self.slots.serving} workers serve {self.settings.app}")
            self._tell_desk()
            if text == "ready" and self._announce is not None:
                self._announce(self._urls)
        elif text == "rolling restart":
            log.info("%s", text)
        else:
            log.warning("%s", text)

    def _fork(self, number: int, generation: int) -> None:
        ours, theirs = socket.socketpair()
        pid = _fork_quietly()
        if pid == 0:
            _child(lambda: self._be_worker(number, generation, ours, theirs))
        theirs.close()
        self._watch(pid, ours)
        self.slots.forked(pid, number, time.monotonic())

    def _be_worker(self, number: int, generation: int, ours: socket.socket, theirs: socket.socket) -> int:
        ours.close()
        self._forget_the_parent()
        for sock in (*self._admin, self._control):
            if sock is not None:
                sock.close()
        socks = [sock.dup() for sock in self.sockets.keep(number)]
        return run_worker(self.settings, Place(number, generation, theirs, self.control_path), socks)

    def _forget_the_parent(self) -> None:
        """In a child: what belongs to the supervisor is closed, or others would never see that it has ended."""
        signal.set_wakeup_fd(-1)
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        self._selector.close()
        for line in self.lines.values():
            line.sock.close()
        for sock in self._wake or ():
            sock.close()
        if faulthandler.is_enabled() or sys.stderr is not None:
            faulthandler.enable()  # SIGABRT, for one that hangs, shows where

    def _watch(self, pid: int, ours: socket.socket) -> None:
        ours.setblocking(False)
        line = _Line(pid, ours)
        self.lines[pid] = line
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(line))

    def _hear(self, line: _Line) -> None:
        try:
            data = line.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # it has ended, and is reaped; or soon will be
            self._drop(line.pid)
            return
        *lines, line.buffer = (line.buffer + data).split(b"\n")
        for text in lines:
            self._heard(line.pid, json.loads(text))

    def _heard(self, pid: int, message: dict[str, Any]) -> None:
        now = time.monotonic()
        if message["say"] == "ready":
            self._urls = message["urls"]
            self._do(self.slots.ready(pid, now))
        else:
            self.slots.alive(pid, now)

    def _tell(self, pid: int, order: dict[str, Any]) -> None:
        line = self.lines.get(pid)
        if line is not None:
            try:
                line.sock.send(json.dumps(order).encode() + b"\n")
            except OSError:  # it ends, or has not read for a long time: its deadline comes
                pass

    def _drop(self, pid: int) -> None:
        line = self.lines.pop(pid, None)
        if line is not None:
            self._selector.unregister(line.sock)
            line.sock.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            line = self.lines.get(pid)
            if line is not None:  # what it said last, "ready" perhaps
                self._hear(line)
            self._drop(pid)
            code = os.waitstatus_to_exitcode(status)
            if pid == self._desk:
                self._desk, self._desk_at = 0, time.monotonic() + _DESK_PAUSE
                if not self.slots.stopping:
                    log.warning("the admin process ended with status %d; starting it again", code)
            else:
                self._do(self.slots.ended(pid, code, time.monotonic()))

    # ---------------------------------------------------------------- the admin process

    def _start_desk(self) -> None:
        self._desk_at = None
        ours, theirs = socket.socketpair()
        pid = _fork_quietly()
        if pid == 0:
            _child(lambda: self._be_desk(ours, theirs))
        theirs.close()
        self._desk = pid
        self._desk_table = ""
        self._watch(pid, ours)

    def _be_desk(self, ours: socket.socket, theirs: socket.socket) -> int:
        ours.close()
        self._forget_the_parent()
        for sock in {id(sock): sock for socks in self.sockets.of.values() for sock in socks}.values():
            sock.close()
        assert self._control is not None
        logs.set_process("admin")
        return run_desk(self.settings, theirs, self._control, self._admin)

    def _table(self) -> list[dict[str, Any]]:
        return [
            {
                "number": child.slot,
                "pid": child.pid,
                "generation": child.generation,
                "state": child.state,
                "since": round(child.since, 3),
                "restarts": self.slots.restarts[child.slot],
            }
            for child in sorted(
                self.slots.children.values(), key=lambda child: (child.slot, child.generation)
            )
        ]

    def _tell_desk(self) -> None:
        """Who works, when that has changed."""
        if not self._desk:
            return
        state = "stopping" if self.slots.stopping else "serving" if self.slots.ready_once else "starting"
        table = {"do": "table", "state": state, "workers": self._table()}
        text = json.dumps(table)
        if text != self._desk_table:
            self._desk_table = text
            self._tell(self._desk, table)

    # ---------------------------------------------------------------- the end

    def close(self) -> None:
        """End the admin process, close the sockets, remove files."""
        desk = getattr(self, "_desk", 0)
        if desk:
            _kill(desk, signal.SIGTERM)
            _await_end(desk)
        self.sockets.close()
        for sock in (*self._admin, self._control):
            if sock is not None:
                sock.close()
        remove_admin(self.settings.admin)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _preload(settings: ServeSettings) -> None:
    """Import what workers would import one by one: memory of the supervisor is shared, theirs is not."""
    names = ["encodings.idna", "resource", "trionet.ops.metrics", "trionet.ops.stalls"]
    names += ["trionet.net._epoll"] if hasattr(select, "epoll") else []
    names += ["trionet.ops.debug"] if settings.debug else []
    names += ["h11"] if settings.admin else []
    for name in names:
        importlib.import_module(name)
    WebSocketProtocol(WebSocketHandler())  # compiles the usual regular expressions, which `re` keeps


def _fork_quietly() -> int:
    """fork(2), with what is buffered written once."""
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork()


def _child(life: Callable[[], int]) -> None:
    """Be a child: whatever happens, this process ends here, and does not go on as a second supervisor."""
    status = 1
    try:
        status = life()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        log.exception("process %d failed", os.getpid())
    finally:
        try:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _await_end(pid: int, seconds: float = 3.0) -> None:
    """Wait for a child that was told to end; kill it if it does not."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
        except OSError as error:
            if error.errno == errno.ECHILD:
                return
            raise
        time.sleep(0.02)
    _kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
