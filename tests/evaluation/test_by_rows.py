"""Own scores by test rows, and the round that is chosen on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from worlds import federation, shares_of, tiny_dataset

from interfuse.data import Share
from interfuse.evaluation import accuracy, evaluate
from interfuse.report.text import by_rows
from interfuse.runs.summary import BestOnTest, Row, Summary
from interfuse.runs.summing import best_on_test

SIZES = (1, 4, 11)


def own_shares() -> list[Share]:
    """Clients with so many test rows, and two training rows each."""
    shares, start = [], 0
    for rows, share in zip(SIZES, shares_of([0, 1], [2, 3], [4, 5]), strict=True):
        shares.append(Share(share.train, share.validation, np.arange(6 + start, 6 + start + rows)))
        start += rows
    return shares


def test_rows_count_the_same_not_clients() -> None:
    f = federation("local", dataset=tiny_dataset(), shares=own_shares(), rounds=2)
    found = evaluate(f, full=True)
    right = [score * rows for score, rows in zip(found.own, SIZES, strict=True)]
    assert found.own_by_samples == pytest.approx(sum(right) / sum(SIZES))
    assert found.own_by_samples != pytest.approx(sum(found.own) / 3)


def test_a_point_of_the_curve_can_be_on_all_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "CURVE_OWN_ROWS", 2)
    f = federation("local", dataset=tiny_dataset(), shares=own_shares(), rounds=1)
    assert evaluate(f, full=False).rows["own"] == 1 + 2 + 2
    assert evaluate(f, full=False, all_own=True).rows["own"] == sum(SIZES)
    assert evaluate(f, full=False, all_own=True).own == evaluate(f, full=True).own


def test_nobody_with_test_rows_has_no_score() -> None:
    f = federation("local", dataset=tiny_dataset(), shares=shares_of([0], [1]), rounds=0)
    assert math.isnan(evaluate(f, full=True).own_by_samples)


def row(round: int, score: float | None, own: list[float | None]) -> Row:
    nothing: Any = {"raw": 0, "wire": 0}
    point = {"own": own, "validation": [], "common": [], "composition": None, "own_by_samples": score}
    return Row.model_validate({
        "round": round, "uplink": nothing, "downlink": nothing, "steps": {"clients": 0, "server": 0}, "failures": [],
        "outstanding": 0, "virtual_seconds": {}, "seconds": {}, "accuracy": point,
    })  # fmt: skip


def test_the_round_that_test_rows_choose() -> None:
    rows = [row(0, 0.9, [0.9]), row(1, 0.5, [0.4, 0.8]), row(2, 0.7, [0.2, None]), row(3, 0.7, [0.9, 0.9])]
    assert best_on_test(rows) == BestOnTest(round=2, own_by_samples=0.7, own=0.2)  # of equals the first; not the start
    assert best_on_test([row(1, None, [None])]) is None
    assert best_on_test([]) is None


def test_it_is_named_for_what_it_is() -> None:
    best = BestOnTest(round=7, own_by_samples=0.75, own=0.5)
    known = Summary.model_construct(own_by_samples=0.5, best_on_test=best)
    assert (
        by_rows(known)
        == "50.0 % after the last round; 75.0 % after round 7, which is chosen on the test rows: too good"
    )
    assert by_rows(Summary.model_construct(own_by_samples=0.5, best_on_test=None)) == "50.0 % after the last round"
    assert by_rows(Summary.model_construct(own_by_samples=math.nan, best_on_test=None)) == ""
