"""What an operator may set: one table, read by the command line, the environment and a TOML file alike.

`ServeSettings` checks each value by itself; the error names the field. Where a value came from is known to whoever
read it (`trionet.cli`), which adds that to the error. Settings of a protocol (message sizes, keepalive, origins) are
the application's own and are written in its code.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any, Literal, cast

import attrs

from trionet.errors import ConfigurationError

__all__ = ["ServeSettings", "processors", "without_password"]


def _check(test: Callable[[Any], bool], wanted: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and (not test(value) or value == math.inf):
            raise ConfigurationError(f"{field.name} is {value!r}; it must be {wanted}")

    return check


_PORT = _check(lambda value: 0 <= value <= 65535, "a port, 0 to 65535 (0: any free one)")
_POSITIVE = _check(lambda value: value > 0, "greater than 0")
_AT_LEAST_0 = _check(lambda value: value >= 0, "0 or greater")
_AT_LEAST_1 = _check(lambda value: value >= 1, "1 or greater")


def processors() -> int:
    """Processors this process may use: what ``workers = auto`` means."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # pragma: no cover - not on Linux


def _workers(value: int | str) -> int:
    if value == "auto":
        return processors()
    if isinstance(value, str) and not value.isdecimal():
        raise ConfigurationError(f"workers is {value!r}; it must be a number, or auto")
    return int(value)


def _setting(default: Any, text: str, group: str, **options: Any) -> Any:
    return attrs.field(default=default, metadata={"help": text, "group": group}, **options)


_BROKERS = ("memory", "local", "redis", "rediss", "valkey", "valkeys", "redis+unix", "nats", "tls+nats")


def without_password(url: str | None) -> str:
    """A URL as people may see it; None as None."""
    return repr(url) if url is None else re.sub(r"(://[^/@]*?:)[^/@]*@", r"\1***@", url)


def _is_broker(_: Any, field: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None and value.partition(":")[0] not in _BROKERS:
        raise ConfigurationError(
            f"{field.name} is {without_password(value)!r}; it must be memory, local, local:/path, redis://host or "
            "nats://host"
        )


def _names(*names: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    return _check(lambda value: value in names, "one of " + ", ".join(names))


@attrs.frozen(kw_only=True)
class ServeSettings:
    """Settings of ``trionet serve``. Times are seconds, sizes bytes; None: not set, or no limit."""

    app: str = attrs.field(
        metadata={
            "help": "what to serve: package.module:attribute, or path/to/file.py",
            "group": "application",
        }
    )

    host: str | None = _setting("127.0.0.1", "address to listen on; 0.0.0.0 and :: for all", "where")
    port: int = _setting(8080, "TCP port; 0 takes any free one", "where", validator=_PORT)
    unix: str | None = _setting(None, "path of a Unix socket to listen on, instead of host and port", "where")
    unix_mode: int | None = _setting(
        None,
        "permissions of the Unix socket",
        "where",
        validator=_check(lambda mode: 0 <= mode <= 0o777, "0 to 0o777"),
    )
    fd: int | None = _setting(
        None,
        "descriptor of a listening socket to take over, instead of host and port",
        "where",
        validator=_AT_LEAST_0,
    )
    backlog: int = _setting(
        65535, "connections the kernel queues (net.core.somaxconn limits it)", "where", validator=_AT_LEAST_1
    )
    proxy_protocol: tuple[str, ...] = _setting(
        (),
        "addresses or networks of proxies whose connections begin with a PROXY header",
        "where",
        converter=tuple,
    )
    tls_cert: str | None = _setting(None, "speak TLS: certificate chain, PEM", "where")
    tls_key: str | None = _setting(None, "its private key, if that is in another file", "where")
    tls_key_password: str | None = _setting(None, "password of the private key", "where", repr=False)

    workers: int = _setting(
        1, "processes; auto: one for each processor", "processes", converter=_workers, validator=_AT_LEAST_1
    )
    worker_timeout: float | None = _setting(
        60.0,
        "seconds without a sign of life after which a worker is replaced",
        "processes",
        validator=_POSITIVE,
    )
    start_timeout: float = _setting(
        60.0, "seconds a worker may take until it is ready", "processes", validator=_POSITIVE
    )
    grace: float = _setting(
        30.0, "seconds to drain before connections are cut", "processes", validator=_AT_LEAST_0
    )
    drain_window: float | None = _setting(
        None,
        "seconds over which connections are told to go; automatic: one per thousand, half of grace at most",
        "processes",
        validator=_AT_LEAST_0,
    )
    reload: bool = _setting(False, "restart when a source file changes (for developing)", "processes")
    reload_dirs: tuple[str, ...] = _setting(
        (), "folders to watch; the working directory if none", "processes", converter=tuple
    )

    pool_size: int = _setting(128, "handlers that run at once in a worker", "limits", validator=_AT_LEAST_1)
    max_connections: int | None = _setting(
        None, "connections of a worker; as many as descriptors allow", "limits", validator=_AT_LEAST_1
    )
    max_opening: int | None = _setting(
        None, "half-open handshakes of a worker at once", "limits", validator=_AT_LEAST_1
    )
    max_detached: int = _setting(
        10_000, "handlers of a worker that wait for long", "limits", validator=_AT_LEAST_1
    )
    timer_resolution: float = _setting(
        0.25,
        "seconds of a timer tick: deadlines are kept to it, an idle worker wakes up by it",
        "limits",
        validator=_POSITIVE,
    )
    max_connections_per_address: int | None = _setting(
        None, "connections of a worker from one address", "overload", validator=_AT_LEAST_1
    )
    max_handshakes_per_second: float | None = _setting(
        None, "new connections of a worker in a second", "overload", validator=_POSITIVE
    )
    max_loop_lag: float | None = _setting(
        None,
        "seconds by which timers are late, above which nothing is accepted",
        "overload",
        validator=_POSITIVE,
    )
    max_pool_wait: float | None = _setting(
        None,
        "seconds a job waits for a free slot, above which nothing is accepted",
        "overload",
        validator=_POSITIVE,
    )
    max_memory: int | None = _setting(
        None, "bytes of memory of a worker, above which nothing is accepted", "overload", validator=_POSITIVE
    )
    overload_action: Literal["wait", "reset", "answer"] = _setting(
        "wait",
        "what happens then: newcomers wait in the backlog, are reset, or are answered with 503",
        "overload",
        validator=_names("wait", "reset", "answer"),
    )
    retry_after: float = _setting(
        5.0, "seconds after which those who get a 503 are told to come back", "overload", validator=_POSITIVE
    )
    overload_exempt: tuple[str, ...] = _setting(
        (),
        "networks (of proxies) that max_connections_per_address leaves alone",
        "overload",
        converter=tuple,
    )

    broker: str | None = _setting(
        None,
        "what the bus runs on: memory, local, local:/path, redis://host or nats://host; automatic: local if there are "
        "several workers",
        "operation",
        validator=_is_broker,
        repr=without_password,
    )
    admin: str | None = _setting(
        None, "host:port or unix:/path where /metrics, /healthz, /readyz and /workers are served", "operation"
    )
    admin_public: bool = _setting(False, "allow an admin address that other machines reach", "operation")
    debug: bool = _setting(False, "mount /debug/ on the admin address", "operation")
    log_level: str = _setting(
        "info",
        "debug, info, warning or error",
        "operation",
        converter=lambda value: cast("str", value).lower(),
        validator=_names("debug", "info", "warning", "error"),
    )
    log_format: Literal["text", "logfmt", "json"] = _setting(
        "text", "text, logfmt or json", "operation", validator=_names("text", "logfmt", "json")
    )
    stall_threshold: float | None = _setting(
        0.5,
        "seconds of work without a pause that are logged, with the stack",
        "operation",
        validator=_POSITIVE,
    )
