"""How a publication lies in a message of NATS: what its headers are called, written and read.

JetStream adds the headers ``Nats-…`` to what it republishes (ADR-28) and to what is got from it (ADR-31). Tags and
origins are any text, so they are percent-escaped; a key is hashed together with its topic, for which alone it counts.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from urllib.parse import quote, unquote

from trionet.pubsub.brokers.nats.protocol import header, needle
from trionet.pubsub.brokers.nats.streams import seconds
from trionet.pubsub.publication import Publication

__all__ = ["number", "read_plain", "read_stored", "write_headers"]

SEQUENCE: Final = needle("Nats-Sequence")
PREVIOUS: Final = needle("Nats-Last-Sequence")  # of the same subject; 0 if that is not there any more
SUBJECT: Final = needle("Nats-Subject")
PENDING: Final = needle("Nats-Num-Pending")
UP_TO: Final = needle("Nats-UpTo-Sequence")
_STAMP: Final = needle("Nats-Time-Stamp")
_TAG: Final = needle("Trionet-Tag")
_ORIGIN: Final = needle("Trionet-Origin")
_AT: Final = needle("Trionet-At")

_PLAIN: Final = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"  # what `quote` leaves as it is, in a header


def write_headers(topic: str, key: str, tag: str, origin: str, at: float | None) -> dict[str, str]:
    """Headers to publish with. `at`: the time, for those that JetStream does not see."""
    headers = {}
    if key:
        headers["Nats-Msg-Id"] = blake2b(
            f"{topic}\0{key}".encode(errors="surrogatepass"), digest_size=16
        ).hexdigest()
    if tag:
        headers["Trionet-Tag"] = quote(tag, safe=_PLAIN)
    if origin:
        headers["Trionet-Origin"] = quote(origin, safe=_PLAIN)
    if at is not None:
        headers["Trionet-At"] = f"{at:.6f}"
    return headers


def number(headers: bytes, name: bytes, default: int = 0) -> int:
    """A header that is a number."""
    value = header(headers, name)
    return int(value) if value.isdigit() else default


def read_stored(topic: str, epoch: str, headers: bytes, data: bytes, previous: int) -> Publication:
    """A publication as its stream republishes it, or as it is got from there."""
    return Publication(
        topic,
        data,
        epoch,
        number(headers, SEQUENCE),
        previous,
        seconds(header(headers, _STAMP).decode()),
        _text(headers, _TAG),
        _text(headers, _ORIGIN),
    )


def read_plain(topic: str, headers: bytes, data: bytes) -> Publication:
    """A publication that JetStream has not seen; any client of NATS may have made it."""
    try:
        at = float(header(headers, _AT) or 0)
    except ValueError:
        at = 0.0
    return Publication(topic, data, at=at, tag=_text(headers, _TAG), origin=_text(headers, _ORIGIN))


def _text(headers: bytes, name: bytes) -> str:
    value = header(headers, name)
    return unquote(value.decode(errors="replace")) if value else ""
