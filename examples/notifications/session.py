"""Log-in by a signed cookie. A demo asks for a name only; everything behind that question is as it would be.

The cookie says who, until when, and an HMAC of both. Nothing is stored, so every worker can check it. Scripts cannot
read it (HttpOnly), and requests that other sites make do not carry it (SameSite), so they act for nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["Sessions", "read_secret"]

COOKIE = "trionet-mail"
DURATION = 7 * 86400  # seconds


def read_secret(database: str) -> bytes:
    """The secret of this system: in a file beside the database that only we may read, made when there is none."""
    path = Path(f"{database}.secret")
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # mode 0600
            file.write(secrets.token_bytes(32))
            file.flush()
            with suppress(FileExistsError):  # of several processes that start at once, one is first
                os.link(file.name, path)
    return path.read_bytes()


class Sessions:
    """Makes cookies and reads them. `secret`: the same in all workers."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError("the secret is too short")
        self._secret = secret

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def begin(self, name: str, *, secure: bool = False) -> str:
        """The Set-Cookie header that logs `name` in. `secure`: it came by TLS, and shall never go without."""
        text = f"{name}:{int(time.time()) + DURATION}"
        return self._header(f"{text}:{self._sign(text)}", DURATION, secure)

    def end(self) -> str:
        """The Set-Cookie header that logs out."""
        return self._header("", 0, secure=False)

    @staticmethod
    def _header(value: str, duration: int, secure: bool) -> str:
        more = "; Secure" if secure else ""
        return f"{COOKIE}={value}; Path=/; Max-Age={duration}; HttpOnly; SameSite=Lax{more}"

    def user(self, cookies: Mapping[str, str]) -> str | None:
        """Who is logged in, by the cookies of a request; None if nobody, or the cookie is forged or too old."""
        text, _, signature = cookies.get(COOKIE, "").rpartition(":")
        if not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        name, _, until = text.partition(":")
        return name if int(until) > time.time() else None
