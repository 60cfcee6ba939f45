"""What all parts agree on: what the bus keeps, where the storage is found, how JSON is asked and answered."""

from __future__ import annotations

import fcntl
import os
import signal
from typing import Any

import trionet
from trionet.errors import Rejection
from trionet.pubsub.topics import HistoryLimits, TopicOptions

from .mailbox import Full, Invalid

__all__ = ["RULES", "StorageDown", "answering", "end_with_our_parent", "read_json", "socket_of"]

#: What happened to a mailbox is kept for ten minutes: who comes back within them gets what was missed, and nothing
#: else. Who comes later loads the inbox anew. Numbers for the operator are worthless a second later.
RULES = {
    "mail:*": TopicOptions(history=HistoryLimits(count=200, age=600.0)),
    "ops:*": TopicOptions(history=None),
}


def socket_of(database: str) -> str:
    """Where the storage of this database listens: beside it."""
    return f"{database}.sock"


class StorageDown(Exception):
    """The storage did not answer in time."""


def answering(responder: trionet.Responder) -> trionet.Responder:
    """Make `responder` say in words what it was not given, and why it cannot do it."""

    async def answer(request: trionet.HttpRequest) -> trionet.Response:
        try:
            return await responder(request)
        except Invalid as error:
            raise Rejection(400, body=f"{error}\n") from error
        except Full as error:
            raise Rejection(503, body="Too much waits for the bus. Please try later.\n") from error
        except StorageDown as error:
            raise Rejection(503, body="The mailbox is away for a moment. Please try again.\n") from error

    return answer


async def read_json(request: trionet.HttpRequest) -> dict[str, Any]:
    """The body, an object. It must be declared as JSON: pages of other sites cannot send that without asking us."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Rejection(415, body="Send JSON, as application/json.\n")
    fields = await request.json()
    if not isinstance(fields, dict):
        raise Invalid("Send a JSON object.")
    return fields


def end_with_our_parent() -> None:
    """Get SIGTERM when standard input ends: our parent holds its other end, and may be killed without a word."""
    if hasattr(fcntl, "F_SETSIG"):  # Linux
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
