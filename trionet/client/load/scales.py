"""Figures as people read them, and the axes of a plot: where its ticks are and where a value lies on it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

#: The steps between ticks on a linear axis, for each power of ten.
_STEPS: Final = (1, 2, 2.5, 5, 10)
#: The same in seconds, where people count by sixty.
_SECONDS: Final = (
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
)

_ABSENT = "–"  # noqa: RUF001  # a dash that is as wide as a digit


def number(value: float | None) -> str:
    """``12,345``, or a dash for what was not measured; two decimals below ten, one below a hundred."""
    if value is None:
        return _ABSENT
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def short(value: float | None) -> str:
    """``12.3k``: three digits and a prefix."""
    if value is None:
        return _ABSENT
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return _three(value / size) + prefix
    return _three(value)


def latency(microseconds: float | None) -> str:
    """``850 µs``, ``1.24 ms``, ``12.4 s``: three digits in the unit that suits."""
    if microseconds is None:
        return _ABSENT
    if microseconds >= 999_500:
        return f"{_three(microseconds / 1e6)} s"
    return f"{_three(microseconds / 1e3)} ms" if microseconds >= 999.5 else f"{_three(microseconds)} µs"


def seconds(value: float | None) -> str:
    """``0.5 s``, ``45 s``, ``2 min``, ``2:30 min``, ``1:05 h``: a duration, or a time since the beginning."""
    if value is None:
        return _ABSENT
    if value < 59.95:
        return f"{_three(round(value, 2))} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02} h"
    return f"{minutes}:{rest:02} min" if rest else f"{minutes} min"


def size(bytes_: float | None) -> str:
    """``1.5 MiB``: three digits and a binary prefix."""
    if bytes_ is None:
        return _ABSENT
    for exponent, prefix in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if bytes_ >= 1024**exponent:
            return f"{_three(bytes_ / 1024**exponent)} {prefix}B"
    return f"{bytes_:.0f} B"


def percent(share: float) -> str:
    """``99.9 %`` for 0.999, with as many digits as the share has nines and no more."""
    digits = max(1, math.ceil(-math.log10(max(1 - share, 1e-9)) - 2 - 1e-9))
    text = f"{share * 100:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def _three(value: float) -> str:
    """Return `value` with three digits, without the zeros at the end of a fraction."""
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Axis(NamedTuple):
    """One direction of a plot: from `low` to `high`, `ticks` at round values with what to write beside them."""

    low: float
    high: float
    logarithmic: bool
    ticks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        """Return how far `value` lies along the axis, 0 to 1; beyond its ends: the end."""
        if self.logarithmic:
            place = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, 0.0), 1.0)


def linear(highest: float, label: Callable[[float], str], low: float = 0.0, ticks: int = 5) -> Axis:
    """Return an axis from `low` to the first tick that is not below `highest`."""
    span = max(highest - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / ticks))
    step = next(power * step for step in _STEPS if power * step * ticks >= span * (1 - 1e-9))
    count = max(1, math.ceil((span - 1e-9 * span) / step))
    values = [low + step * number for number in range(count + 1)]
    return Axis(low, values[-1], False, [(value, label(value)) for value in values])


def timeline(end: float, ticks: int = 7) -> Axis:
    """Return an axis of seconds from 0 to `end` exactly: a run ends where it ends."""
    end = max(end, 0.1)
    step = next((step for step in _SECONDS if step * ticks >= end), 86400.0 * math.ceil(end / ticks / 86400))
    return Axis(0.0, end, False, [(step * n, seconds(step * n)) for n in range(int(end / step + 1e-9) + 1)])


def latencies(values: Iterable[float]) -> Axis:
    """Return an axis of microseconds that holds `values`: logarithmic when they are orders of magnitude apart."""
    values = [value for value in values if value > 0]
    low, high = min(values, default=1), max(values, default=1)
    if high < 20 * low:
        return linear(high, latency)
    return logarithmic(low, high, latency)


def logarithmic(low: float, high: float, label: Callable[[float], str]) -> Axis:
    """Return an axis between round values around `low` and `high`, both above 0 and apart."""
    decades = math.log10(high / low)
    mantissas = (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 3.5 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    values = [mantissa * 10.0**power for power in powers for mantissa in mantissas]
    first = max((value for value in values if value <= low * 1.001), default=values[0])
    last = min((value for value in values if value >= high * 0.999), default=values[-1])
    shown = [value for value in values if first <= value <= last]
    return Axis(first, last, True, [(value, label(value)) for value in shown])


def percentiles(count: int) -> Axis:
    """Return an axis of log10(1 / (1 - share)) on which every nine takes the same room, as far as `count` tells."""
    end = max(math.log10(max(count, 1)), 2.0)
    ticks = [(nines(0.5), percent(0.5))]
    for place in range(1, int(end + 1e-9) + 1):
        # Eight letters beside eight letters: where there are many nines, every second one has a label.
        named = place <= 2 or place % 2 == 0 or end < 4.7
        ticks.append((place, percent(1 - 10.0**-place) if named else ""))
    return Axis(0.0, end, False, ticks)


def nines(share: float) -> float:
    """Return where a share lies on the axis of `percentiles`: 0.9 at 1, 0.99 at 2, and 1 nowhere."""
    return -math.log10(max(1 - share, 1e-12))
