"""What is done with the connections, one scenario a file. `make_scenario` finds it by name.

A process has one `Scenario`. Its methods are called from the connections' jobs, so none may wait, except for those that
drive the run: `ramp`, then `measure`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionet.client.load.scenarios.base import Scenario as Scenario

if TYPE_CHECKING:
    from trionet.client.load.worker import Worker

__all__ = ["Scenario", "make_scenario"]


def make_scenario(worker: Worker) -> Scenario:
    """The scenario that the options name."""
    from trionet.client.load.scenarios.echo import Echo
    from trionet.client.load.scenarios.fanout import Fanout
    from trionet.client.load.scenarios.rate import Rate
    from trionet.client.load.scenarios.storm import Storm
    from trionet.client.load.scenarios.trickle import Trickle

    kinds = {
        "idle": Scenario,
        "trickle": Trickle,
        "echo": Echo,
        "rate": Rate,
        "fanout": Fanout,
        "storm": Storm,
    }
    return kinds[worker.options.scenario](worker)
