"""A look inside a running server: tasks, connections, handlers, memory, processor. Never there unless asked for.

commands      what a worker answers: `install`
pages         what people and programs see: `routes`, `DebugProtocol`; guard: who may
connections   the table of them; one: a single one, kick, broadcast
tasks         Trio's tree, and handlers without a task; stacks: where something waits
timing        a clock around jobs; profile: samples of the processor; heap: tracemalloc, types
slices        looking at very many without keeping anybody waiting; copy: at what cannot be sliced
"""

from __future__ import annotations

from trionet.ops.debug.commands import install as install
from trionet.ops.debug.pages import DebugProtocol as DebugProtocol
from trionet.ops.debug.pages import routes as routes

__all__ = ["DebugProtocol", "install", "routes"]
