"""The state of a server as text, for the log: what SIGUSR1 asks for."""

from __future__ import annotations

from typing import Any

import attrs

from trionet.ops.debug.tasks import parked, tasks_as_text, tree
from trionet.server import Server

__all__ = ["state_dump"]


async def state_dump(server: Server) -> str:
    """Every counter, the tasks, and where handlers wait that have none."""
    tasks = {**await tree(), "parked": await parked(server.engine)}
    return "\n".join([*_lines(attrs.asdict(server.statistics()), ""), tasks_as_text(tasks)])


def _lines(value: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, each in value.items():
        if isinstance(each, dict) and each:
            lines += [f"{indent}{name}", *_lines(each, indent + "  ")]
        else:
            lines.append(
                f"{indent}{name} {each:.6g}" if isinstance(each, float) else f"{indent}{name} {each}"
            )
    return lines
