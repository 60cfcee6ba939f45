"""`trickle`: a few messages a second, each over a link chosen at random: most links are idle for long."""

from __future__ import annotations

from typing import Any

from trionet.client.load.scenarios.rate import Rate

__all__ = ["Trickle"]


class Trickle(Rate):
    """See above."""

    def choose(self) -> Any:
        return self.pick()
