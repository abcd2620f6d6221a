"""FedAvg of a small CNN: 100 clients of 600 images, 10 a round, one epoch of batches of 32, SGD.

All contenders have the same data, initial weights, clients of each round and batches in the same order, so their final
weights must agree but for rounding: the accuracies are compared. ``PFLLIB=path`` names a checkout of PFLlib, whose own
code then takes part; ``BEFORE=path`` a checkout of an earlier interfuse.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import common
import ours
import problems
import workload
from common import Contender, Course, Target
from driver import Cohort
from interfuse.errors import ConfigError

CLIENTS, SAMPLES, COHORT, BATCH, LR = 100, 600, 10, 32, 0.05
OURS = "interfuse"
TOLERANCE = {"float32": 0.01, "bfloat16": 0.02}
"""Largest difference in accuracy after the same rounds. Rounding alone moves a few test images."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 1 where contenders did not end at the same accuracy."""
    given = common.arguments(
        __doc__ or "", argv, dtypes={"nargs": "+", "choices": list(TOLERANCE), "default": list(TOLERANCE)}
    )
    clients, samples, cohort = (20, 64, 2) if given.smoke else (CLIENTS, SAMPLES, COHORT)
    dtypes = given.dtypes[:1] if given.smoke else given.dtypes
    warm_up = 1
    tables, results, notes, differing, targets = {}, {}, [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, source = problems.images(folder, clients * samples)
        config = {
            "method": "fedavg", "data": data, "clients": clients, "models": [f"{ours.HERE}:cnn"], "fusion_width": 150,
            "validation": 0, "test": 0,
            "settings": {"participation": cohort / clients, "batch_size": BATCH, "lr": LR},
        }  # fmt: skip
        setup = ours.setup_of(config)
        rounds = ours.cohorts(setup, cohort / clients, warm_up + given.repetitions)
        ours.write_problem(setup, folder, epochs=len(rounds))
        problem = workload.Problem.read(folder)
        flops = round_flops(workload.cnn(), problem, rounds[0])
        for dtype in dtypes:
            contenders, skipped = entrants(config, folder, dtype, peers=not given.no_peers, smoke=given.smoke)
            notes += skipped
            print(f"{dtype}: {len(contenders)} contenders", file=sys.stderr)
            courses = common.side_by_side(contenders, rounds, warm_up, folder, forked=given.smoke)
            *courses, peak = courses
            rows = common.rows_of(courses)
            best = median([max(answer["gflops"].values()) for answer in peak.answers] or [math.nan])
            problems.add_accuracies(rows, courses, folder, problem, "cnn")
            for row in rows:
                if "failure" not in row:
                    row["gflops"] = flops / row["seconds_a_round"] / 1e9
                    row["share_of_peak"] = row["gflops"] / best
            differing += common.disagreements(rows, TOLERANCE[dtype])
            tables[f"{dtype}: {flops / 1e9:.1f} GFLOP a round, measured peak {best:.1f} GFLOP/s"] = common.table(
                rows, common.COLUMNS | {"gflops": "GFLOP/s", "share_of_peak": "share of peak"}
            )
            targets += wanted(dtype, courses, rows)
            results[dtype] = {"rows": rows, "peak_gflops": best, "peak": peak.answers}
    parameters = {
        "clients": clients, "samples": samples, "cohort": cohort, "batch_size": BATCH, "lr": LR, "data": source,
        "warm_up": warm_up, "repetitions": given.repetitions, "flops_a_round": flops, "tolerance": TOLERANCE,
    }  # fmt: skip
    common.publish("fedavg", given, parameters, tables, {"dtypes": results}, notes + differing, targets)
    return 1 if differing else 0


def wanted(dtype: str, courses: Sequence[Course], rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """What the figures of a type should come to."""
    if dtype == "bfloat16":
        before = [("interfuse, before", 1.12), ("best loop by hand, before", 1.0)]
        return [Target(f"bfloat16: {who} / ours", least, common.versus(courses, who, OURS)) for who, least in before]
    share = rows[0].get("share_of_peak")
    slower = [("flower, defaults", 2.4), ("pfl, defaults", 2.0), ("plain loop, all threads", 2.2)]
    return [
        Target("float32: share of the convolution peak", 0.52, share),
        Target("float32: share of the convolution peak, stretched", 0.58, share),
        *(Target(f"float32: {who} / ours", least, common.versus(courses, who, OURS)) for who, least in slower),
    ]


def entrants(
    config: Mapping[str, Any], folder: Path, dtype: str, *, peers: bool, smoke: bool
) -> tuple[list[Contender], list[str]]:
    """Everybody who takes part, ours first and the measure of the machine last; and who does not, and why."""
    skipped = []
    shared = {
        "problem": str(folder), "model": "cnn", "batch_size": BATCH, "lr": LR, "dtype": dtype, "threads": 0,
        "processes": common.cores(),
    }  # fmt: skip
    defaults = shared | {"layout": "contiguous", "tuned": False}
    tuned = shared | {"layout": "channels_last", "threads": 1, "tuned": True}
    found: list[Contender] = []
    for name, layout in ((OURS, "channels_last"), ("interfuse, contiguous", "contiguous")):
        mine = dict(config) | {"numerics": {"layout": layout, "dtype": dtype}}
        try:
            ours.setup_of(mine)
        except ConfigError as error:
            skipped.append(f"{name} computes in float32 among those that compute in {dtype}: {error}")
            mine["numerics"], name = {"layout": layout}, f"{name} (float32)"
        found.append(Contender(name, "ours.py", {"config": mine, "workers": 1 if smoke else None, "answer": "weights"}))
    earlier = common.checkout("BEFORE")
    if isinstance(earlier, Path):
        script = str(earlier / "benchmarks" / "ours.py")
        mine = dict(config) | {"numerics": {"layout": "channels_last", "dtype": dtype}}
        mine["models"] = [f"{script}:cnn"]
        asked = {"config": mine, "workers": 1 if smoke else None, "answer": "weights"}
        path = {"PYTHONPATH": common.search_path(earlier)}
        found.append(Contender("interfuse, before", script, asked, environment=path))
    else:
        skipped.append(f"an earlier interfuse is left out: {earlier}")
    found += [
        Contender("plain loop, 1 thread", "peers/plain.py", defaults | {"threads": 1}),
        Contender("plain loop, all threads", "peers/plain.py", defaults),
        Contender("best loop by hand", "peers/tuned.py", tuned, environment=common.OUR_MALLOC),
        Contender(
            "best loop by hand, before", "peers/tuned.py", tuned | {"as_given": True}, environment=common.OUR_MALLOC
        ),
    ]
    for peer in ("flower", "pfl"):
        python = common.peer_python(peer, peers)
        if isinstance(python, str):
            skipped.append(python)
            continue
        script = f"peers/{peer}_fedavg.py"
        one_thread = common.OUR_MALLOC | {"OMP_NUM_THREADS": "1"}
        found += [
            Contender(f"{peer}, defaults", script, defaults, python),
            Contender(f"{peer}, our settings", script, tuned, python, one_thread),
        ]
    checkout = common.checkout("PFLLIB")
    if isinstance(checkout, str):
        skipped.append(f"PFLlib is left out: {checkout}")
    elif dtype == "float32":  # it has no other
        scratch = folder / "scratch-pfllib"
        scratch.mkdir()
        own = {"evaluate": False, "checkout": str(checkout), "scratch": str(scratch)}
        found.append(Contender("PFLlib, no evaluation", "peers/pfllib.py", defaults | own))
    measure = {"processes": common.cores(), "dtype": dtype, "passes": 8 if smoke else 60}
    return [*found, Contender("peak", "peers/peak.py", measure, environment=common.OUR_MALLOC)], skipped


def round_flops(model: torch.nn.Sequential, problem: workload.Problem, cohort: Cohort) -> int:
    """Floating-point operations of a round's training."""
    steps = [len(y) for client, epoch in cohort for _, y in problem.batches(client, epoch, BATCH)]
    by_size = {size: workload.training_flops(model, problem.x[:size]) for size in set(steps)}
    return sum(by_size[size] for size in steps)


if __name__ == "__main__":
    sys.exit(main())
