"""Numbers and sentences, the same on the page and in the terminal."""

from __future__ import annotations

import math

from interfuse.references import short_name
from interfuse.runs import Summary
from interfuse.runs.summary import NO_COLLABORATION, NOTHING, ClientFacts

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


def capital(words: str) -> str:
    """The words with a capital letter at their beginning."""
    return words[:1].upper() + words[1:]


def with_article(word: str) -> str:
    """The word as it is spoken: ``an accuracy``, ``an R²``, ``a token accuracy``."""
    return f"{'an' if word[:1] in 'aeioAEFHILMNORSX' else 'a'} {word}"


def title(summary: Summary) -> str:
    """What ran: method, data, clients, rounds, seed."""
    data = ", ".join(short_name(name) for name in summary.data.split(", "))
    clients, rounds = (
        f"{n} {one}{'' if n == 1 else 's'}" for n, one in ((len(summary.clients), "client"), (summary.rounds, "round"))
    )
    return f"{short_name(summary.method)} on {data}, {clients}, {rounds}, seed {summary.seed}"


def architecture(client: ClientFacts, summary: Summary) -> str:
    """What a client's model is, and its data set where not all have the same."""
    several = len({other.data for other in summary.clients}) > 1
    return f"{client.architecture}, {client.data}" if several else client.architecture


def by_name(summary: Summary) -> dict[str, Summary]:
    """The run and its references by the names they go under."""
    beside = {name.title(): summary.beside[name] for name in NO_COLLABORATION if name in summary.beside}
    return {short_name(summary.method): summary} | beside


def headline(summary: Summary) -> str:
    """One sentence on what collaboration bought, beside Local and Pooled where they ran."""
    alone, together = (summary.local or NOTHING).mean_composition, summary.mean_composition
    pairs = 0 if summary.composition is None else summary.composition.size
    parts = []
    gain = math.nan
    if pairs > 1 and not math.isnan(together) and (summary.composes or summary.is_reference):
        part = (
            f"over all {pairs:,} pairs of a base block and a modular block the mean {summary.score} is "
            f"{percent(together)}"
        )
        if not math.isnan(alone):
            part += f", beside {percent(alone)} for blocks of clients that trained alone"
            gain = _points(together) - _points(alone)
        parts.append(part)
    part, own_gain = _on_own_data(summary)
    if part:
        parts.append(part)
    if not parts:
        return f"No {summary.score} has been measured yet."
    sentence = "; ".join(parts) + "."
    gain = own_gain if math.isnan(gain) else gain
    if summary.is_reference or math.isnan(gain):
        return capital(sentence)
    return f"{_bought(gain)}: {sentence}"


def _on_own_data(summary: Summary) -> tuple[str, float]:
    """The score on own test shares beside the references, or on the common test set where own test shares are empty."""
    own = not math.isnan(summary.own_accuracy.mean)
    value, *beside = (
        (scores.own_accuracy if own else scores.global_accuracy).mean
        for scores in (summary, *(summary.beside.get(name) or NOTHING for name in NO_COLLABORATION))
    )
    if math.isnan(value):
        return "", math.nan
    others = dict(zip(NO_COLLABORATION, beside, strict=True))
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
