"""The other end of the bus, for pages: the file that browsers import, and its types for TypeScript."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trionet.protocols.responders import HttpRequest, Responder, Response
from trionet.protocols.static import StaticFile

__all__ = ["client_module"]

STATIC: Final = Path(__file__).parent / "static"


def client_module() -> Responder:
    """What answers ``/trionet.js`` in an `HttpProtocol`, and ``/trionet.d.ts`` where it is given that route as well.

    With ``HttpProtocol({"/trionet.js": client_module(), …})`` a page says ``import {Bus} from "/trionet.js"``. A
    browser asks each time whether it has changed, so that a new server comes with its client.
    """
    module = StaticFile(STATIC / "trionet.js")
    types = StaticFile(STATIC / "trionet.d.ts", content_type="application/typescript; charset=utf-8")

    async def serve(request: HttpRequest) -> Response:
        return await (types if request.path.endswith(".d.ts") else module)(request)

    return serve
