"""What a user may ask of a load run: every option with its default, its help and its checks."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import attrs

from trionet.errors import ConfigurationError
from trionet.wire.url import Target, parse_url

__all__ = ["SCENARIOS", "LoadOptions", "parse_duration"]

SCENARIOS = {
    "idle": "connect, then hold the connections",
    "trickle": "a few messages a second, each over a connection chosen at random",
    "echo": "closed loop: each connection has so many messages in flight, always",
    "rate": "open loop: a fixed number of messages a second, whatever the answers do",
    "fanout": "some connections publish, all of them receive (for servers that broadcast)",
    "storm": "all connect at once, later all reconnect at once; a control group is measured meanwhile",
}

_DURATION = re.compile(r"([0-9]*\.?[0-9]+) ?(us|ms|s|m|h|)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Return seconds: "20ms", "1.5s", "2m", "90"."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"not a duration: {text!r}; write 20ms, 1.5s or 2m")
    return float(match[1]) * _UNITS[match[2]]


def _option(default: Any, text: str, **metadata: Any) -> Any:
    return attrs.field(default=default, metadata={"help": text, **metadata})


def _seconds(default: float | None, text: str, **metadata: Any) -> Any:
    return _option(default, text, duration=True, **metadata)


@attrs.frozen(kw_only=True)
class LoadOptions:
    """The options of `trionet load`. Times are seconds. `check` says what cannot be."""

    url: str = attrs.field(metadata={"help": "ws://…, wss://… or ws+unix:/the/socket:/path"})
    scenario: str = _option("idle", "what to do with the connections: " + ", ".join(SCENARIOS))
    connections: int = _option(100, "how many connections, over all processes")
    connect_rate: float | None = _option(
        None, "connects a second; none: as fast as --connecting lets them", metavar="N/s"
    )
    connecting: int = _option(256, "connects under way at a time in one process (a storm has no bound)")
    connect_timeout: float = _seconds(30.0, "for one connect, from TCP to the response")
    duration: float = _seconds(10.0, "how long to measure, or to hold the connections")
    settle: float = _seconds(0.0, "wait between the last connect and the measuring")
    rate: float | None = _option(
        None, "messages a second, over all processes (rate: 1000; trickle and fanout: 10)", metavar="N/s"
    )
    in_flight: int = _option(1, "messages under way on each connection (echo)")
    publishers: int = _option(1, "connections that publish (fanout)")
    control: int = _option(100, "connections that are in before the storm and echo through it (storm)")
    storms: int = _option(2, "how many: the first connects everyone, the others cut and reconnect (storm)")
    size: int = _option(32, "bytes of payload in a message")
    message: str | None = _option(None, "the message itself, instead of --size bytes of our own")
    binary: bool = _option(False, "send binary messages")
    any_answer: bool = _option(False, "take any message for an answer: the server does not echo")
    processes: int | None = _option(None, "load processes; none: as many as descriptors and scenario ask for")
    cpu: tuple[int, ...] = _option((), "pin the processes to these CPUs, in turn")
    source: tuple[str, ...] = _option(
        (), "local addresses to connect from, in turn; none: chosen as needed", metavar="ADDRESS"
    )
    reconnect: bool = _option(False, "connect again what was lost or failed, after a random wait")
    ping_interval: float | None = _seconds(
        None, "send keepalive pings; none: only answer those of the server"
    )
    subprotocol: tuple[str, ...] = _option((), "offer this subprotocol")
    header: tuple[str, ...] = _option((), 'add this to the request: "Name: value"')
    origin: str | None = _option(None, "the Origin header")
    insecure: bool = _option(False, "TLS: accept any certificate")
    compression: bool = _option(False, "offer permessage-deflate")
    abrupt: bool = _option(False, "end by a TCP reset instead of the closing handshake")
    deadline: float | None = _seconds(None, "end the whole run after this; none: twice what it should take")
    max_p99: float | None = _seconds(None, "fail (exit code 1) when 99 % of the messages take longer")
    max_connect_p99: float | None = _seconds(None, "fail when 99 % of the connects take longer")
    max_failures: int | None = _option(
        None, "fail when more connects fail, connections are lost, or messages wrong or unanswered"
    )
    min_rate: float | None = _option(None, "fail when fewer messages a second are received (idle: connects)")
    allow_remote: bool = _option(False, "aim at another machine than this one")
    i_may_load: str | None = _option(None, "its name again: you may put load on it", metavar="HOST")

    @property
    def pace(self) -> float:
        """Messages a second."""
        return self.rate or (1000.0 if self.scenario == "rate" else 10.0)

    @property
    def target(self) -> Target:
        """Where to."""
        return parse_url(self.url)

    def check(self) -> None:
        """Raise `ConfigurationError` for what cannot be."""
        target = self.target
        if self.scenario not in SCENARIOS:
            raise ConfigurationError(f"no scenario {self.scenario!r}; there are {', '.join(SCENARIOS)}")
        for name in ("connections", "connecting", "in_flight", "publishers", "storms"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name.replace('_', '-')} must be at least 1")
        for name in (
            "connect_rate",
            "connect_timeout",
            "duration",
            "rate",
            "processes",
            "deadline",
            "ping_interval",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(f"{name.replace('_', '-')} must be positive")
        if not 0 <= self.settle < float("inf") or self.control < 0:
            raise ConfigurationError("settle and control must not be negative")
        least = 16 if self.scenario == "fanout" else 1  # the time
        if not least <= self.size <= 2**24:
            raise ConfigurationError(f"size must be between {least} and 16 MiB")
        if self.message is not None and (not self.message or self.scenario == "fanout"):
            raise ConfigurationError(
                "a message of your own: not empty, and not for fanout, which sends the time"
            )
        if self.scenario == "storm" and self.control >= self.connections:
            raise ConfigurationError("control must be less than connections: the others make the storm")
        if self.scenario == "fanout" and self.publishers > self.connections:
            raise ConfigurationError("publishers must not be more than connections")
        for line in self.header:
            if ":" not in line:
                raise ConfigurationError(f'not a header: {line!r}; write "Name: value"')
        for address in self.source:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ConfigurationError(f"source: not an address: {address!r}") from None
        if target.unix is not None and self.source:
            raise ConfigurationError("source: a Unix socket is reached without an address of ours")

    def check_reach(self, address: str | None) -> None:
        """Raise `ConfigurationError` when `address`, to which the target was resolved, needs to be allowed first."""
        host = self.target.host
        if address is None or ipaddress.ip_address(address).is_loopback:
            return
        if not self.allow_remote or self.i_may_load != host:
            raise ConfigurationError(
                f"{host} is not this machine. Load can do harm there: if you may do that, "
                f"say --allow-remote --i-may-load {host}"
            )
