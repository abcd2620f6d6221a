"""Numbers and words, the same on pages, in tables and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

UNKNOWN = "–"
ALONE_IN_A_BATCH = "a batch of one row (batch_size) has no variance to normalise by"


def percent(value: float) -> str:
    """An accuracy between 0 and 1 as a percentage: ``95.3 %``."""
    return UNKNOWN if math.isnan(value) else f"{100 * value:.1f} %"


def bare_percent(value: float) -> str:
    """The same without the sign, for cells under a heading that has it."""
    return UNKNOWN if math.isnan(value) else f"{100 * value:.1f}"


def megabytes(size: float) -> str:
    """Bytes in units of 10^6, with three figures or more: ``0.0554``, ``8.85``, ``1,234.5``."""
    if math.isnan(size):
        return UNKNOWN
    value = size / 1e6
    if value == 0:
        return "0"
    decimals = max(1, 2 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def capital(words: str) -> str:
    """The words with a capital letter at their beginning."""
    return words[:1].upper() + words[1:]


def numbers(clients: Sequence[int], most: int = 8) -> str:
    """Clients by number, the first of many: ``client 3``, ``clients 3 and 5``."""
    if len(clients) == 1:
        return f"client {clients[0]}"
    shown = [str(client) for client in (clients if len(clients) <= most else clients[: most - 1])]
    if len(clients) > most:
        shown.append(f"{len(clients) - len(shown):,} more")
    return f"clients {', '.join(shown[:-1])} and {shown[-1]}"


def counted(number: int, one: str) -> str:
    """So many of something: ``1 row``, ``1,230 rows``."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"
