"""What a federation costs beyond its steps: an MLP (784-200-10) in batches of 10, FedAvg of 10 of 100 clients a round.

The bare loop takes the same optimizer steps on the same batches in one process of one thread, and nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import common
import ours
import problems
import workload
from common import Contender

CLIENTS, SAMPLES, COHORT, BATCH, LR = 100, 600, 10, 10, 0.05
TOLERANCE = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 1 where contenders did not end at the same accuracy."""
    given = common.arguments(__doc__ or "", argv)
    clients, samples, cohort = (20, 40, 2) if given.smoke else (CLIENTS, SAMPLES, COHORT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, source = problems.images(folder, clients * samples)
        config = {
            "method": "fedavg", "data": data, "clients": clients, "models": [f"{ours.HERE}:mlp"], "fusion_width": 200,
            "validation": 0, "test": 0,
            "settings": {"participation": cohort / clients, "batch_size": BATCH, "lr": LR},
        }  # fmt: skip
        setup = ours.setup_of(config)
        rounds = ours.cohorts(setup, cohort / clients, 1 + given.repetitions)
        ours.write_problem(setup, folder, epochs=len(rounds))
        shared = {
            "problem": str(folder), "model": "mlp", "batch_size": BATCH, "lr": LR, "threads": 1, "dtype": "float32",
            "layout": "contiguous",
        }  # fmt: skip
        contenders = [
            Contender("interfuse, in process", "ours.py", {"config": config, "workers": 1, "answer": "weights"}),
            Contender("interfuse, all cores", "ours.py", {"config": config, "workers": None, "answer": "weights"}),
            Contender("plain loop", "peers/plain.py", shared),
            Contender("bare steps", "peers/bare.py", shared),
        ]
        if given.smoke:
            contenders = [contenders[0], *contenders[2:]]
        courses = common.side_by_side(contenders, rounds, 1, folder, forked=given.smoke)
        rows = common.rows_of(courses)
        problems.add_accuracies(rows, courses, folder, workload.Problem.read(folder), "mlp")
    steps = cohort * -(-samples // BATCH)
    bare = courses[-1].seconds
    for row, course in zip(rows, courses, strict=True):
        if course.seconds and bare:
            row["overhead"] = common.ratio(course.seconds, bare) - 1
            row["microseconds_a_step"] = row["seconds_a_round"] / steps * 1e6
    differing = common.disagreements(rows, TOLERANCE)
    parameters = {
        "clients": clients, "samples": samples, "cohort": cohort, "batch_size": BATCH, "lr": LR, "data": source,
        "steps_a_round": steps, "warm_up": 1, "repetitions": given.repetitions, "tolerance": TOLERANCE,
    }  # fmt: skip
    columns = common.COLUMNS | {"overhead": "over bare steps", "microseconds_a_step": "µs a step"}
    title = f"{steps} steps a round ({source})"
    common.publish("small", given, parameters, {title: common.table(rows, columns)}, {"rows": rows}, differing)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
