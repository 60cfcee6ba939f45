"""The application's families, with distrust: a mistake in them must not take the server's own numbers away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from trionet.net.histogram import Histogram
from trionet.net.limited import LimitedLog
from trionet.ops.metrics.exposition import _LABEL, _NAME
from trionet.ops.metrics.model import Family

__all__ = ["Own"]

log = logging.getLogger("trionet.ops")

_SUFFIXES: Final = ("_total", "_created", "_info", "_bucket", "_sum", "_count")


class Own:
    """Asks `function(server)`. `failures`: mistakes found so far, logged once in ten seconds at most."""

    def __init__(self) -> None:
        self.failures = 0
        self._limited = LimitedLog()

    def ask(
        self, function: Callable[[Any], Iterable[Family]], server: Any, taken: Collection[str]
    ) -> list[Family]:
        """Return the families that can be shown. `taken`: names that they may not have."""
        found: list[Family] = []
        names = set(taken)
        if self._limited.pending:
            self._limited.flush()
        try:
            for family in function(server):
                why = _wrong(family, names)
                if why is None:
                    names.add(family.name)
                    found.append(family)
                else:
                    self._complain("%s", why)
        except Exception as error:  # noqa: BLE001 - the application's; it is logged
            self._complain("the function that returns them failed", error=error)
        return found

    def _complain(self, message: str, *args: object, error: BaseException | None = None) -> None:
        self.failures += 1
        self._limited.log(log, logging.ERROR, "metrics of the application: " + message, *args, error=error)


def _wrong(family: Any, names: Collection[str]) -> str | None:
    """What is wrong with a family; None: nothing. Its labels become text."""
    if not isinstance(family, Family):
        return f"not a Family: {family!r:.100}"
    name: Any = family.name
    if not isinstance(name, str) or not _NAME.match(name) or name.endswith(_SUFFIXES):
        return f"not a metric's name: {name!r:.100}"
    if name in names:
        return f"metric {name} is there twice"
    if family.kind not in {"counter", "gauge", "histogram", "info"}:
        return f"{name}: there is no kind {family.kind!r:.100}"
    if family.unit and not name.endswith(f"_{family.unit}"):
        return f"{name}: a name must end in its unit, {family.unit!r:.100}"
    wanted: Any = Histogram if family.kind == "histogram" else (int, float)
    samples = []
    for labels, value in family.samples:
        if not isinstance(value, wanted):
            return f"{name}: not a value: {value!r:.100}"
        label: Any
        for label in labels:
            if not isinstance(label, str) or not _LABEL.match(label) or label == "le":
                return f"{name}: not a label's name: {label!r:.100}"
        samples.append(({label: str(text) for label, text in labels.items()}, value))
    family.samples = samples
    return None
