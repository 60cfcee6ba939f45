"""What one check says."""

from __future__ import annotations

from typing import Any, Literal

import attrs

__all__ = ["Finding", "Fix", "Unit", "Verdict", "size"]

#: ok; warn: works, but not well, or not always; fail: so many connections do not fit; unknown: could not be read.
Verdict = Literal["ok", "warn", "fail", "unknown"]

#: Of `have` and `need` where they are numbers.
Unit = Literal["", "bytes", "pages", "cpus"]


def size(number: float) -> str:
    """A number of bytes as people read it."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"


@attrs.frozen
class Fix:
    """One line that would change it. `kind` says where it belongs.

    sysctl: `key` = `value`; nofile: the limit on open files of the service; pids: the limit on its threads; instead:
    options of `trionet serve` that do without the fix of the kind `key`; hand: `value` is a sentence, or several.
    """

    kind: Literal["sysctl", "nofile", "pids", "instead", "hand"]
    key: str
    value: str


@attrs.frozen(kw_only=True)
class Finding:
    """One row of the report. `have` and `need` are numbers in `unit`, words, or None where nothing is to be said."""

    name: str
    verdict: Verdict
    why: str
    have: int | str | None = None
    need: int | str | None = None
    unit: Unit = ""
    fixes: tuple[Fix, ...] = ()
    group: str = ""  # the heading it stands under; `report.examine` fills it in

    def to_json(self) -> dict[str, Any]:
        """The row as it stands in the JSON document, with each line that would fix it now."""
        document = attrs.asdict(self, filter=attrs.filters.exclude("fixes"))
        document["fixes"] = [
            {
                **attrs.asdict(fix),
                "now": f'sysctl -w {fix.key}="{fix.value}"' if fix.kind == "sysctl" else None,
            }
            for fix in self.fixes
        ]
        return document
