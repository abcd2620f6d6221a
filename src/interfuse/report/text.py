"""Numbers and sentences, the same on the page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from interfuse.evaluation import Evidence, Side
from interfuse.references import short_name
from interfuse.runs import Summary
from interfuse.runs.summary import NO_COLLABORATION, ClientFacts, Scores, mean, std
from interfuse.runs.words import UNKNOWN, bare_percent, capital, counted, percent, size

__all__ = [
    "EXPLAINED",
    "METRICS",
    "UNKNOWN",
    "architecture",
    "bare_percent",
    "by_name",
    "by_rows",
    "capital",
    "figures",
    "measured",
    "number",
    "over_clients",
    "percent",
    "scores",
    "sides",
    "size",
    "title",
    "told_by",
    "with_article",
]

METRICS = {
    "balanced-accuracy": "balanced accuracy",
    "accuracy-with-prior": "accuracy with prior",
    "absent-recall": "recall of absent classes",
    "present-recall": "recall of present classes",
    "auroc": "AUROC",
    "calibration-error": "calibration error",
}
"""Built-in metrics with one number a client, as people call them; they are shown as percentages."""
EXPLAINED = {
    "accuracy-with-prior": "Accuracy with prior: the logarithm of how often the client has each class in training is "
    "added to its scores, on its own test share; where a method’s scores are distances it means little.",
    "absent-recall": "Absent classes are those of which a client has no training row; a client that has all has none.",
    "calibration-error": "The calibration error compares softmax confidence with accuracy in 15 bins, less is better; "
    "where a method’s scores are distances it means little.",
}
"""What a reader has to know of a metric beside its name."""
_ON_THE_COMMON_SET = ("absent-recall", "present-recall")


def number(value: float) -> str:
    """A number of unknown unit with four figures."""
    return UNKNOWN if math.isnan(value) else f"{value:.4g}"


def figures(mean: float, std: float = math.nan) -> str:
    """Mean and standard deviation of numbers of unknown unit."""
    return number(mean) if math.isnan(std) else f"{number(mean)} ± {number(std)}"


def measured(summary: Summary) -> dict[str, str]:
    """What people call the metrics of a run that have one number a client, by name; the user's own come last."""
    own = {name: name for name in summary.metrics if name not in METRICS and name != "recall"}
    return {name: text for name, text in METRICS.items() if name in summary.metrics} | own


def told_by(metric: str) -> Side:
    """The side that a metric is read off where one number is all there is room for."""
    return "global" if metric in _ON_THE_COMMON_SET else "own"


def scores(summary: Summary) -> list[tuple[str, str, dict[str, str]]]:
    """What was measured: its name, the value with what stands behind it, and the values of what runs beside it."""
    kinds: Mapping[Evidence, tuple[str, Callable[[Scores], Sequence[float]]]] = {
        "own": (f"own {summary.score}", lambda s: s.own_accuracy.per_client),
        "others": (f"{summary.score} on others’ test rows", lambda s: s.others_accuracy.per_client),
        "global": (f"global {summary.score}", lambda s: s.global_accuracy.per_client),
        "compositions": ("mean over all compositions", _of_pairs),
    }
    (_, first), *beside = by_name(summary).items()
    found = []
    for kind, (name, values) in kinds.items():
        known = [value for value in values(first) if not math.isnan(value)]
        if known:
            what = counted(len(known), "pair" if kind == "compositions" else "client")
            if first.evaluated:
                what = f"{len(known):,} of {counted(len(first.clients), 'client')}"
            rows = f", {counted(first.rows[kind], 'test row')}" if kind in first.rows else ""
            text = f"{percent(mean(known))} ± {bare_percent(std(known))} ({what}{rows})"
            found.append((name, text, {other: percent(mean(values(of))) for other, of in beside}))
    return found


def by_rows(summary: Summary) -> str:
    """The own score with every test row counting the same, and the round that it would choose itself, in words."""
    if math.isnan(summary.own_by_samples):
        return ""
    text = f"{percent(summary.own_by_samples)} after the last round"
    best = summary.best_on_test
    if best is None:
        return text
    return (
        f"{text}; {percent(best.own_by_samples)} after round {best.round}, which is chosen on the test rows: too good"
    )


def over_clients(summary: Summary) -> str:
    """Whom means are over: of a large federation not all clients are evaluated."""
    some = f"{len(summary.evaluated):,} of {len(summary.clients):,} " if summary.evaluated else ""
    return f"{some}clients"


def _of_pairs(found: Scores) -> Sequence[float]:
    return [] if found.composition is None else [float(value) for value in found.composition.flat]


def with_article(word: str) -> str:
    """The word as it is spoken: ``an accuracy``, ``an R²``, ``a token accuracy``."""
    return f"{'an' if word[:1] in 'aeioAEFHILMNORSX' else 'a'} {word}"


def title(summary: Summary) -> str:
    """What ran: method, data, clients, rounds, seed. Parties have data of their own, which has no name here."""
    data = ", ".join(short_name(name) for name in summary.data.split(", "))
    method, rounds = short_name(summary.method), counted(summary.rounds, "round")
    if not summary.parties or summary.simulated:
        clients = counted(len(summary.clients), "client") + (" at simulated nodes" if summary.simulated else "")
        return f"{method} on {data}, {clients}, {rounds}, seed {summary.seed}"
    tested = {"shared": f"tested on {data}", "own": "each tested on its own data", "none": "not tested"}
    between = "1 party" if len(summary.clients) == 1 else f"{len(summary.clients):,} parties"
    return f"{method} between {between}, {tested[summary.evaluation]}, {rounds}, seed {summary.seed}"


def sides(summary: Summary) -> list[str]:
    """What was measured of every state, as columns: a run without a common test set has clients' test shares at most,
    those of other clients where they are asked for."""
    own = ["own", "others"] if summary.others_accuracy.per_client else ["own"]
    return {"shared": [*own, "global", "composition"], "own": own, "none": []}[summary.evaluation]


def architecture(client: ClientFacts, summary: Summary) -> str:
    """What a client's model is, and its data set where not all have the same."""
    several = len({other.data for other in summary.clients}) > 1
    return f"{client.architecture}, {client.data}" if several else client.architecture


def by_name(summary: Summary) -> dict[str, Summary]:
    """The run and its references by the names they go under."""
    beside = {name.title(): summary.beside[name] for name in NO_COLLABORATION if name in summary.beside}
    return {short_name(summary.method): summary} | beside
