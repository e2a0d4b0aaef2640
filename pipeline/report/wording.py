"""Numbers as the report writes them."""

import math
from collections.abc import Sequence

import numpy as np

MISSING = "–"

ROUNDING_ERROR = 1e-12
"""Below this a value is what is left of the means of equal numbers."""

SECONDS_OF_UNITS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}


def number(value: float | None, decimals: int = 4) -> str:
    """So many decimals, or two significant digits where those would be lost; a dash where there is no number."""
    if value is None or math.isnan(value):
        return MISSING
    if abs(value) < ROUNDING_ERROR:
        return f"{0:.{decimals}f}"
    return f"{value:.2g}" if abs(value) < 10 ** (1 - decimals) else f"{value:.{decimals}f}"


def precise(value: float) -> str:
    """Six significant digits, for numbers of any size whose small changes matter; a dash for NaN."""
    return MISSING if math.isnan(value) else f"{value:.6g}"


def signed(value: float) -> str:
    """`number` with its sign."""
    return f"+{number(value)}" if value > -ROUNDING_ERROR else number(value)


def interval(low: float, high: float) -> str:
    """[low, high], signed."""
    return f"[{signed(low)}, {signed(high)}]"


def count(value: float) -> str:
    """A whole number with its thousands set apart."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """1 h 02 min, 5 min 54 s, 12 s."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def time_unit(longest_seconds: float) -> str:
    """The unit of SECONDS_OF_UNITS in which a time is shortest to write and at least 2."""
    fitting = [unit for unit, seconds in SECONDS_OF_UNITS.items() if longest_seconds >= 2 * seconds]
    return fitting[-1] if fitting else "seconds"


def evenly_spaced(length: int, most: int) -> list[int]:
    """At most `most` indices of `length`, evenly apart, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, length - 1, min(length, most))})


def listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
