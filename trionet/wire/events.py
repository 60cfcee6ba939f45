"""Server-Sent Events as bytes (WHATWG HTML, 9.2.5 and 9.2.6)."""

from __future__ import annotations

import re

from trionet.errors import ConfigurationError

__all__ = ["encode_comment", "encode_event"]

# What ends a line for the reader; nothing else does (not U+2028, so no `splitlines`).
_LINE_END = re.compile("\r\n|\r|\n")


def encode_event(
    data: str | None,
    event: str | None = None,
    id: str | None = None,  # noqa: A002
    retry: float | None = None,
) -> bytes:
    """Return one event.

    `data`: its text, of any number of lines. None: nothing is dispatched, though `id` and `retry` are taken note of.
    `event`: its type; a browser hands those without one to "message" listeners. `id`: what the client will send as
    Last-Event-ID when it comes back; "" makes it forget the last. `retry`: seconds until it comes back. An `event` or
    `id` that has more than one line, and an `id` with NUL (which readers ignore), raise `ConfigurationError`.
    """
    lines = []
    for name, value in (("event", event), ("id", id)):
        if value is not None:
            if _LINE_END.search(value) or (name == "id" and "\0" in value):
                raise ConfigurationError(f"the {name} of an event is one line: {value!r}")
            lines.append(f"{name}: {value}\n")
    if retry is not None:
        lines.append(f"retry: {max(0, round(retry * 1000))}\n")
    if data is not None:
        # One space behind the colon is the format's, not the line's.
        lines += [f"data: {line}\n" for line in _LINE_END.split(data)]
    if not lines:
        raise ConfigurationError("an event has data, an id or a retry")
    lines.append("\n")
    return "".join(lines).encode()


def encode_comment(text: str = "") -> bytes:
    """Return what readers skip: keeps proxies from closing a stream that has nothing to say."""
    return "".join(f":{line}\n" for line in _LINE_END.split(text)).encode() + b"\n"
