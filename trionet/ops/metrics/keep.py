"""What workers that are gone had counted, in a file: the admin process may be killed, and counters must not go back."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from trionet.ops.metrics.totals import Totals

__all__ = ["Keep"]

log = logging.getLogger("trionet.ops")


class Keep:
    """Of `totals`, at `path`, in a folder that is ours alone. A file that cannot be had is no reason to fail."""

    def __init__(self, totals: Totals, path: Path) -> None:
        self._totals = totals
        self._path = path
        try:
            totals.restore(json.loads(path.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("counters of workers that are gone are lost: %s: %s", path, error)

    def save(self) -> None:
        """Write it, whole or not at all. Milliseconds, whenever a worker has gone."""
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps(self._totals.to_json()))
            new.replace(self._path)
        except OSError as error:
            log.warning("counters of workers that are gone cannot be kept: %s", error)
