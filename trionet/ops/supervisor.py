"""Prefork: one process that owns the sockets and starts, watches and replaces the workers.

It has a single thread, imports trionet's libraries and never the application, and never runs Trio: forking it is safe,
and what it has imported is shared by all workers. `slots` decides; this module waits, forks and tells.

=========  ======================================================================================
SIGHUP     read the settings again, and replace all workers by new ones: loads new code
SIGTERM    drain all workers, then end; so does SIGINT. Again: kill them
SIGUSR1    write the state to the log, here and in each worker
=========  ======================================================================================

Metrics and other operator's pages are served by a child of its own, which the workers connect to. So is the local
broker, once somebody wants it (see `broker`).

What goes wrong here must not be the end of all: a fork that fails is tried again, what a child says that makes no sense
is logged, and a reload that fails leaves everything as it was.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import json
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs

from trionet.errors import TrionetError
from trionet.ops import logs, systemd
from trionet.ops.broker import Post, check_broker, has_local, local_path, open_post, own_post, run_broker
from trionet.ops.changes import changed_sources
from trionet.ops.desk import run_desk
from trionet.ops.folder import Folder
from trionet.ops.forking import await_end, be_child, fork_quietly, kill, preload
from trionet.ops.limits import raise_descriptor_limit
from trionet.ops.settings import ServeSettings
from trionet.ops.slots import Act, Rules, Slots, how_ended
from trionet.ops.sockets import (
    Sockets,
    occupy_standard_streams,
    open_admin,
    open_sockets,
)
from trionet.ops.worker import Place, run_worker

__all__ = ["Supervisor", "run"]

log = logging.getLogger("trionet.ops")

_SIGNALS: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)
_LOOK: Final = 0.5  # seconds between looks at the source files
_DESK_PAUSE: Final = 1.0  # seconds between two starts of the admin process
_DESK_BACKLOG: Final = 128
_LONGEST_PAUSE: Final = 3600.0  # epoll_wait(2) has a limit
_LATE: Final = 1.0  # seconds by which the supervisor wakes too late, when everybody may have been asleep
_LONGEST_LINE: Final = 65536
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
    "admin_public",
    "broker",
    "debug",
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
    occupy_standard_streams()
    raise_descriptor_limit()  # there is a socket for each worker and address
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
        check_broker(settings.broker, settings.workers)
        self.settings = settings
        self._reload_settings = reload_settings
        self._announce = announce
        self._urls: list[str] = []
        inherited = systemd.inherited_sockets()
        self.sockets: Sockets = open_sockets(settings, [fd for name, fd in inherited if name != "admin"])
        self._admin = Sockets({1: []})
        self._folder: Folder | None = None
        self._post: Post | None = None  # where the local broker is found
        try:
            self._admin = open_admin(settings.admin, [fd for name, fd in inherited if name == "admin"])
            private = has_local(settings) and local_path(settings) is None
            if self._admin.of[1] or private:
                self._folder = Folder()
                if self._admin.of[1]:
                    self._folder.open_control()
            self._post = own_post(settings, self._folder.path if self._folder is not None else None)
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
        self._desk_since = 0.0
        self._desk_at: float | None = None  # when it is started again
        self._desk_table = ""
        self._signals: list[int] = []
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._status: int | None = None
        self._sources: dict[str, float] = {}
        self._look_at = 0.0
        self._watchdog = systemd.watchdog_interval()
        self._watchdog_at = 0.0
        self._reloading = False  # the service manager was told so, and waits
        self._said = ""

    def _look_after_folder(self, folder: Folder) -> None:
        """What was removed from it is made anew."""
        if folder.control is not None and not folder.has(folder.control_path):
            log.warning("%s was removed; making it anew, and the admin process with it", folder.control_path)
            try:
                folder.renew()
                folder.open_control()
            except OSError as error:
                log.error("no control socket, so workers that start are missing in /metrics: %s", error)  # noqa: TRY400
            else:
                if self._desk:
                    kill(self._desk, signal.SIGKILL)  # the next one gets the new socket
        post = self._post
        if post is not None and local_path(self.settings) is None and not folder.has(post.path):
            log.warning("%s was removed; making it anew, and the local broker with it", post.path)
            try:
                folder.renew()
                fresh = open_post(post.path)
            except (OSError, TrionetError) as error:
                log.error("no socket for the local broker, so nobody can connect to it: %s", error)  # noqa: TRY400
            else:
                self._wait_at(post, wait=False)
                post.sock.close()
                post.sockets = fresh.sockets
                if post.pid:
                    kill(post.pid, signal.SIGKILL)  # the next one gets the new socket
                else:
                    self._wait_at(post, wait=True)

    @property
    def _control(self) -> socket.socket | None:
        """The socket where workers find the admin process, if there is one."""
        return self._folder.control if self._folder is not None else None

    # ---------------------------------------------------------------- the loop

    def run(self) -> int:
        """Start the workers and keep them until told to end; returns the exit code."""
        logs.set_process("supervisor")
        self._take_signals()
        preload(self.settings)
        gc.collect()
        gc.freeze()  # what children share is not to be touched by their collectors
        log.info("supervisor %d starts %s", os.getpid(), _counted(self.settings.workers, "worker"))
        if self._admin.of[1]:
            for sock in self._admin.of[1]:  # whoever asks early waits, also for another admin process
                sock.listen(_DESK_BACKLOG)
            self._start_desk()
        if self._post is not None:
            self._wait_at(self._post, wait=True)
        if self.settings.reload:
            changed_sources(self._watched, self._sources)
        self._do(self.slots.start())
        while self._status is None:
            events, late = self._wait()
            self._heed()  # first: SIGTERM for the whole group has also ended children
            for key, _ in events:
                key.data()
            self._reap()
            if late > _LATE:
                log.warning("nothing ran for %.1f s here: asleep, frozen or overloaded", late)
                self.slots.away(late, time.monotonic())
                if self._post is not None:
                    self._post.heard = time.monotonic()
            self._look()
            self._do(self.slots.tick(time.monotonic()))
            self._tell_manager()
            self._tell_desk()
        return self._status

    def _wait(self) -> tuple[list[tuple[selectors.SelectorKey, int]], float]:
        """Wait for events, or for the next thing that is due; also by how many seconds that was too long."""
        pause, before = self._pause(), time.monotonic()
        events = self._selector.select(pause)
        return events, time.monotonic() - before - pause

    def _pause(self) -> float:
        """How long to wait: until the next thing that is due."""
        times = [self.slots.next(), self._desk_at]
        times.append(self._folder.look_at if self._folder is not None else None)
        times.append(self._post.next() if self._post is not None else None)
        if self.settings.reload:
            times.append(self._look_at)
        if self._watchdog is not None:
            times.append(self._watchdog_at)
        first = min((time for time in times if time is not None), default=float("inf"))
        return min(max(0.0, first - time.monotonic()), _LONGEST_PAUSE)

    def _look(self) -> None:
        """What is done by the clock, besides `Slots.tick`."""
        now = time.monotonic()
        if self._desk_at is not None and self._desk_at <= now:
            self._start_desk()
        if self._watchdog is not None and self._watchdog_at <= now:
            systemd.notify("WATCHDOG=1")
            self._watchdog_at = now + self._watchdog
        if self._folder is not None and self._folder.due(now):
            self._look_after_folder(self._folder)
        if self._post is not None:
            self._look_at_broker(self._post, now)
        if self.settings.reload and self._look_at <= now:
            self._look_at = now + _LOOK
            changed = changed_sources(self._watched, self._sources)
            if changed:
                log.info("%s changed", ", ".join(changed[:3]) + (" …" if len(changed) > 3 else ""))
                self._do(self.slots.hang_up())

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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # whatever we were started with

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
        if signal.SIGHUP in signals and not self.slots.stopping:  # many at once are one
            self._reload()
            self._do(self.slots.hang_up())
        for number in signals:
            now = time.monotonic()
            if number == signal.SIGUSR1:
                self._dump()
            elif number in {signal.SIGTERM, signal.SIGINT}:
                log.info(
                    "%s: %s",
                    signal.Signals(number).name,
                    "again: killing" if self.slots.stopping else "draining",
                )
                systemd.notify(*systemd.stopping(self.settings.grace))
                self._do(self.slots.stop(now))
                # Or the kernel would go on queueing connections that nobody will accept, until the last of us ends.
                self.sockets.close()

    def _reload(self) -> None:
        systemd.notify(*systemd.reloading())
        self._reloading = True
        if self._reload_settings is None:
            return
        try:
            fresh = self._reload_settings()
        except (TrionetError, OSError) as error:
            log.error("the settings cannot be read, the old ones hold: %s", error)  # noqa: TRY400
            return
        except Exception:
            log.exception("the settings cannot be read, the old ones hold")
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
                kill(act.pid, act.number)
            elif act.do == "exit":
                self._status = act.number
            else:
                self._say(act.text)

    def _say(self, text: str) -> None:
        self._said = text
        if text in {"ready", "restarted"}:
            log.info(
                "%s: %s",
                text,
                _counted(self.slots.serving, "worker") + (" serves" if self.slots.serving == 1 else " serve"),
            )
            self._tell_desk()
            if text == "ready":
                systemd.notify("READY=1", f"STATUS={self._serving}")
                if self._announce is not None:
                    self._announce(self._urls)
        elif text == "rolling restart":
            log.info("%s", text)
        else:
            log.warning("%s", text)

    @property
    def _serving(self) -> str:
        return f"{self.slots.serving} workers serve {self.settings.app}"

    def _tell_manager(self) -> None:
        """A reload has an end, be it that it failed: systemd waits for that."""
        if self._reloading and not self.slots.restarting:
            self._reloading = False
            if not self.slots.stopping:
                remark = "" if self._said == "restarted" else f"; {self._said}"
                systemd.notify("READY=1", f"STATUS={self._serving}{remark}")

    def _fork(self, number: int, generation: int) -> None:
        try:
            pid = self._spawn(lambda ours, theirs: self._be_worker(number, generation, ours, theirs))
        except OSError as error:  # no memory, too many processes, no descriptors
            self._do(self.slots.not_forked(number, error.strerror or str(error), time.monotonic()))
        else:
            self.slots.forked(pid, number, time.monotonic())

    def _spawn(self, life: Callable[[socket.socket, socket.socket], int]) -> int:
        """Start a child, with a socket pair between us. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        try:
            pid = fork_quietly(_SIGNALS)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            be_child(lambda: life(ours, theirs))
        theirs.close()
        self._watch(pid, ours)
        return pid

    def _be_worker(self, number: int, generation: int, ours: socket.socket, theirs: socket.socket) -> int:
        ours.close()
        self._forget_the_parent()
        for sock in (*self._admin.of[1], self._control, self._post and self._post.sock):
            if sock is not None:
                sock.close()
        broker = self._post.path if self._post is not None else None
        control = self._folder.control_path if self._folder is not None and self._folder.control else None
        place = Place(number, generation, theirs, control, broker)
        return run_worker(self.settings, place, self.sockets.keep(number))

    def _forget_the_parent(self) -> None:
        """In a child: what belongs to the supervisor is closed, or others would never see that it has ended."""
        signal.set_wakeup_fd(-1)
        for signum in _SIGNALS:
            # What an operator sends to all of us must not kill one that has no handlers yet.
            ends = signum in {signal.SIGTERM, signal.SIGCHLD}
            signal.signal(signum, signal.SIG_DFL if ends else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # see `fork_quietly`
        self._selector.close()
        for line in self.lines.values():
            line.sock.close()
        for sock in self._wake or ():
            sock.close()
        with suppress(OSError, ValueError, RuntimeError):  # standard error may be no file
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
        *lines, rest = (line.buffer + data).split(b"\n")
        line.buffer = rest[-_LONGEST_LINE:]
        for text in lines:
            self._heard(line.pid, text)

    def _heard(self, pid: int, text: bytes) -> None:
        try:
            message = json.loads(text)
            word, urls = message["say"], message.get("urls", [])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            log.warning("process %d says what makes no sense: %.100r", pid, text)
            return
        now = time.monotonic()
        if self._post is not None and pid == self._post.pid:
            self._post.heard = now
        elif word == "ready":
            self._urls = urls
            self._do(self.slots.ready(pid, now))
        elif word == "leaves":
            self._do(self.slots.leaves(pid, now))
        else:
            self.slots.alive(pid, now)

    def _tell(self, pid: int, order: dict[str, Any]) -> bool:
        """Send an order; whether the child can read it. If not it ends, or hangs: then its deadline comes."""
        line = self.lines.get(pid)
        if line is None:
            return False
        try:
            line.sock.send(json.dumps(order).encode() + b"\n")
        except OSError:
            return False
        return True

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
                self._desk, self._desk_at = 0, self._desk_since + _DESK_PAUSE
                log.warning("the admin process %s; starting it again", how_ended(code))
            elif self._post is not None and pid == self._post.pid:
                pause = self._post.ended(time.monotonic())
                log.warning(
                    "the local broker (pid %d) %s, and with it ended what it kept; it may be started again in %.1f s",
                    pid,
                    how_ended(code),
                    pause,
                )
            else:
                self._do(self.slots.ended(pid, code, time.monotonic()))

    # ---------------------------------------------------------------- the admin process

    def _start_desk(self) -> None:
        self._desk_at = None
        self._desk_table = ""
        self._desk_since = time.monotonic()
        try:
            self._desk = self._spawn(self._be_desk)
        except OSError as error:
            log.warning("the admin process cannot be started: %s", error.strerror or error)
            self._desk_at = self._desk_since + _DESK_PAUSE
        self._tell_desk()

    def _be_desk(self, ours: socket.socket, theirs: socket.socket) -> int:
        ours.close()
        self._forget_the_parent()
        for sock in {id(sock): sock for socks in self.sockets.of.values() for sock in socks}.values():
            sock.close()
        if self._post is not None:
            self._post.sock.close()
        assert self._control is not None
        logs.set_process("admin")
        return run_desk(self.settings, theirs, self._control, self._admin.of[1])

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
        broker = self._post.row() if self._post is not None else None
        table = {"do": "table", "state": state, "workers": self._table(), "broker": broker}
        text = json.dumps(table)
        if text != self._desk_table and self._tell(self._desk, table):
            self._desk_table = text

    # ---------------------------------------------------------------- the local broker

    def _wait_at(self, post: Post, *, wait: bool) -> None:
        """Have the first who connects wake us, or have it no longer."""
        if wait and not post.waiting:
            self._selector.register(post.sock, selectors.EVENT_READ, self._start_broker)
        elif post.waiting and not wait:
            self._selector.unregister(post.sock)
        post.waiting = wait

    def _start_broker(self) -> None:
        post = self._post
        assert post is not None
        self._wait_at(post, wait=False)
        try:
            pid = self._spawn(self._be_broker)
        except OSError as error:
            log.warning("the local broker cannot be started: %s", error.strerror or error)
            post.not_forked(time.monotonic())
        else:
            post.forked(pid, self.settings.worker_timeout, time.monotonic())
        self._tell_desk()

    def _be_broker(self, ours: socket.socket, theirs: socket.socket) -> int:
        ours.close()
        self._forget_the_parent()
        for sock in (*itertools.chain(*self.sockets.of.values()), *self._admin.of[1], self._control):
            if sock is not None:
                sock.close()  # workers may share one: a second time does nothing
        assert self._post is not None
        logs.set_process("broker")
        return run_broker(
            self.settings, theirs, self._post, self._folder.path if self._folder is not None else None
        )

    def _look_at_broker(self, post: Post, now: float) -> None:
        if post.retry_at is not None and post.retry_at <= now:
            post.retry_at = None
            self._wait_at(post, wait=True)
        elif post.hangs(now):
            silent = now - post.heard
            log.warning(
                "the local broker (pid %d) gave no sign of life for %.0f s: killing it", post.pid, silent
            )
            post.silence = None
            kill(post.pid, signal.SIGKILL)

    # ---------------------------------------------------------------- the end

    def close(self) -> None:
        """End the broker, then the admin process, close the sockets, remove files."""
        if self._post is not None:
            if self._post.pid:
                self._tell(self._post.pid, {"do": "end"})
                self._drop(self._post.pid)
                await_end(self._post.pid)
            self._post.close()
        desk = getattr(self, "_desk", 0)
        if desk:
            self._drop(desk)  # it ends when its line does
            await_end(desk)
        self.sockets.close()
        self._admin.close()
        if self._folder is not None:
            self._folder.remove()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
