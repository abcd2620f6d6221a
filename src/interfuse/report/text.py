"""Numbers and sentences, the same on the page and in the terminal."""

from __future__ import annotations

import math

from interfuse.references import short_name
from interfuse.report.summary import NO_COLLABORATION, Json, composes, number_of_clients, reference, scores

UNKNOWN = "–"
METRICS = {"balanced-accuracy": "balanced accuracy", "auroc": "AUROC", "calibration-error": "calibration error"}
"""Metrics with one number a client, as people call them."""


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


def method_name(summary: Json) -> str:
    """The method's name in one word, also where it is known by a path."""
    return short_name(str(summary.get("method")))


def title(summary: Json) -> str:
    """What ran: method, data, clients, rounds, seed."""
    clients, rounds, data = number_of_clients(summary), summary.get("rounds"), _short_names(str(summary.get("data")))
    return (
        f"{method_name(summary)} on {data}, {clients} client{'' if clients == 1 else 's'}, "
        f"{rounds} round{'' if rounds == 1 else 's'}, seed {summary.get('seed')}"
    )


def _short_names(data: str) -> str:
    """The names of data sets, each without its path."""
    return ", ".join(short_name(name) for name in data.split(", "))


def is_reference(summary: Json) -> bool:
    """Whether this is Local or Pooled itself."""
    return summary.get("method") in NO_COLLABORATION


def headline(summary: Json) -> str:
    """One sentence on what collaboration bought, beside Local and Pooled where they ran."""
    local = reference(summary, "local")
    found, alone = scores(summary), scores(local or {})
    pairs = 0 if found.composition is None else found.composition.size
    parts = []
    gain = math.nan
    if pairs > 1 and not math.isnan(found.mean_composition) and (composes(summary) or is_reference(summary)):
        part = (
            f"over all {pairs:,} pairs of a base block and a modular block the mean accuracy is "
            f"{percent(found.mean_composition)}"
        )
        if not math.isnan(alone.mean_composition):
            part += f", beside {percent(alone.mean_composition)} for blocks of clients that trained alone"
            gain = _points(found.mean_composition) - _points(alone.mean_composition)
        parts.append(part)
    part, own_gain = _on_own_data(summary)
    if part:
        parts.append(part)
    if not parts:
        return "No accuracy has been measured yet."
    sentence = "; ".join(parts) + "."
    gain = own_gain if math.isnan(gain) else gain
    if is_reference(summary) or math.isnan(gain):
        return sentence[0].upper() + sentence[1:]
    return f"{_bought(gain)}: {sentence}"


def _on_own_data(summary: Json) -> tuple[str, float]:
    """Own accuracy beside the references, or accuracy on the common test set where own test shares are empty."""
    found, own = scores(summary), True
    if math.isnan(found.own.mean):
        own = False
    value = found.own.mean if own else found.common.mean
    if math.isnan(value):
        return "", math.nan
    others = {}
    for name in NO_COLLABORATION:
        beside = scores(reference(summary, name) or {})
        others[name] = beside.own.mean if own else beside.common.mean
    known = [f"{percent(other)} for {name.title()}" for name, other in others.items() if not math.isnan(other)]
    where = "on their own test shares" if own else "on the common test set"
    text = f"{where} clients reach {percent(value)}" + (f", beside {' and '.join(known)}" if known else "")
    return text, _points(value) - _points(others["local"])


def _points(value: float) -> float:
    """Percentage points as printed, so that the difference of two printed numbers is the printed difference."""
    return value if math.isnan(value) else round(100 * value, 1)


def _bought(gain: float) -> str:
    gain = round(gain, 1)
    if gain == 0:
        return "Collaboration changed nothing"
    unit = "point" if abs(gain) == 1 else "points"
    return f"Collaboration {'bought' if gain > 0 else 'cost'} {abs(gain):.1f} {unit}"
