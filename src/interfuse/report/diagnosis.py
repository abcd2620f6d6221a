"""Named warnings about a run, each with what to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interfuse.report.summary import (
    NO_COLLABORATION,
    Json,
    clients,
    composes,
    curve,
    mean,
    number,
    number_of_clients,
    reference,
    scores,
    std,
)
from interfuse.report.text import bare_percent, megabytes, percent

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


def diagnose(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[Diagnosis]:
    """The warnings about a run; none is good news. What is unknown raises no warning."""
    checks: list[Callable[[Json, Sequence[Json]], Diagnosis | None]] = [_notice, _divergence]
    if summary.get("method") not in NO_COLLABORATION:
        checks += [_other_steps_than_local, _no_better_than_local, _uplink]
        if composes(summary):
            checks += [_below_local, _spread_over_modular_blocks]
    found = (check(summary, metrics) for check in checks)
    return [diagnosis for diagnosis in found if diagnosis is not None]


def _notice(summary: Json, metrics: Sequence[Json]) -> Diagnosis | None:
    """What the method itself had to say of these clients before it began."""
    notice = summary.get("notice")
    return None if notice is None else Diagnosis("method and clients do not fit", notice["text"], notice["remedy"])


def _divergence(summary: Json, metrics: Sequence[Json]) -> Diagnosis | None:
    remedy = (
        "Lower the learning rates, those of the base and the modular blocks one at a time, and see which of them "
        "steadies the curve."
    )
    if any(_lost(values) for values in _global_accuracies(summary, metrics)):
        return Diagnosis("divergence", "Some accuracies on the common test set are not numbers.", remedy)
    values = curve(metrics).common
    if not len(values):
        return None
    final = number((summary.get("global_accuracy") or {}).get("mean"))
    final = float(values[-1]) if math.isnan(final) else final
    best = float(values.max())
    if best - final <= LARGEST_DROP:
        return None
    return Diagnosis(
        "divergence",
        f"The mean global accuracy fell to {percent(final)} from {percent(best)} at its best.",
        remedy,
    )


def _global_accuracies(summary: Json, metrics: Sequence[Json]) -> Iterator[Sequence[float | None]]:
    """Accuracies by client on the common test set, which unlike a client's own share is never empty."""
    yield (summary.get("global_accuracy") or {}).get("per_client") or ()
    for row in metrics:
        yield (row.get("accuracy") or {}).get("common") or ()


def _lost(values: Sequence[float | None]) -> bool:
    unknown = sum(math.isnan(number(value)) for value in values)
    return unknown == len(values) > 0 or (unknown > 0 and len(values) <= ALL_EVALUATED)


def _other_steps_than_local(summary: Json, metrics: Sequence[Json]) -> Diagnosis | None:
    """A method of one's own whose steps Local could not know."""
    own, alone = (
        number(((values or {}).get("gradient_steps") or {}).get("clients"))
        for values in (summary, reference(summary, "local"))
    )
    if math.isnan(own) or math.isnan(alone) or abs(own - alone) <= OTHER_STEPS * max(own, alone):
        return None
    return Diagnosis(
        "Local took other steps",
        f"The clients took {own:,.0f} gradient steps, those of Local beside them {alone:,.0f}: their accuracies are "
        "not comparable.",
        "Let the method's `alone()` return Local with as many steps, or name its setting `local_steps` or "
        "`local_epochs`, which Local takes over.",
    )


def _no_better_than_local(summary: Json, metrics: Sequence[Json]) -> Diagnosis | None:
    own = scores(summary).own.mean
    alone = scores(reference(summary, "local") or {}).own.mean
    if math.isnan(own) or math.isnan(alone) or own > alone:
        return None
    return Diagnosis(
        "no better than Local",
        f"On their own test shares the clients reach {percent(own)}; without collaboration they reach "
        f"{percent(alone)}.",
        "Collaboration pays where clients have few samples or miss classes that others have. Give it more rounds, tune "
        "the learning rates on the validation shares, and compare several seeds before drawing a conclusion.",
    )


def _below_local(summary: Json, metrics: Sequence[Json]) -> Diagnosis | None:
    swapped = scores(summary).mean_swapped
    local = scores(reference(summary, "local") or {})
    together = local.common.mean if local.composition is None else mean(np.diagonal(local.composition))
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


def _spread_over_modular_blocks(summary: Json, metrics: Sequence[Json]) -> Diagnosis | None:
    matrix = scores(summary).composition
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


def _uplink(summary: Json, metrics: Sequence[Json]) -> Diagnosis | None:
    discloses = summary.get("discloses") or ()
    if "parameters" in discloses and "features" not in discloses:
        return None  # it sends models by design: being at FedAvg's level is no finding
    rounds = int(metrics[-1]["round"]) if metrics else int(summary.get("rounds") or 0)
    sizes = [client.parameters for client in clients(summary) if client.parameters is not None]
    sent = number((summary.get("uplink_bytes") or {}).get("raw"))
    if not rounds or not sizes or math.isnan(sent):
        return None
    sent /= rounds * number_of_clients(summary)
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
