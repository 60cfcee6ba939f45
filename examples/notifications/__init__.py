"""Mail, the moment it comes: storage, bus, API workers, browsers. Run ``python -m examples.notifications``.

    mailbox    the storage's file: mails, and the events that tell of them
    storage    the storage's process: takes mails in, publishes the events until the bus has them
    server     the API worker: who may hear what. `web`: its pages and its JSON; `session`: log-in
    remote     its way to the storage
    numbers    what it tells the operator
    api        starts the workers; `launch`: all of it, with one command

Put together differently, with the parts on machines of their own, this is what a notification service looks like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trionet import Application


def app() -> Application:
    """What ``trionet serve examples.notifications`` serves, in each worker."""
    from .server import make  # not before: the storage, a program in this package, needs none of it

    return make()
