"""Named warnings about a run, each with what to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from interfuse.report.run import curve
from interfuse.report.text import bare_percent, megabytes, percent
from interfuse.runs import Row, Summary
from interfuse.runs.summary import NOTHING, mean, std

LARGEST_SPREAD = 0.01  # standard deviation over the modular blocks behind one base block
LARGEST_DROP = 0.1  # of the mean global accuracy under the best of its curve
OTHER_STEPS = 0.1  # a share of the gradient steps: some methods take one more here and there
SMALL_LOSS = 0.01  # one point: less is within what another seed changes
BYTES_OF_A_PARAMETER = 4
ALL_EVALUATED = 100  # clients: in larger federations some are not evaluated, so that null says nothing


@dataclass(frozen=True)
class Diagnosis:
    """Something about a run that needs a look."""

    name: str
    text: str
    remedy: str


def diagnose(summary: Summary, rows: Sequence[Row]) -> list[Diagnosis]:
    """The warnings about a run; none is good news. What is unknown raises no warning."""
    checks: list[Callable[[Summary, Sequence[Row]], Diagnosis | None]] = [_notice, _divergence]
    if not summary.is_reference:
        checks += [_other_steps_than_local, _no_better_than_local, _uplink]
        if summary.composes:
            checks += [_below_local, _spread_over_modular_blocks]
    found = (check(summary, rows) for check in checks)
    return [diagnosis for diagnosis in found if diagnosis is not None]


def _notice(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    """What the method itself had to say of these clients before it began."""
    notice = summary.notice
    return None if notice is None else Diagnosis("method and clients do not fit", notice.text, notice.remedy)


def _divergence(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    remedy = (
        "Lower the learning rates, those of the base and the modular blocks one at a time, and see which of them "
        "steadies the curve."
    )
    each = [summary.global_accuracy.per_client, *(row.accuracy.common for row in rows if row.accuracy)]
    if any(map(_lost, each)):
        return Diagnosis(
            "divergence", f"The {summary.score} of some clients on the common test set is not a number.", remedy
        )
    values = curve(rows).common
    if not len(values):
        return None
    final = summary.global_accuracy.mean
    final = float(values[-1]) if math.isnan(final) else final
    best = float(values.max())
    if best - final <= LARGEST_DROP:
        return None
    return Diagnosis(
        "divergence",
        f"The mean global {summary.score} fell to {percent(final)} from {percent(best)} at its best.",
        remedy,
    )


def _lost(values: Sequence[float]) -> bool:
    """Whether clients' scores on the common test set are none; unlike an own share it is never empty."""
    unknown = sum(map(math.isnan, values))
    return unknown == len(values) > 0 or (unknown > 0 and len(values) <= ALL_EVALUATED)


def _other_steps_than_local(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    """A method of one's own whose steps Local could not know."""
    if summary.local is None or (rows and rows[-1].round < summary.rounds):
        return None
    own, alone = summary.gradient_steps.clients, summary.local.gradient_steps.clients
    if abs(own - alone) <= OTHER_STEPS * max(own, alone):
        return None
    return Diagnosis(
        "Local took other steps",
        f"The clients took {own:,} gradient steps, those of Local beside them {alone:,}: the "
        f"{summary.score} of the two is not comparable.",
        "Name the method's setting `local_steps` or `local_epochs`, which Local takes over, or let its `alone()` "
        "return Local's settings for as many steps.",
    )


def _no_better_than_local(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    own, alone = (scores.own_accuracy.mean for scores in (summary, summary.local or NOTHING))
    if math.isnan(own) or math.isnan(alone) or own > alone:
        return None
    return Diagnosis(
        "no better than Local",
        f"On their own test shares the clients reach {percent(own)}; without collaboration they reach "
        f"{percent(alone)}.",
        "Collaboration pays where clients have few samples or miss classes that others have. Give it more rounds, tune "
        "the learning rates on the validation shares, and compare several seeds before drawing a conclusion.",
    )


def _below_local(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    swapped, local = summary.mean_swapped, summary.local or NOTHING
    together = local.global_accuracy.mean if local.composition is None else mean(np.diagonal(local.composition))
    if math.isnan(swapped) or math.isnan(together) or swapped >= together - SMALL_LOSS:
        return None
    text = (
        f"Blocks of two different clients reach {percent(swapped)} on average; a client of Local with its own two "
        f"blocks reaches {percent(together)}."
    )
    if swapped < local.mean_swapped:
        text += (
            f" That is even less than the blocks of Local swapped without any collaboration, "
            f"{percent(local.mean_swapped)}: something is wrong."
        )
    return Diagnosis(
        "composition below Local",
        text,
        "Make sure that every client gets the fusion-layer outputs and labels of all clients, in matching order, in "
        "every round (the ledger has a line for each), and that the modular blocks train on all of them. Too few "
        "rounds look the same: see whether the curve still rises.",
    )


def _spread_over_modular_blocks(summary: Summary, rows: Sequence[Row]) -> Diagnosis | None:
    matrix = summary.composition
    if matrix is None:
        return None
    wide = {base: spread for base, row in enumerate(matrix) if (spread := std(row)) > LARGEST_SPREAD}
    if not wide:
        return None
    worst = max(wide, key=lambda base: wide[base])
    return Diagnosis(
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
    return Diagnosis(
        "uplink at FedAvg's level",
        f"A client sends {megabytes(sent)} MB a round. FedAvg with the smallest model here would send "
        f"{megabytes(model)} MB.",
        "The fusion layer is too wide for models of this size: narrow it, send smaller batches, or exchange less "
        "often. Otherwise averaging small models is the cheaper choice.",
    )
