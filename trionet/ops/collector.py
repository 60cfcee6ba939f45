"""The garbage collector makes the latency tail: a full collection walks every object of every connection.

What trionet does about it: one collected object for each idle connection, and no cycles per message. What is left
is a policy, applied by `serve` while it runs:

* `gc.freeze` once everything is imported: code, classes and modules are never walked again;
* a higher threshold of the youngest generation, so that a burst of new connections does not cause a chain of
  collections. Cycles that handlers make are still collected, in bounded memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_policy"]

THRESHOLD = 10_000


@contextmanager
def collector_policy(threshold: int = THRESHOLD) -> Iterator[None]:
    """Apply the policy for the length of the block. `threshold`: new objects, net, before a young collection."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(threshold, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
