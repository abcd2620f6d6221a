"""What an exchange costs: two calls a round that do nothing, 4 to 1,000 clients, beside a bare loop of the same calls.

The bare loop copies the same tensors once each way and counts their sizes. A line more has 4 clients of a large
federation take part: the cost must follow those who take part.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import common
from common import Contender

SIZES, NUMBERS = (4, 16, 64, 256, 1000), 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = common.arguments(__doc__ or "", argv)
    sizes, numbers = ((2, 8), 64) if given.smoke else (SIZES, NUMBERS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[dict[str, Any]] = []
        for clients, sampled in [*((size, size) for size in sizes), (sizes[-1], sizes[0])]:
            rows += measured(folder, clients, sampled, numbers, given)
    by_size = {row["sampled"]: row["seconds_a_round"] for row in rows if row["all"] and row["workers"] == 1}
    small, large = sorted(by_size)[-2:]
    slope = math.log(by_size[large] / by_size[small]) / math.log(large / small)
    parameters = {"sizes": sizes, "numbers": numbers, "warm_up": 1, "repetitions": given.repetitions}
    columns = {
        "name": "", "clients": "clients", "sampled": "sampled", "milliseconds_a_round": "ms a round",
        "microseconds_a_call": "µs a call and client", "ratio_to_bare": "ratio to the bare loop",
        "peak_memory_mb": "peak memory, MB",
    }  # fmt: skip
    title = f"{numbers} numbers each way; seconds grow with the power {slope:.2f} of the clients, {small} to {large}"
    common.publish("exchange", given, parameters, {title: common.table(rows, columns)}, {"rows": rows, "power": slope})
    return 0


def measured(folder: Path, clients: int, sampled: int, numbers: int, given: Any) -> list[dict[str, Any]]:
    """Rows of a federation of this size, of which so many take part, and of the bare loop."""
    path = folder / f"rows-{clients}.npz"
    x, y = np.zeros((clients, 4), np.float32), np.arange(clients) % 2
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    shared = {"data": str(path), "clients": clients, "sampled": sampled, "numbers": numbers, "bare": False}
    workers = {"interfuse, in process": 1, "interfuse, all cores": common.cores()}
    if given.smoke:
        workers.pop("interfuse, all cores")
    contenders = [Contender(name, "echo.py", shared | {"workers": count}) for name, count in workers.items()]
    contenders.append(Contender("bare loop", "echo.py", shared | {"bare": True}))
    courses = common.side_by_side(contenders, [[]] * (1 + given.repetitions), 1, folder, forked=given.smoke)
    bare = courses[-1].seconds
    rows = common.rows_of(courses)
    for row, course in zip(rows, courses, strict=True):
        row |= {"clients": clients, "sampled": sampled, "all": clients == sampled}
        row["workers"] = workers.get(row["name"])
        if course.seconds and bare:
            row["milliseconds_a_round"] = row["seconds_a_round"] * 1e3
            row["microseconds_a_call"] = row["seconds_a_round"] / (2 * sampled) * 1e6
            row["ratio_to_bare"] = common.ratio(course.seconds, bare)
    return rows


if __name__ == "__main__":
    sys.exit(main())
