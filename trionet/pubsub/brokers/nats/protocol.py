"""The text protocol between a NATS client and its server: bytes in, values out. No I/O.

From the client protocol document of NATS ("Client Protocol", docs.nats.io) and, for headers, ADR-4. Lines end in CR LF:

    server  INFO {json}     MSG subject sid [reply] size     HMSG subject sid [reply] header-size size
            PING  PONG  +OK  -ERR 'text'
    client  CONNECT {json}  PUB / HPUB   SUB subject sid   UNSUB sid   PING  PONG

Behind the line of MSG and HMSG come as many bytes as it says, and one more CR LF.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from trionet.errors import BrokerDown, printable

__all__ = [
    "Control",
    "Message",
    "Parser",
    "connect",
    "header",
    "needle",
    "parse_status",
    "publish",
    "read_object",
]

MAX_LINE: Final = (
    65_536  # INFO lists the servers of a cluster; every other line of a server is shorter than 4,096
)
MAX_PAYLOAD: Final = 64 * 2**20  # what a server can be configured to pass at most

PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"

_VERBS: Final = {b"INFO": "INFO", b"PING": "PING", b"PONG": "PONG", b"+OK": "+OK", b"-ERR": "-ERR"}
_VERSION: Final = b"NATS/1.0"


class Message(NamedTuple):
    """MSG or HMSG. `headers` as they came, from ``NATS/1.0`` to the empty line; b"" if there are none."""

    subject: bytes
    sid: int
    headers: bytes
    payload: bytes


class Control(NamedTuple):
    """Every other line: `verb` is INFO, PING, PONG, +OK or -ERR, `text` what stands behind it."""

    verb: str
    text: bytes


class Parser:
    """Feed it what was read, however it was cut. After it has raised, it cannot be used any more."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self.max_payload = max_payload
        self._parts: list[bytes] = []  # what could not be parsed yet
        self._size = 0
        self._need = 0  # bytes that must be there before it is worth looking again

    @property
    def held(self) -> int:
        """Bytes of an incomplete line or message."""
        return self._size

    def feed(self, data: bytes) -> list[Message | Control]:
        """Return what is complete now. Raises `BrokerDown` if that is not the protocol."""
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._need:
                return []
            data = b"".join(self._parts)
        found: list[Message | Control] = []
        at, end = 0, len(data)
        self._need = 0
        while at < end:
            stop = data.find(b"\r\n", at)
            if stop < 0:
                if end - at > MAX_LINE:
                    raise BrokerDown("the NATS server sent a line that does not end")
                break
            verb = data[at : at + 4]
            if verb == b"HMSG" or verb == b"MSG ":  # noqa: PLR1714 - this line runs for every message
                fields = data[at:stop].split()
                sid, head, total = self._sizes(fields)
                begin = stop + 2
                close = begin + total
                if close + 2 > end:
                    self._need = close + 2 - at
                    break
                if data[close : close + 2] != b"\r\n":
                    raise BrokerDown("a message of the NATS server is not as long as it says")
                middle = begin + head
                found.append(Message(fields[1], sid, data[begin:middle], data[middle:close]))
                at = close + 2
            else:
                found.append(_control(data[at:stop]))
                at = stop + 2
        self._parts = [data[at:]] if at < end else []
        self._size = end - at
        return found

    def _sizes(self, fields: list[bytes]) -> tuple[int, int, int]:
        """The subscription, and the bytes of headers, and of headers and payload together."""
        headed = fields[0] == b"HMSG"
        count = len(fields) - headed
        try:
            sid, total = int(fields[2]), int(fields[-1])
            head = int(fields[-2]) if headed else 0
        except (ValueError, IndexError):
            count = 0
        if not (4 <= count <= 5 and 0 <= head <= total <= self.max_payload):
            raise _strange(b" ".join(fields))
        return sid, head, total


def _control(line: bytes) -> Control:
    name, _, text = line.partition(b" ")
    verb = _VERBS.get(name.upper())
    if verb is None:
        raise _strange(line)
    return Control(verb, text.strip())


def _strange(line: bytes) -> BrokerDown:
    return BrokerDown(f"this is not the protocol of NATS: {printable(line[:60].decode(errors='replace'))}")


def read_object(text: bytes) -> dict[str, Any]:
    """What INFO says, or an answer of JetStream. Raises `BrokerDown` if that is no JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        raise _strange(text) from None
    if not isinstance(found, dict):
        raise _strange(text)
    return found


# ------------------------------------------------------------------------ headers


def needle(name: str) -> bytes:
    """What `header` looks for."""
    return b"\r\n" + name.encode() + b": "


def header(raw: bytes, name: bytes) -> bytes:
    """The value of a header, as servers write them; b"" if it is not there. `name`: its `needle`.

    Of several the last counts: a server appends its own behind the publisher's, who can therefore not forge them.
    Looking for the few that matter takes a third of the time of taking them all apart.
    """
    at = raw.rfind(name)
    if at < 0:
        return b""
    at += len(name)
    return raw[at : raw.find(b"\r\n", at)]


def parse_status(raw: bytes) -> tuple[int, str]:
    """The status in the first line of the headers, and its text; 0 if there is none: an ordinary message."""
    if not raw.startswith(_VERSION + b" "):
        return 0, ""
    line = raw[len(_VERSION) + 1 : raw.find(b"\r\n")].strip()
    code, _, text = line.partition(b" ")
    return (int(code) if code.isdigit() else 0), text.decode(errors="replace").strip()


# ----------------------------------------------------------------------- encoding


def connect(options: Mapping[str, Any]) -> bytes:
    """CONNECT."""
    return b"CONNECT " + json.dumps(options).encode() + b"\r\n"


def publish(subject: str, payload: bytes, headers: Mapping[str, str] | None = None, reply: str = "") -> bytes:
    """PUB, or HPUB if there are headers. Nothing here checks what it is given: see `streams`."""
    where = f"{subject} {reply} " if reply else f"{subject} "
    if not headers:
        return b"PUB %b%d\r\n%b\r\n" % (where.encode(), len(payload), payload)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    return b"HPUB %b%d %d\r\n%b%b\r\n" % (
        where.encode(),
        len(head),
        len(head) + len(payload),
        head,
        payload,
    )


def subscribe(subject: str, sid: int) -> bytes:
    """SUB."""
    return f"SUB {subject} {sid}\r\n".encode()


def unsubscribe(sid: int) -> bytes:
    """UNSUB."""
    return b"UNSUB %d\r\n" % sid
