"""``trionet broker``: a local broker by itself, for programs of one machine that share no ``trionet serve``."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Annotated

import trio
from cyclopts import Parameter

from trionet.cli import output
from trionet.errors import ConfigurationError

__all__ = ["broker"]

log = logging.getLogger("trionet.ops")


def broker(
    path: str,
    /,
    *,
    max_bytes: Annotated[int, Parameter(metavar="BYTES")] = 256 * 2**20,
    max_message: Annotated[int, Parameter(metavar="BYTES")] = 8 * 2**20,
    max_queued: Annotated[int, Parameter(metavar="BYTES")] = 32 * 2**20,
    log_level: Annotated[str, Parameter(metavar="LEVEL")] = "info",
) -> int:
    """Serve a local broker at PATH until SIGTERM or Ctrl-C.

    Processes of this machine that belong to the same user publish and subscribe through it: programs by
    trionet.open_publisher("local:PATH"), servers by trionet serve --broker local:PATH. What is kept lives in the memory
    of this process, and so longer than they do. A server with several workers has a broker of its own and needs none
    of this.

    Examples::

      trionet broker /run/shop/bus
      trionet broker /run/shop/bus --max-bytes 1073741824

    Args:
        path: of the Unix socket; it gets mode 0600
        max_bytes: of all histories together
        max_message: of one publication
        max_queued: that may wait for a process that does not read, before it is cut off
        log_level: debug, info, warning or error
    """
    from trionet.ops import logs, systemd
    from trionet.ops.broker import open_post
    from trionet.ops.collector import collector_policy
    from trionet.ops.limits import raise_descriptor_limit
    from trionet.pubsub.brokers.local.server import LocalLimits, serve_until_told

    if log_level.lower() not in {"debug", "info", "warning", "error"}:
        raise ConfigurationError(
            f"option --log-level is {log_level!r}; it must be debug, info, warning or error"
        )
    if min(max_bytes, max_message, max_queued) < 1 or max_message >= 2**31:
        raise ConfigurationError(
            "--max-bytes, --max-message and --max-queued are 1 or more; a message less than 2 GiB"
        )
    logs.configure("text", log_level.lower())
    limits = LocalLimits(max_bytes=max_bytes, max_message=max_message, max_queued=max_queued)
    try:
        post = open_post(path)
    except OSError as error:
        output.fail(str(error.strerror or error))
        return 2
    raise_descriptor_limit()
    with suppress(OSError, SystemExit):
        output.console().print(f"  local broker at {path}; programs use it as local:{path}", soft_wrap=True)
    systemd.notify("READY=1", f"STATUS=local broker at {path}")
    try:
        with collector_policy():
            trio.run(serve_until_told, post.sock, limits)
    finally:
        post.close()
    return 0
