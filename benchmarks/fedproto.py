"""FedProto of 20 clients with HtFLlib's small CNN in batches of 10, beside a re-statement of HtFLlib's loop.

MNIST where it is, else Fashion-MNIST, else made-up images; 200 a client, a quarter of them its own test share. All
contenders have the same data, initial weights and batches. They differ in when prototypes are taken (interfuse: of the
trained model, HtFLlib: while it trains), so accuracies need not agree to the last image. An evaluation looks at as many
images in both: interfuse takes the common test set and all compositions where HtFLlib takes the training share again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import common
import ours
import problems
from common import Contender

CLIENTS, SAMPLES, BATCH, LR, PULL = 20, 200, 10, 0.01, 1.0
TOLERANCE = 0.03
"""Largest difference in mean own accuracy after the same rounds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 1 where contenders did not end at the same accuracy."""
    given = common.arguments(__doc__ or "", argv)
    clients, samples = (2, 80) if given.smoke else (CLIENTS, SAMPLES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, source = problems.images(folder, clients * samples, ("mnist", "fashion-mnist"), samples * 3 // 4)
        config = {
            "method": "fedproto", "data": data, "clients": clients, "models": [f"{ours.HERE}:htfl_cnn"],
            "fusion_width": 512, "validation": 0, "test": 0.25,
            "settings": {"batch_size": BATCH, "lr": LR, "pull": PULL, "weights": "uniform"},
        }  # fmt: skip
        setup = ours.setup_of(config)
        rounds = ours.cohorts(setup, 1.0, 1 + given.repetitions)
        ours.write_problem(setup, folder, epochs=len(rounds), own_models=True)
        mine = {"config": config, "workers": 1 if given.smoke else None, "answer": "accuracy"}
        shared = {"problem": str(folder), "model": "htfl_cnn", "batch_size": BATCH, "lr": LR, "pull": PULL}
        contenders = [
            Contender("interfuse", "ours.py", mine),
            Contender("interfuse, evaluating every round", "ours.py", mine | {"evaluate": True}),
        ]
        for title, own in (
            ("HtFLlib's loop, re-stated", {"threads": 0, "evaluate": True}),
            ("the same, no evaluation", {"threads": 0, "evaluate": False}),
            ("the same, no evaluation, 1 thread", {"threads": 1, "evaluate": False}),
        ):
            scratch = folder / f"scratch-{len(contenders)}"
            scratch.mkdir()
            contenders.append(Contender(title, "peers/htfllib.py", shared | own | {"scratch": str(scratch)}))
        if given.smoke:
            contenders = [contenders[1], contenders[-1]]
        courses = common.side_by_side(contenders, rounds, 1, folder, forked=given.smoke)
    rows = common.rows_of(courses)
    evaluating = next(c.seconds for c in courses if c.contender.options.get("evaluate"))
    for row, course in zip(rows, courses, strict=True):
        if course.contender.options.get("evaluate") and course.seconds and evaluating:
            row["ratio_evaluating"] = common.ratio(course.seconds, evaluating)
    # the few images of a smoke run say nothing about accuracy
    differing = [] if given.smoke else common.disagreements(rows, TOLERANCE)
    parameters = {
        "clients": clients, "samples": samples, "batch_size": BATCH, "lr": LR, "pull": PULL, "data": source,
        "warm_up": 1, "repetitions": given.repetitions, "tolerance": TOLERANCE,
    }  # fmt: skip
    columns = common.COLUMNS | {"ratio_evaluating": "ratio among those that evaluate"}
    title = f"FedProto, {clients} clients of {samples} images ({source})"
    common.publish("fedproto", given.out, parameters, {title: common.table(rows, columns)}, {"rows": rows}, differing)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
