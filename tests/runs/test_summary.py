"""What ``summary.json`` and ``metrics.jsonl`` say can be read again, whatever was measured."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from summaries import best_round, summary_values

from interfuse.runs.summary import BestRound, Row, Summary, read

POINT: dict[str, Any] = {
    "round": 1, "uplink": {"raw": 0, "wire": 0}, "downlink": {"raw": 0, "wire": 0},
    "steps": {"clients": 0, "server": 0}, "failures": [], "outstanding": 0,
}  # fmt: skip


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_json_does_not_know_is_written_as_unknown(value: float) -> None:
    best = BestRound.model_validate(best_round(value))
    assert math.isnan(read(BestRound, json.dumps(best.values(), allow_nan=False), "it").validation_accuracy)
    row = Row.model_validate(POINT | {"virtual_seconds": {"wall": value}, "seconds": {"local work": value}})
    assert math.isnan(read(Row, json.dumps(row.values(), allow_nan=False), "it").seconds["local work"])
    changes = {"seconds": value, "stability": value, "seconds_by_phase": {"calls": value}}
    whole = Summary.model_validate(summary_values(**changes))
    assert math.isnan(read(Summary, json.dumps(whole.values(), allow_nan=False), "it").seconds)
