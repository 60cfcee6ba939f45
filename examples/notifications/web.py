"""What is asked by plain HTTP: the pages, log-in, and a little JSON.

POST /login  {name}                 a cookie; /logout takes it back
GET  /api/inbox                     the list, and the position on the bus from which to follow it
POST /api/read  {ids}               mails were read
POST /api/send  {to, subject, text, [id]}
POST /mails  {to, subject, text, [sender], [id]}       a mail from outside: what would be SMTP
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trionet
from trionet.bus import client_module
from trionet.errors import BrokerError, Rejection

from .mailbox import Invalid, Mail, check_name
from .shared import answering, read_json

if TYPE_CHECKING:
    from .server import Notifications

__all__ = ["Web"]

STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
WELCOME = """This inbox is live: what arrives is here at once, in every window that is open.

Send yourself a mail from a terminal:

    curl --json '{{"to": "{name}", "sender": "curl", "subject": "Hello"}}' {url}/mails

Or log in as somebody else in another browser, and write back and forth. Then kill something: a worker, the storage, \
the broker. Nothing will be missing."""


class Web:
    """Answers for a worker whose connections are `handler`'s."""

    def __init__(self, handler: Notifications) -> None:
        self._handler = handler

    def routes(self) -> dict[str, Any]:
        """What is where."""
        policy = [("Content-Security-Policy", POLICY), ("Referrer-Policy", "no-referrer")]
        return {
            "/": trionet.StaticFile(STATIC / "index.html", headers=policy),
            "/operator": trionet.StaticFile(STATIC / "operator.html", headers=policy),
            "/static/": trionet.StaticFiles(STATIC),
            "/trionet.js": client_module(),
            "/healthz": trionet.Health(),
            "POST /login": answering(self.login),
            "POST /logout": answering(self.logout),
            "/api/inbox": answering(self.inbox),
            "POST /api/read": answering(self.read),
            "POST /api/send": answering(self.send),
            "POST /mails": answering(self.arrive),
        }

    def user(self, request: trionet.HttpRequest) -> str:
        """Who asks. Raises `Rejection`."""
        user = self._handler.sessions.user(request.cookies)
        if user is None:
            raise Rejection(401, body="Log in first.\n")
        return user

    async def login(self, request: trionet.HttpRequest) -> trionet.Response:
        """Take anybody's word for who they are: the one thing here that is not as it should be."""
        name = check_name((await read_json(request)).get("name"))
        secure = bool(request.client.secure)
        url = f"{'https' if secure else 'http'}://{request.host}"
        welcome = WELCOME.format(name=name, url=url)
        await self._handler.storage.add(
            [Mail(name, "trionet", "Welcome to your inbox", welcome, f"welcome-{name}")]
        )
        cookie = self._handler.sessions.begin(name, secure=secure)
        return trionet.Response.json({"user": name}, headers=[("Set-Cookie", cookie)])

    async def logout(self, request: trionet.HttpRequest) -> trionet.Response:
        """Take the cookie back. All pages of this user connect again: those without a cookie find out."""
        user = self.user(request)
        with suppress(BrokerError):  # those of this worker are closed whether the bus is there or not
            await self._handler.disconnect(user, 4401, "logged out")
        return trionet.Response.json({}, headers=[("Set-Cookie", self._handler.sessions.end())])

    async def inbox(self, request: trionet.HttpRequest) -> trionet.Response:
        """The list, and a position that is not newer than it: what happens behind that is in the list, or will come."""
        user = self.user(request)
        position = await self._position(f"mail:{user}")
        mails = await self._handler.storage.inbox(user)
        fields = {
            "user": user,
            "operator": self._handler.is_operator(user),
            "position": position,
            "mails": mails,
        }
        return trionet.Response.json(fields, headers=[("Cache-Control", "no-store")])

    async def _position(self, topic: str) -> dict[str, Any] | None:
        """Where the bus is; None while that cannot be told: then the page asks for the list again when it is back."""
        try:
            position = (await self._handler.bus.history(topic, None, 1)).top
        except BrokerError:
            return None
        return position._asdict() if position.epoch else None

    async def read(self, request: trionet.HttpRequest) -> trionet.Response:
        """Note that mails were read."""
        user, ids = self.user(request), (await read_json(request)).get("ids")
        if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
            raise Invalid("Send a list of ids.")
        await self._handler.storage.mark_read(user, ids)
        return trionet.Response.json({})

    async def send(self, request: trionet.HttpRequest) -> trionet.Response:
        """A mail from one who is logged in."""
        mail = Mail.of(await read_json(request), sender=self.user(request))
        await self._handler.storage.add([mail])
        return trionet.Response.json({"id": mail.id})

    async def arrive(self, request: trionet.HttpRequest) -> trionet.Response:
        """A mail from outside."""
        mail = Mail.of(await read_json(request))
        await self._handler.storage.add([mail])
        return trionet.Response.json({"id": mail.id})
