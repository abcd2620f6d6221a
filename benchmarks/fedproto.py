"""FedProto of 20 clients with HtFLlib's small CNN in batches of 10, beside HtFLlib.

MNIST where it is, else Fashion-MNIST, else made-up images; 200 a client, a quarter of them its own test share. All
contenders have the same data, initial weights and batches. ``HTFLLIB=path`` names a checkout of HtFLlib, whose own code
then takes part; otherwise a re-statement of its loop does. interfuse runs as the paper has it, and with HtFLlib's
choices: prototypes taken during training, every client counting the same. Those must end at HtFLlib's accuracy. An
evaluation is that of the clients' own test shares.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import common
import ours
import problems
from common import Contender, Target

CLIENTS, SAMPLES, BATCH, LR, PULL = 20, 200, 10, 0.01, 1.0
TOLERANCE = 0.01
"""Largest difference in mean own accuracy after the same rounds, among those with HtFLlib's choices."""
PAPER, CHOICES, EVALUATING = "interfuse, as the paper", "interfuse, HtFLlib's choices", "the same, evaluating"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 1 where contenders with the same choices did not end at the same accuracy."""
    given = common.arguments(__doc__ or "", argv)
    clients, samples = (2, 80) if given.smoke else (CLIENTS, SAMPLES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, source = problems.images(folder, clients * samples, ("mnist", "fashion-mnist"), samples * 3 // 4)
        paper = {"batch_size": BATCH, "lr": LR, "pull": PULL}
        config = {
            "method": "fedproto", "data": data, "clients": clients, "models": [f"{ours.HERE}:htfl_cnn"],
            "fusion_width": 512, "validation": 0, "test": 0.25, "evaluation": "own",
            "settings": paper | {"weights": "uniform", "prototypes": "during"},
        }  # fmt: skip
        setup = ours.setup_of(config)
        rounds = ours.cohorts(setup, 1.0, 1 + given.repetitions)
        ours.write_problem(setup, folder, epochs=len(rounds), own_models=True)
        mine = {"config": config, "workers": 1 if given.smoke else None, "answer": "accuracy"}
        contenders = [
            Contender(PAPER, "ours.py", mine | {"config": config | {"settings": paper}}),
            Contender(CHOICES, "ours.py", mine),
            Contender(EVALUATING, "ours.py", mine | {"evaluate": True}),
        ]
        peers, note = htfllib(folder)
        contenders += peers
        if given.smoke:
            contenders = [contenders[0], contenders[2], peers[0]]
        courses = common.side_by_side(contenders, rounds, 1, folder, forked=given.smoke)
    rows = common.rows_of(courses)
    differing = common.disagreements(rows[1:], TOLERANCE)
    parameters = {
        "clients": clients, "samples": samples, "batch_size": BATCH, "lr": LR, "pull": PULL, "data": source,
        "warm_up": 1, "repetitions": given.repetitions, "tolerance": TOLERANCE,
    }  # fmt: skip
    title = f"FedProto, {clients} clients of {samples} images ({source})"
    faster = {peers[0].name: EVALUATING, peers[1].name: CHOICES}
    targets = [
        Target(f"{slow} / {fast}, float32", 2.0, common.versus(courses, slow, fast)) for slow, fast in faster.items()
    ]
    common.publish(
        "fedproto", given, parameters, {title: common.table(rows, common.COLUMNS)}, {"rows": rows},
        [note, *differing], targets,
    )  # fmt: skip
    return 1 if differing else 0


def htfllib(folder: Path) -> tuple[list[Contender], str]:
    """HtFLlib as it comes (evaluating), without evaluation, and with one thread; and what of it this is."""
    checkout = common.checkout("HTFLLIB")
    if isinstance(checkout, Path):
        title, script, note = "HtFLlib", "peers/htfllib.py", "HtFLlib is its own code."
    else:
        title, script = "HtFLlib's loop, re-stated", "peers/htfllib_restated.py"
        note = f"HtFLlib's own code is left out, a re-statement of its loop takes part: {checkout}"
    shared = {
        "problem": str(folder), "model": "htfl_cnn", "batch_size": BATCH, "lr": LR, "pull": PULL,
        "checkout": str(checkout),
    }  # fmt: skip
    found: list[Contender] = []
    for ending, own in (
        ("evaluating", {"threads": 0, "evaluate": True}),
        ("no evaluation", {"threads": 0, "evaluate": False}),
        ("no evaluation, 1 thread", {"threads": 1, "evaluate": False}),
    ):
        scratch = folder / f"scratch-{len(found)}"
        scratch.mkdir()
        found.append(Contender(f"{title}, {ending}", script, shared | own | {"scratch": str(scratch)}))
    return found, note


if __name__ == "__main__":
    sys.exit(main())
