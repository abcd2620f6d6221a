"""What evaluation costs beside training: seconds of a round, of a point of the curve, and of the last evaluation.

Every workload is a run of few rounds that are each evaluated; nothing runs beside it. ``--workers 1`` works in this
process, whose processor time is then measured instead of the wall clock: for machines that others share.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import common
from interfuse.engines import local
from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.runs import parse_config
from interfuse.runs.loop import assemble

WORKLOADS: Mapping[str, Mapping[str, Any]] = {
    "FedAvg, 40 clients": {"method": "fedavg", "clients": 40, "models": ["cnn"]},
    "FedAvg, 100 clients": {"method": "fedavg", "clients": 100, "models": ["cnn"]},
    "IFL, 10 clients": {"method": "ifl", "clients": 10},
    "FedProto, 20 clients": {"method": "fedproto", "clients": 20},
}


def carry_out(values: Mapping[str, Any], rounds: int, workers: int | None) -> dict[str, float]:
    """Seconds of a workload's parts, medians over its rounds."""
    setup = assemble(parse_config({"data": "digits", "beside": [], **values}, "benchmark"))
    clock = time.process_time if workers == 1 else time.perf_counter
    engine = local(setup, workers)
    federation = Federation(setup, engine, rounds=rounds)

    def seconds(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    federation.start()
    evaluate(federation, full=False)  # clients are made
    trained, points = zip(
        *((seconds(federation.run_round), seconds(lambda: evaluate(federation, full=False))) for _ in range(rounds)),
        strict=True,
    )
    found = {"round": median(trained), "point": median(points), "end": seconds(lambda: evaluate(federation, full=True))}
    engine.close()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few clients, to see that it runs")
    parser.add_argument("--data", default="digits", help="a data set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int)
    given = parser.parse_args(argv)
    rows = []
    for name, values in WORKLOADS.items():
        config = {"data": given.data, **values} | ({"clients": 3} if given.smoke else {})
        rows.append({"name": name, **carry_out(config, 1 if given.smoke else given.rounds, given.workers)})
    columns = {
        "name": "", "round": "a round, s", "point": "a point of the curve, s", "end": "the last evaluation, s",
    }  # fmt: skip
    if given.smoke:
        print("smoke: the figures mean nothing")
    print(common.table(rows, columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
