"""Families as text that Prometheus reads: its own format 0.0.4, and OpenMetrics 1.0.

What differs: OpenMetrics names a family without its suffix, has kinds for information, says when counters began
(`_created`) and which unit a name ends in, and ends with a line that says so, so that a cut answer is not taken for
a whole one. https://prometheus.io/docs/instrumenting/exposition_formats/ and RFC draft "OpenMetrics" 1.0.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from trionet.errors import ConfigurationError
from trionet.net.histogram import Histogram
from trionet.ops.metrics.model import Family

__all__ = ["OPENMETRICS_TYPE", "TEXT_TYPE", "render", "wants_openmetrics"]

TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z")
_SUFFIX: Final = {"counter": "_total", "info": "_info"}


def wants_openmetrics(accept: str) -> bool:
    """Whether a request's `Accept` header prefers OpenMetrics to the plain format."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in accept.split(","):
        kind, *parameters = [part.strip().lower() for part in item.split(";")]
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if kind in best:
            best[kind] = max(best[kind], quality)
        elif kind in {"*/*", "text/*"}:
            best["text/plain"] = max(best["text/plain"], quality)
    return (
        best["application/openmetrics-text"] > 0
        and best["application/openmetrics-text"] >= best["text/plain"]
    )


def render(families: Iterable[Family], *, openmetrics: bool = False, created: float = 0.0) -> bytes:
    """The text of `families`. `created`: when the counters began (Unix time), for OpenMetrics; 0: not known.

    Raises `ConfigurationError` for names that the formats do not allow, and for one that occurs twice.
    """
    lines: list[str] = []
    seen: set[str] = set()
    for family in families:
        if not _NAME.match(family.name) or family.name.endswith(("_total", "_created", "_info", "_bucket")):
            raise ConfigurationError(f"not a metric's name: {family.name!r}")
        if family.name in seen:
            raise ConfigurationError(f"metric {family.name} is there twice")
        seen.add(family.name)
        if family.samples:
            lines += _head(family, openmetrics)
            for labels, value in family.samples:
                lines += _sample(family, labels, value, created if openmetrics else 0.0)
    if openmetrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _head(family: Family, openmetrics: bool) -> Iterator[str]:
    name, kind = family.name, str(family.kind)
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
    else:
        name += _SUFFIX.get(kind, "")
        kind = "gauge" if kind == "info" else kind
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    if openmetrics and family.unit:
        yield f"# UNIT {name} {family.unit}"


def _sample(family: Family, labels: Mapping[str, str], value: Any, created: float) -> Iterator[str]:
    pairs = [_pair(name, text) for name, text in labels.items()]
    shown = _braces(pairs)
    if isinstance(value, Histogram):
        bounds = [*family.bounds, math.inf]
        counts = value.buckets(bound * family.scale for bound in bounds)
        for bound, count in zip(bounds, counts, strict=True):
            yield f"{family.name}_bucket{_braces([*pairs, _pair('le', _number(float(bound)))])} {count}"
        yield f"{family.name}_sum{shown} {_number(value.sum / family.scale)}"
        yield f"{family.name}_count{shown} {counts[-1]}"
    else:
        yield f"{family.name}{_SUFFIX.get(family.kind, '')}{shown} {_number(value)}"
    if created and family.kind in {"counter", "histogram"}:
        yield f"{family.name}_created{shown} {_number(created)}"


@lru_cache(4096)  # the same ones are written at each scrape
def _pair(name: str, value: str) -> str:
    if not _LABEL.match(name):
        raise ConfigurationError(f"not a label's name: {name!r}")
    text = str(value).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{text}"'


def _braces(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _number(value: float) -> str:
    if value != value:  # noqa: PLR0124 - only NaN is not itself
        return "NaN"
    if value in {math.inf, -math.inf}:
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
