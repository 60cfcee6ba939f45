"""What runs and what waits: the tree of Trio's tasks, and the handlers that wait without a task.

Many tasks are alike: ten thousand handlers asleep in the same line. Equal ones (same name, same stack, no nursery of
their own that differs) are one entry with a count. Stacks are compared as code and line numbers; source lines are read
for what is shown only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import trio

from trionet.net.connection import Connection
from trionet.net.engine import Engine
from trionet.ops.debug.identity import identity, label
from trionet.ops.debug.slices import Slices
from trionet.ops.debug.stacks import Place, here, places, show, worker_of

__all__ = ["parked", "tasks_as_text", "tree"]

_DEPTH: Final = 30  # nurseries within nurseries
_EXAMPLES: Final = 3  # connections named of those that are alike
_NAME: Final = 120
_LOOKS: Final = 2000  # parked handlers whose stack is asked for


class _Walk:
    """One look at all tasks, and then at what is shown of them. `limit`: different entries in the whole answer."""

    def __init__(self, limit: int) -> None:
        self.slices = Slices()
        self.me = trio.lowlevel.current_task()
        self.left = limit
        self.seen = 0
        self.hidden = 0

    async def task(self, task: trio.lowlevel.Task, depth: int) -> tuple[Any, dict[str, Any]]:
        """What it is: as a key to compare, and as what `show` makes JSON of."""
        self.seen += 1
        await self.slices.breathe()
        stack = places(task.coro)
        worker = worker_of(task)
        job = worker.job if worker is not None else None
        nurseries = []
        keys = []
        if depth < _DEPTH:
            for nursery in task.child_nurseries:
                key, found = await self.nursery(nursery, depth + 1)
                keys.append(key)
                nurseries.append(found)
        name = str(task.name)[:_NAME]
        node: dict[str, Any] = {"name": name, "count": 1, "stack": stack, "nurseries": nurseries}
        if task is self.me:
            node["running"] = True
        if isinstance(job, Connection):
            node["handler"] = label(job.protocol)
            if (known := identity(job)) is not None:
                node["connections"] = [known]
        return hash((name, node.get("handler"), stack, tuple(keys))), node

    async def nursery(self, nursery: trio.Nursery, depth: int) -> tuple[Any, dict[str, Any]]:
        scope = nursery.cancel_scope
        groups: dict[Any, dict[str, Any]] = {}
        for child in list(nursery.child_tasks):
            key, node = await self.task(child, depth)
            known = groups.get(key)
            if known is None:
                groups[key] = node
            else:
                _add(known, node)
        found: dict[str, Any] = {"cancelled": scope.cancel_called, "shield": scope.shield}
        if scope.deadline != math.inf:
            found["deadline"] = round(scope.deadline - trio.current_time(), 3)
        # What there is little of comes first: it is what differs from the crowd.
        found["children"] = sorted(groups.values(), key=lambda node: node["count"])
        return (scope.cancel_called, frozenset((key, node["count"]) for key, node in groups.items())), found

    async def show(self, node: dict[str, Any]) -> dict[str, Any]:
        """Read the source lines, and cut what is beyond the limit."""
        await self.slices.breathe()
        node["stack"] = await show(node["stack"])
        for nursery in node["nurseries"]:
            children = nursery["children"]
            shown = nursery["children"] = children[: max(0, self.left)]
            self.left -= len(shown)
            nursery["hidden"] = sum(child["count"] for child in children[len(shown) :])
            self.hidden += nursery["hidden"]
            for child in shown:
                await self.show(child)
        return node


def _add(known: dict[str, Any], node: dict[str, Any]) -> None:
    known["count"] += node["count"]
    if "connections" in known:
        known["connections"] = (known["connections"] + node.get("connections", []))[:_EXAMPLES]


async def tree(limit: int = 200) -> dict[str, Any]:
    """All tasks of this Trio run, beneath its root; `limit` different entries at most."""
    walk = _Walk(limit)
    root = trio.lowlevel.current_root_task()
    assert root is not None  # this runs in a task
    _, node = await walk.task(root, 0)
    shown = await walk.show(node)
    return {"root": shown, "tasks": walk.seen, "hidden": walk.hidden, "seconds": walk.slices.seconds}


async def parked(engine: Engine, limit: int = 50) -> dict[str, Any]:
    """Handlers without a task: those that wait for a message, and for room in a queue.

    `total` counts all; of very many only some are looked at: `looked_at`, which the counts of `groups` add up to.
    (A look leaves a frame object, some 150 bytes, with each frame for as long as that lives.)
    """
    slices = Slices()
    groups: dict[tuple[str, tuple[Place, ...]], list[Any]] = {}
    expected = engine.pool.at_rest + len(engine.pool.parked)
    step = max(1, expected // _LOOKS)
    total = seen = 0
    for connection, awaited in _without_task(engine):
        await slices.breathe()
        if connection is None:
            continue
        total += 1
        if total % step:
            continue
        stack = places(awaited)
        seen += 1
        group = groups.setdefault((label(connection.protocol), stack), [0])
        group[0] += 1
        if len(group) <= _EXAMPLES and (known := identity(connection)) is not None:
            group.append(known)
    largest = sorted(groups.items(), key=lambda item: -item[1][0])
    shown = [
        {"handler": handler, "count": group[0], "connections": group[1:], "stack": await show(stack)}
        for (handler, stack), group in largest[:limit]
        if stack
    ]
    hidden = sum(group[0] for _, group in largest[limit:])
    return {"total": total, "looked_at": seen, "groups": shown, "hidden": hidden, "seconds": slices.seconds}


def _without_task(engine: Engine) -> Iterator[tuple[Connection | None, Any]]:
    """Connections whose handler has no task, and its coroutine; None for others, so that whoever asks may breathe."""
    for each in list(engine.pool.parked):
        if isinstance(each.job, Connection):
            yield each.job, each.coroutine
    for connection in engine:
        coroutine = getattr(connection, "_coroutine", None)
        if coroutine is not None and connection._parked():  # type: ignore[attr-defined]
            yield connection, coroutine
        else:
            yield None, None


# ------------------------------------------------------------------- as text


def tasks_as_text(document: dict[str, Any]) -> str:
    """The tree, and the parked handlers, for a terminal or a log."""
    lines = [f"{document['tasks']:,} tasks"]
    _write(document["root"], "", lines, last=True)
    waiting = document.get("parked") or {"total": 0, "groups": []}
    lines += ["", f"{waiting['total']:,} handlers wait without a task"]
    for group in waiting["groups"]:
        lines.append(f"  {group['count']:,} of {group['handler']}")
        lines += [f"      {_where(frame)}" for frame in group["stack"][-6:]]
    return "\n".join(lines) + "\n"


def _write(node: dict[str, Any], indent: str, lines: list[str], *, last: bool) -> None:
    more = f"  and {node['count'] - 1:,} more like this" if node["count"] > 1 else ""
    lines.append(f"{indent}{'└─ ' if last else '├─ '}{node['name']}{more}")
    inner = indent + ("   " if last else "│  ")
    if node["stack"]:
        lines.append(f"{inner}   {_where(here(node['stack']))}")
    for nursery in node["nurseries"]:
        if nursery["cancelled"]:
            lines.append(f"{inner}(cancelled)")
        for number, child in enumerate(nursery["children"], 1):
            _write(child, inner, lines, last=number == len(nursery["children"]) and not nursery["hidden"])
        if nursery["hidden"]:
            lines.append(f"{inner}└─ … {nursery['hidden']:,} more tasks")


def _where(frame: dict[str, Any]) -> str:
    return f"{frame['file']}:{frame['line']} {frame['function']}  {frame['code']}"
