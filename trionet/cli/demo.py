"""``trionet demo``: an example to look at, from the installed package or from a checkout."""

from __future__ import annotations

import errno
import importlib.util
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from trionet.cli import output
from trionet.cli.settings import suggestion
from trionet.errors import ConfigurationError
from trionet.ops.settings import ServeSettings
from trionet.server import Server

__all__ = ["DEMOS", "demo", "locate"]

DEMOS = {
    "chat": "rooms full of people, in the browser; open it in two windows",
    "notifications": "an inbox that shows a mail the moment it comes",
}
PORT = 8080


def demo(
    name: str | None = None,
    /,
    *,
    host: Annotated[str, Parameter(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int | None, Parameter(metavar="PORT")] = None,
    open: Annotated[bool, Parameter(negative=(), show_default=False)] = False,  # noqa: A002 - it is --open
) -> int:
    """Run an example, with an address to open in the browser. Without a name: list what there is.

    Examples::

      trionet demo chat --open
      trionet demo chat --host 0.0.0.0 --port 8000

    Args:
        name: which one
        host: address to listen on; 0.0.0.0 lets other machines in
        port: port to listen on; without this 8080, or any free one if that is taken
        open: open it in the browser
    """
    if name is None:
        output.show_table(("demo", "what it is"), DEMOS.items())
        return 0
    if name not in DEMOS:
        raise ConfigurationError(
            f"there is no demo {name!r}{suggestion(name, DEMOS) or '; there is: ' + ', '.join(DEMOS)}"
        )
    if port is not None and not 0 <= port <= 65535:
        raise ConfigurationError(f"option --port is {port}; it must be a port, 0 to 65535 (0: any free one)")
    app = locate(name)
    try:
        return _run(app, host, PORT if port is None else port, open)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port is None:
            return _run(app, host, 0, open)
        if error.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES}:
            raise ConfigurationError(str(error.strerror)) from error
        raise


def locate(name: str) -> str:
    """Return what `trionet.ops.application.load` takes for a demo.

    The wheel has the demos in ``trionet.demos``; in a checkout they are the folder ``examples`` beside the package.
    """
    if importlib.util.find_spec("trionet.demos") is not None:
        return f"trionet.demos.{name}:app"
    root = Path(__file__).resolve().parent.parent.parent
    if not Path(root, "examples", name).is_dir():
        raise ConfigurationError(
            f"this installation has no demos: neither trionet/demos nor {root / 'examples'}"
        )
    sys.path.insert(0, str(root))
    return f"examples.{name}:app"


def _run(app: str, host: str, port: int, browse: bool) -> int:
    from trionet.ops import logs, worker

    logs.configure("text", "warning")
    return worker.run_alone(
        ServeSettings(app=app, host=host, port=port, grace=3.0),
        lambda server, _: _welcome(server, browse=browse),
    )


def _welcome(server: Server, *, browse: bool) -> None:
    url = server.endpoints[0].url.replace("ws://", "http://")
    out = output.console()
    out.print(Text.assemble("open ", (url, "bold cyan"), " in two windows; Ctrl-C ends it"))
    out.file.flush()
    if browse:  # some browsers are waited for
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
