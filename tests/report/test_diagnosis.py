from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fake_run import FakeRun, summary_of

from interfuse.report import diagnose
from interfuse.runs import Row, Summary
from interfuse.runs.summing import stability


def spread(*values: float | None) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {"mean": sum(known) / len(known) if known else None, "std": 0.0, "per_client": list(values)}


UPLINK = {"raw": 10 * 2 * 399, "wire": 0}
LOCAL: dict[str, Any] = {
    "own_accuracy": spread(0.8, 0.8),
    "global_accuracy": spread(0.8, 0.8),
    "composition_matrix": [[0.8, 0.1], [0.1, 0.8]],
}


def local(**changes: Any) -> dict[str, Summary]:
    return {"local": summary_of(TWO, **LOCAL | changes)}


TWO = FakeRun(clients=2, rounds=10, architectures=("small", "large"))


def summary(**changes: Any) -> Summary:
    """A run of two clients of 100 and 1000 parameters, with nothing to complain about."""
    sizes = {"small": {"base": 60, "modular": 40}, "large": {"base": 600, "modular": 400}}
    fine = {
        "own_accuracy": spread(0.9, 0.9),
        "global_accuracy": spread(0.9, 0.9),
        "composition_matrix": [[0.9, 0.89], [0.9, 0.91]],
        "uplink_bytes": UPLINK,
        "clients": [
            {"id": i, "architecture": name, "parameters": size, "samples": 5, "data": "digits"}
            for i, (name, size) in enumerate(sizes.items())
        ],
        "beside": local(),
    }
    return summary_of(TWO, **fine | changes)


def row(round: int, common: list[float | None] | None = None, own: list[float | None] | None = None) -> Row:
    """A line of the metrics, evaluated where accuracies are given."""
    values: dict[str, Any] = {"own": own or common, "validation": own or common, "common": common, "composition": None}
    nothing = {"raw": 0, "wire": 0}
    return Row.model_validate({
        "round": round, "uplink": nothing, "downlink": nothing, "steps": {"clients": 0, "server": 0}, "failures": [],
        "outstanding": 0, "virtual_seconds": {}, "seconds": {}, "accuracy": values if common else None,
    })  # fmt: skip


def curve(*means: float) -> list[Row]:
    """Metrics of ten rounds, evaluated at so many of them."""
    return [row(11 - len(means) + index, [mean, mean]) for index, mean in enumerate(means)]


def names(values: Summary, rows: list[Row] | None = None) -> list[str]:
    return [diagnosis.name for diagnosis in diagnose(values, rows or [])]


def test_nothing_to_complain_about() -> None:
    assert diagnose(summary(), []) == []
    assert diagnose(summary(), curve(0.1, 0.5, 0.9)) == []


def test_nothing_known_raises_no_warning() -> None:
    unknown = {name: spread() for name in ("own_accuracy", "global_accuracy")}
    nothing = {"discloses": None, "composition_matrix": None, "best": None, "clients": [], "beside": {}}
    assert diagnose(summary(**unknown, **nothing), [row(0)]) == []


def wide(spread_in_points: float) -> list[list[float]]:
    """Row 1 has this standard deviation."""
    half = spread_in_points / 100
    return [[0.9, 0.9], [0.9 - half, 0.9 + half]]


@pytest.mark.parametrize(("points", "expected"), [(0.99, []), (1.01, ["spread over modular blocks"])])
def test_spread_over_modular_blocks(points: float, expected: list[str]) -> None:
    assert names(summary(composition_matrix=wide(points))) == expected


def test_spread_over_base_blocks_is_no_finding() -> None:
    assert names(summary(composition_matrix=[[0.85, 0.85], [0.95, 0.95]])) == []


def test_spread_names_the_worst_base_block() -> None:
    (found,) = diagnose(summary(composition_matrix=wide(2.5)), [])
    assert "1 of 2" in found.text
    assert "2.5 points (base block of client 1)" in found.text
    assert "fewer local steps" in found.remedy


@pytest.mark.parametrize("method", ["local", "pooled"])
def test_nothing_is_expected_of_references(method: str) -> None:
    assert (
        names(summary(method=method, own_accuracy=spread(0.1, 0.1), composition_matrix=[[0.9, 0.0], [0.0, 0.9]])) == []
    )


@pytest.mark.parametrize(("swapped", "expected"), [(0.8, []), (0.791, []), (0.789, ["composition below Local"])])
def test_composition_below_local(swapped: float, expected: list[str]) -> None:
    matrix = [[swapped + 0.001, swapped], [swapped, swapped]]  # only the pairs of two clients count
    assert names(summary(composition_matrix=matrix)) == expected


def test_composition_below_local_says_when_it_is_worse_than_no_collaboration() -> None:
    def text(swapped: float) -> str:
        matrix = [[swapped, swapped], [swapped, swapped]]
        return next(
            d.text for d in diagnose(summary(composition_matrix=matrix), []) if d.name == "composition below Local"
        )

    assert "something is wrong" not in text(0.11)
    assert "something is wrong" in text(0.09)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(None, True), (12, False), (360, False), (3600, False), (9_000, True)],
)
def test_composition_below_local_by_more_than_its_rows_could_by_chance(rows: int | None, expected: bool) -> None:
    """2.0 points below 36.7 %: two errors of the difference are 38.8 points of 12 rows, 7.1 of 360, 1.4 of 9,000."""
    alone = local(composition_matrix=[[0.367, 0.367], [0.367, 0.367]])
    behind = {"rows": {} if rows is None else {"compositions": rows}}
    found = summary(composition_matrix=[[0.347, 0.347], [0.347, 0.347]], beside=alone, **behind)
    assert ("composition below Local" in names(found)) is expected


def test_only_a_clear_difference_to_swapped_blocks_of_local_is_something_wrong() -> None:
    def text(rows: int) -> str:
        matrix = [[0.099, 0.099], [0.099, 0.099]]
        alone = local(composition_matrix=[[0.8, 0.2], [0.2, 0.8]])
        behind = {"compositions": rows}
        found = diagnose(summary(composition_matrix=matrix, beside=alone, rows=behind), [])
        return next(d.text for d in found if d.name == "composition below Local")

    assert "something is wrong" in text(360)
    assert "something is wrong" not in text(40)  # two errors of the difference: 15.8 points of 10.1


def test_the_remedy_of_a_built_in_method_is_no_advice_to_its_author() -> None:
    def remedy(method: str) -> str:
        matrix = [[0.2, 0.2], [0.2, 0.2]]
        found = diagnose(summary(method=method, composition_matrix=matrix), [])
        return next(d.remedy for d in found if d.name == "composition below Local")

    assert "learning rates" in remedy("ifl")
    assert "labels" not in remedy("ifl")
    assert "labels of all clients" in remedy("mine.py:Mine")


@pytest.mark.parametrize(("rows", "warned"), [(24, False), (10_000, True)])
def test_a_spread_over_modular_blocks_that_rows_give_by_chance_is_no_finding(rows: int, warned: bool) -> None:
    """Base block 1 has 5 points; two errors of a share of 0.9 are 12.2 points of 24 rows, 0.6 of 10,000."""
    found = names(summary(composition_matrix=wide(5.0), rows={"compositions": rows}))
    assert ("spread over modular blocks" in found) is warned


def test_rows_do_not_judge_scores_that_are_no_shares() -> None:
    found = names(summary(composition_matrix=wide(5.0), rows={"compositions": 24}, score="R²"))
    assert found == ["spread over modular blocks"]


@pytest.mark.parametrize(("first", "points", "known"), [(0, 10, False), (0, 11, True), (5, 2, False), (5, 3, True)])
def test_stability_is_not_of_what_was_learned_nor_of_two_points(first: int, points: int, known: bool) -> None:
    rows = [row(first + place, [0.1 * place, 0.1 * place]) for place in range(points)]
    last = [0.1 * place for place in range(points)][-10:]
    assert stability(rows) == (pytest.approx(np.std(last)) if known else pytest.approx(math.nan, nan_ok=True))


def test_composition_is_compared_to_the_common_test_set_where_local_has_no_matrix() -> None:
    other = local(own_accuracy=spread(0.1, 0.1), global_accuracy=spread(0.95, 0.95), composition_matrix=None)
    assert names(summary(beside=other)) == ["composition below Local"]


@pytest.mark.parametrize(("each", "expected"), [(399, []), (400, ["uplink at FedAvg's level"])])
def test_uplink_beside_the_smallest_model(each: int, expected: list[str]) -> None:
    assert names(summary(uplink_bytes={"raw": 10 * 2 * each, "wire": 0})) == expected


def test_uplink_of_an_unfinished_run_is_shared_among_the_rounds_done() -> None:
    values = summary(uplink_bytes={"raw": 2 * 2 * 400, "wire": 0})
    assert names(values) == []
    assert names(values, [row(2)]) == ["uplink at FedAvg's level"]


def test_uplink_of_models_is_no_finding() -> None:
    large = {"raw": 10**9, "wire": 0}
    assert names(summary(uplink_bytes=large, discloses=["parameters"])) == []
    assert names(summary(uplink_bytes=large, discloses=["features", "parameters"])) == ["uplink at FedAvg's level"]


@pytest.mark.parametrize(("final", "expected"), [(0.801, []), (0.799, ["divergence"])])
def test_fall_from_the_best_is_divergence(final: float, expected: list[str]) -> None:
    assert names(summary(global_accuracy=spread(final, final)), curve(0.1, 0.9, final)) == expected
    assert names(summary(global_accuracy=spread()), curve(0.1, 0.9, final)) == expected


@pytest.mark.parametrize("bad", [None, math.nan])
def test_unknown_global_accuracy_is_divergence(bad: float | None) -> None:
    assert names(summary(global_accuracy=spread(0.9, bad))) == ["divergence"]
    assert names(summary(), [row(9, [0.1, 0.1]), row(10, [0.9, bad])]) == ["divergence"]


def test_empty_own_shares_are_no_divergence() -> None:
    assert names(summary(own_accuracy=spread(0.9, None)), [*curve(0.1), row(10, [0.9, 0.9], [None])]) == []


def test_clients_that_are_not_evaluated_are_no_divergence() -> None:
    assert names(summary(global_accuracy=spread(*[0.9] * 100, None))) == []
    assert names(summary(global_accuracy=spread(*[None] * 101))) == ["divergence"]
    (fall,) = diagnose(summary(global_accuracy=spread(0.5)), [row(9, [0.9]), row(10, [0.5])])
    assert fall.text == "The mean global accuracy (1 of 2 clients) fell to 50.0 % from 90.0 % at its best."


@pytest.mark.parametrize(("own", "expected"), [(0.801, []), (0.8, ["no better than Local"])])
def test_no_better_than_local(own: float, expected: list[str]) -> None:
    assert names(summary(own_accuracy=spread(own, own))) == expected


def test_every_warning_has_a_remedy() -> None:
    values = summary(
        own_accuracy=spread(0.1, 0.1),
        global_accuracy=spread(None),
        composition_matrix=[[0.9, 0.05], [0.3, 0.9]],
        uplink_bytes={"raw": 10**9, "wire": 0},
    )
    found = diagnose(values, [])
    assert len({diagnosis.name for diagnosis in found}) == 5
    assert all(len(diagnosis.remedy) > 40 and "nan" not in diagnosis.text for diagnosis in found)


@pytest.mark.parametrize(("steps", "expected"), [(100, []), (92, []), (80, ["Local took other steps"])])
def test_steps_that_local_could_not_know(steps: int, expected: list[str]) -> None:
    beside = local(gradient_steps={"clients": 100, "server": 0})
    assert names(summary(gradient_steps={"clients": steps, "server": 9}, beside=beside)) == expected


def test_steps_of_an_unfinished_run_are_not_compared() -> None:
    beside = local(gradient_steps={"clients": 100, "server": 0})
    found = names(summary(gradient_steps={"clients": 50, "server": 0}, beside=beside), [row(5)])
    assert "Local took other steps" not in found
