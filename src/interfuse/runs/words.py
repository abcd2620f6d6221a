"""Numbers and words, the same on pages, in tables and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

UNKNOWN = "–"
ALONE_IN_A_BATCH = "a batch of one row (batch_size) has no variance to normalise by"
PREFIXES = ("", "k", "M", "G", "T", "P", "E")
STEP = 1000.0


def number(value: float, decimals: int) -> str:
    """A number with so many decimals: ``1,234.5``, ``−0.3``, and ``0.0`` without a sign."""
    if math.isnan(value):
        return UNKNOWN
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def percent(value: float) -> str:
    """An accuracy between 0 and 1 as a percentage: ``95.3 %``."""
    return UNKNOWN if math.isnan(value) else f"{bare_percent(value)} %"


def bare_percent(value: float) -> str:
    """The same without the sign, for cells under a heading that has it."""
    return number(100 * value, 1)


def with_spread(mean: float, std: float, decimals: int, scale: float = 1.0) -> str:
    """Mean ± standard deviation, both with the same decimals; the mean alone where the other is unknown."""
    if math.isnan(mean) or math.isnan(std):
        return number(scale * mean, decimals)
    return f"{number(scale * mean, decimals)} ± {number(scale * std, decimals)}"


def percents(mean: float, std: float = math.nan) -> str:
    """Shares as percentages without the sign, for cells under a heading that has it: ``95.3 ± 0.2``."""
    return with_spread(mean, std, 1, 100.0)


def counts(mean: float, std: float = math.nan) -> str:
    """Whole numbers; a mean of them has a decimal where it needs one."""
    whole = math.isclose(mean, round(mean)) if math.isfinite(mean) else True
    return _unless_alike(mean, std, 0 if whole and not std > 0 else 1)


def decimals(mean: float, std: float = math.nan) -> str:
    """Numbers such as seconds, with one decimal."""
    return _unless_alike(mean, std, 1)


def size(mean: float, std: float = math.nan) -> str:
    """Bytes: ``0``, ``24 B``, ``1.73 kB``, ``613.4 MB``, ``44.3 ± 0.2 MB``; 1 kB is 1000 B."""
    return in_unit(mean, std, "B")


def operations(mean: float, std: float = math.nan) -> str:
    """Floating-point operations: ``498 GFLOP``."""
    return in_unit(mean, std, "FLOP")


def in_unit(mean: float, std: float, unit: str) -> str:
    """With the prefix that leaves one to three places before the point, and three figures or more."""
    if math.isnan(mean) or mean == 0:
        return UNKNOWN if math.isnan(mean) else "0"
    factor, prefix = prefix_of([mean])
    shown = max(1.0, mean / factor) if prefix else mean
    places = 0 if not prefix and mean == int(mean) else max(1, 2 - math.floor(math.log10(shown)))
    return f"{_unless_alike(mean, std, places, 1 / factor)} {prefix}{unit}"


def prefix_of(values: Iterable[float]) -> tuple[float, str]:
    """The power of 1000 in which the largest of these values is at least 1, and the prefix that stands for it."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    power = 0
    while power < len(PREFIXES) - 1 and largest / STEP**power >= STEP - 0.05:
        power += 1
    return STEP**power, PREFIXES[power]


def _unless_alike(mean: float, std: float, decimals: int, scale: float = 1.0) -> str:
    """The mean alone where all have the same, as of bytes."""
    return with_spread(mean, math.nan if std == 0 else std, decimals, scale)


def capital(words: str) -> str:
    """The words with a capital letter at their beginning."""
    return words[:1].upper() + words[1:]


def counted(number: int, one: str) -> str:
    """So many of something: ``1 row``, ``1,230 rows``."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"
