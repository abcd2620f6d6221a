"""What is to be said of a run at its end: a headline on what collaboration bought, and warnings.

Both are read off the same evidence. They are worked out once and stand in ``summary.json``, so that terminal, page,
table and Python say the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from interfuse.data import Classification, LanguageModelling
from interfuse.errors import numbers
from interfuse.evaluation import Evidence
from interfuse.runs.summary import (
    NO_COLLABORATION,
    NOTHING,
    Diagnosis,
    Headline,
    Row,
    Scores,
    Summary,
    mean,
    std,
)
from interfuse.runs.words import ALONE_IN_A_BATCH, bare_percent, capital, counted, percent, size

LARGEST_SPREAD = 0.01  # standard deviation over the modular blocks behind one base block
LARGEST_DROP = 0.1  # of the mean score under the best of its curve
OTHER_STEPS = 0.1  # a share of the gradient steps: some methods take one more here and there
SMALL_LOSS = 0.01  # one point: less is within what another seed changes
BYTES_OF_A_PARAMETER = 4
ERRORS = 2  # standard errors: less is within what other test rows change
ALL_EVALUATED = 100  # clients: in larger federations some are not evaluated, so that null says nothing
FEWEST_ROWS = 6
"""With fewer rows between two scores no test tells them apart: if n rows turn from wrong to right and none back, the
two-sided sign test has p = 2 · 0.5^n, which is 0.06 for five rows and 0.03 for six."""
SHARES = frozenset({Classification.score_name, LanguageModelling.score_name})
"""Scores that are shares of right answers, so that a difference is a number of rows."""


def concluded(summary: Summary, rows: Sequence[Row]) -> Summary:
    """The summary with its headline and its warnings.

    Args:
        rows: The lines of ``metrics.jsonl`` so far.
    """
    return summary.model_copy(update={"headline": headline(summary, rows), "warnings": tuple(diagnose(summary, rows))})


@dataclass(frozen=True)
class _Compared:
    """A mean score beside those of the references: ``where`` it is of, and the ``evidence`` as sentences name it."""

    evidence: Evidence
    where: str
    text: str
    value: float
    alone: float
    clients: int
    rows: int | None

    @property
    def gain(self) -> float:
        """Points over Local; a difference of the printed numbers is the printed difference."""
        return round(_points(self.value) - _points(self.alone), 1)


def headline(summary: Summary, rows: Sequence[Row] = ()) -> Headline:
    """One sentence on what collaboration bought, beside Local and Pooled where they ran, with what qualifies it."""
    found = _evidence(summary)
    if not found:
        unmeasured = "Nothing was measured" if summary.evaluation == "none" else f"No {summary.score} has been measured"
        return Headline(text=f"{unmeasured}.", on=None, gain=math.nan, doubts=(), clients=0, rows=None)
    first = _decisive(found)
    gain = math.nan if summary.is_reference else first.gain
    doubts = tuple(_doubts(summary, rows, found))
    known = "; ".join(one.text for one in found)
    why = f" ({'; '.join(doubts)})" if doubts else ""
    text = f"{capital(known)}{why}." if math.isnan(gain) else f"{_bought(gain)}{why}: {known}."
    return Headline(text=text, on=first.evidence, gain=gain, doubts=doubts, clients=first.clients, rows=first.rows)


def _evidence(summary: Summary) -> list[_Compared]:
    """What the headline says."""
    return [one for one in (_of_compositions(summary), _of_clients(summary)) if one is not None]


def _decisive(found: Sequence[_Compared]) -> _Compared:
    """The first that Local is beside: its gain is that of the headline."""
    return next((one for one in found if not math.isnan(one.gain)), found[0])


def _of_compositions(summary: Summary) -> _Compared | None:
    """All pairs of blocks, of methods whose point they are."""
    alone, together = (summary.local or NOTHING).mean_composition, summary.mean_composition
    matrix = summary.composition
    if matrix is None or matrix.size < 2 or math.isnan(together) or not (summary.composes or summary.is_reference):
        return None
    clients = int((~np.isnan(matrix)).any(axis=1).sum())
    where = f"over all {matrix.size:,} pairs of a base block and a modular block"
    text = f"{where}{_behind(summary, 'compositions', clients)} the mean {summary.score} is {percent(together)}"
    if not math.isnan(alone):
        text += f", beside {percent(alone)} for blocks of clients that trained alone"
    return _Compared("compositions", where, text, together, alone, clients, summary.rows.get("compositions"))


def _of_clients(summary: Summary) -> _Compared | None:
    """Clients on their own test shares, or on the common test set where own test shares are empty."""
    on: Evidence = "global" if math.isnan(summary.own_accuracy.mean) else "own"

    def spread(scores: Scores) -> tuple[float, int]:
        of = scores.own_accuracy if on == "own" else scores.global_accuracy
        return of.mean, sum(not math.isnan(value) for value in of.per_client)

    value, clients = spread(summary)
    if math.isnan(value):
        return None
    beside = {name: spread(summary.beside.get(name) or NOTHING)[0] for name in NO_COLLABORATION}
    known = [f"{percent(other)} for {name.title()}" for name, other in beside.items() if not math.isnan(other)]
    where = "on their own test shares" if on == "own" else "on the common test set"
    text = f"{where}{_behind(summary, on, clients)} clients reach {percent(value)}"
    text += f", beside {' and '.join(known)}" if known else ""
    return _Compared(on, where, text, value, beside["local"], clients, summary.rows.get(on))


def _behind(summary: Summary, evidence: Evidence, clients: int) -> str:
    """How many rows are behind a figure, and how many clients where not all are."""
    rows = summary.rows.get(evidence)
    parts = [] if rows is None else [counted(rows, "row")]
    if clients < len(summary.clients):
        parts.append(f"{clients:,} of {counted(len(summary.clients), 'client')}")
    return f" ({', '.join(parts)})" if parts else ""


def _some(summary: Summary, clients: int) -> str:
    """How many clients are behind a figure where not all are."""
    return f" ({clients:,} of {counted(len(summary.clients), 'client')})" if clients < len(summary.clients) else ""


def _doubts(summary: Summary, rows: Sequence[Row], found: Sequence[_Compared]) -> list[str]:
    """Why the figures are not to be taken at their word, in a few words each."""
    doubts = []
    if _no_steps(summary, rows):
        doubts.append("no gradient step was taken")
    if steps := _other_steps(summary, rows):
        doubts.append(f"in {counted(steps[0], 'gradient step')} beside Local's {steps[1]:,}")
    if not summary.is_reference:
        first = _decisive(found)
        if first.gain and _told_by_no_row(summary, first):
            doubts.append(f"less than {counted(first.rows or 0, 'row')} can tell")
        doubts += [
            f"no better than Local {one.where}"
            for one in found
            if one is not first and first.gain > 0 and _no_gain(summary, one)
        ]
    said = [*([] if summary.notice is None else [summary.notice]), *summary.data_notices]
    return doubts + [notice.text.removesuffix(".") for notice in said]


def _told_by_no_row(summary: Summary, one: _Compared) -> bool:
    """Whether so few rows separate it from Local that no test could tell."""
    if one.rows is None or summary.score not in SHARES or math.isnan(one.gain):
        return False
    return abs(one.value - one.alone) * one.rows < FEWEST_ROWS - 1e-6


def _no_gain(summary: Summary, one: _Compared) -> bool:
    return one.gain <= 0 or _told_by_no_row(summary, one)


def _chance(score: str, rows: int | None, *shares: float) -> float:
    """What two standard errors of a share of test rows are, or of the difference of two such shares.

    It is 0 for other scores, and where nobody knows how many rows there are.
    """
    if not rows or score not in SHARES:
        return 0.0
    return ERRORS * math.sqrt(sum(share * (1 - share) for share in shares) / rows)


def _points(value: float) -> float:
    return value if math.isnan(value) else round(100 * value, 1)


def _bought(gain: float) -> str:
    if gain == 0:
        return "Collaboration did not change this mean"
    unit = "point" if abs(gain) == 1 else "points"
    return f"Collaboration {'bought' if gain > 0 else 'cost'} {abs(gain):.1f} {unit}"


def diagnose(summary: Summary, rows: Sequence[Row]) -> list[Diagnosis]:
    """The warnings about a run; none is good news. What is unknown raises no warning."""
    checks: list[Callable[[Summary, Sequence[Row]], Diagnosis | None]] = [
        _notice,
        _without_steps,
        _untrained,
        _left_out,
        _divergence,
    ]
    if not summary.is_reference:
        checks += [_other_steps_than_local, _no_better_than_local, _uplink]
        if summary.composes:
            checks += [_below_local, _spread_over_modular_blocks]
    found = (check(summary, rows) for check in checks)
    data = [_warning("data that may not fit together", each.text, each.remedy) for each in summary.data_notices]
    data += [_warning("data as it was read", each.text, each.remedy) for each in summary.reading_notices]
    models = [_warning("models that do not fit", each.text, each.remedy) for each in summary.model_notices]
    return data + models + [diagnosis for diagnosis in found if diagnosis is not None]


def _warning(name: str, text: str, remedy: str) -> Diagnosis:
    return Diagnosis(name=name, text=text, remedy=remedy)


def _notice(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    """What the method itself had to say of these clients before it began."""
    notice = summary.notice
    return None if notice is None else _warning("what the method says", notice.text, notice.remedy)


def _no_steps(summary: Summary, rows: Sequence[Row]) -> bool:
    """Whether a run has rounds behind it and no gradient step. One that has not begun is no finding."""
    begun = rows[-1].round > 0 if rows else summary.rounds > 0
    return begun and summary.gradient_steps.total == 0


def _without_steps(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    if not _no_steps(summary, rows):
        return None
    also = summary.local is not None and summary.local.gradient_steps.total == 0
    return _warning(
        "nothing was trained",
        f"No gradient step was taken{', nor by Local' if also else ''}: the models are those before training.",
        "See that clients have rows to train on and that a batch can be made of them: `batch_size`, `local_steps` or "
        "`local_epochs`, and models that normalise over a batch. A method that learns without `fit` may ignore this.",
    )


def _untrained(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    """Clients beside others that trained."""
    if not summary.gradient_steps.clients or not summary.untrained or (rows and rows[-1].round < summary.rounds):
        return None
    return _warning(
        "clients that never trained",
        f"{capital(numbers(summary.untrained))} made no gradient step in {counted(summary.rounds, 'round')}.",
        "They were never drawn (participation), join too late, or have too few rows for their `batch_size`: raise "
        "participation or rounds, or deal the rows more evenly, such as with a partition's minimum.",
    )


def _left_out(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    left = summary.left_out
    if not left.total:
        return None
    owners = [numbers([*left.clients])] if left.clients else []
    owners += ["the server"] if left.server else []
    return _warning(
        "rows left out of training",
        f"{capital(' and '.join(owners))} left out {counted(left.total, 'row')}, each time it was its turn: "
        f"{ALONE_IN_A_BATCH}.",
        "Choose a `batch_size` that leaves no single row over at the end of an epoch, give these clients more rows, or "
        "take models without batch normalisation.",
    )


def _divergence(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    remedy = (
        "Lower the learning rates, where there are several one at a time, and see which of them steadies the curve."
    )
    points = [row.accuracy for row in rows if row.accuracy]
    each = [summary.global_accuracy.per_client, *(point.common for point in points)]
    if summary.evaluation == "shared" and summary.rows.get("global", 1) and any(map(_lost, each)):
        return _warning(
            "divergence", f"The {summary.score} of some clients on the common test set is not a number.", remedy
        )
    side, last, curve = "global", summary.global_accuracy, [point.common for point in points]
    if all(math.isnan(mean(values)) for values in [last.per_client, *curve]):
        side, last, curve = "own", summary.own_accuracy, [point.own for point in points]
    final, values = last.mean, [mean(point) for point in curve]
    clients = max(sum(not math.isnan(value) for value in point) for point in [last.per_client, *curve])
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    final, best = known[-1] if math.isnan(final) else final, max(known)
    if best - final <= LARGEST_DROP:
        return None
    return _warning(
        "divergence",
        f"The mean {side} {summary.score}{_some(summary, clients)} fell to {percent(final)} from {percent(best)} at "
        "its best.",
        remedy,
    )


def _lost(values: Sequence[float]) -> bool:
    """Whether clients' scores on the common test set are none; unlike an own share it is never empty."""
    unknown = sum(map(math.isnan, values))
    return unknown == len(values) > 0 or (unknown > 0 and len(values) <= ALL_EVALUATED)


def _other_steps(summary: Summary, rows: Sequence[Row]) -> tuple[int, int] | None:
    """Gradient steps of the clients and of Local's where they differ. Those of an unfinished run are not compared."""
    if summary.local is None or summary.is_reference or (rows and rows[-1].round < summary.rounds):
        return None
    own, alone = summary.gradient_steps.clients, summary.local.gradient_steps.clients
    return (own, alone) if abs(own - alone) > OTHER_STEPS * max(own, alone) else None


def _other_steps_than_local(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    """A method of one's own whose steps Local could not know."""
    steps = _other_steps(summary, rows)
    return steps and _warning(
        "Local took other steps",
        f"The clients took {counted(steps[0], 'gradient step')}, those of Local beside them {steps[1]:,}: the "
        f"{summary.score} of the two is not comparable.",
        "Name the method's setting `local_steps` or `local_epochs`, which Local takes over, or let its `alone()` "
        "return Local's settings for as many steps.",
    )


def _no_better_than_local(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    """By what the headline says, all of it."""
    behind = [one for one in _evidence(summary) if not math.isnan(one.gain) and _no_gain(summary, one)]
    if not behind:
        return None
    texts = []
    for one in behind:
        text = f"{capital(one.where)}{_some(summary, one.clients)} the mean {summary.score} is {percent(one.value)}"
        text += f", without collaboration {percent(one.alone)}"
        if one.gain > 0:
            text += f", a smaller difference than {counted(one.rows or 0, 'row')} can tell"
        texts.append(f"{text}.")
    return _warning(
        "no better than Local",
        " ".join(texts),
        "Collaboration pays where clients have few samples or miss classes that others have. Give it more rounds, tune "
        "the learning rates on the validation shares, measure on more rows, and compare several seeds before drawing a "
        "conclusion.",
    )


def _below_local(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    swapped, local = summary.mean_swapped, summary.local or NOTHING
    together = local.global_accuracy.mean if local.composition is None else mean(np.diagonal(local.composition))
    behind = summary.rows.get("compositions")
    if math.isnan(swapped) or math.isnan(together):
        return None
    if together - swapped <= max(SMALL_LOSS, _chance(summary.score, behind, swapped, together)):
        return None
    text = (
        f"Blocks of two different clients reach {percent(swapped)} on average; a client of Local with its own two "
        f"blocks reaches {percent(together)}."
    )
    alone = local.mean_swapped
    if alone - swapped > max(SMALL_LOSS, _chance(summary.score, behind, swapped, alone)):
        text += (
            f" That is even less than the blocks of Local swapped without any collaboration, {percent(alone)}: "
            "something is wrong."
        )
    remedy = (
        "See whether the curve still rises, and give it more rounds; otherwise change the learning rates, one at a "
        "time, or exchange more often by taking fewer local steps between two exchanges."
    )
    if ":" in summary.method:  # a class of the user's own
        remedy += (
            " In the method, make sure that every client gets the fusion-layer outputs and labels of all clients, in "
            "matching order, in every round (the ledger has a line for each), and that modular blocks train on them."
        )
    return _warning("composition below Local", text, remedy)


def _spread_over_modular_blocks(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    matrix = summary.composition
    if matrix is None:
        return None
    behind = summary.rows.get("compositions")
    wide = {
        base: spread
        for base, row in enumerate(matrix)
        if (spread := std(row)) > max(LARGEST_SPREAD, _chance(summary.score, behind, mean(row)))
    }
    if not wide:
        return None
    worst = max(wide, key=lambda base: wide[base])
    return _warning(
        "spread over modular blocks",
        f"Behind {len(wide)} of {len(matrix)} base blocks it matters whose modular block follows: the standard "
        f"deviation over modular blocks is up to {bare_percent(wide[worst])} points (base block of client {worst}).",
        "Exchange more often by taking fewer local steps between two exchanges, or widen the fusion layer.",
    )


def _uplink(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    discloses = summary.discloses or ()
    if "parameters" in discloses and "features" not in discloses:
        return None  # it sends models by design: being at FedAvg's level is no finding
    rounds = rows[-1].round if rows else summary.rounds
    sizes = [client.parameters.total for client in summary.clients if client.parameters is not None]
    if not rounds or not sizes:
        return None
    sent = summary.uplink_bytes.raw / (rounds * len(summary.clients))
    model = BYTES_OF_A_PARAMETER * min(sizes)
    if sent < model:
        return None
    return _warning(
        "uplink at FedAvg's level",
        f"A client sends {size(sent)} a round. FedAvg with the smallest model here would send {size(model)}.",
        "The fusion layer is too wide for models of this size: narrow it, send smaller batches, or exchange less "
        "often. Otherwise averaging small models is the cheaper choice.",
    )
