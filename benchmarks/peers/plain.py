"""The plain loop, as research code writes it: one model, clients in turn, parameters summed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driver import Channel, Cohort, options, serve
from workload import LAYOUTS, MODELS, Problem, train_epoch, write_weights


def main() -> None:
    channel, given = Channel(), options()
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    problem = Problem.read(Path(given["problem"]), given["layout"])
    model = MODELS[given["model"]]().to(memory_format=LAYOUTS[given["layout"]])  # type: ignore[call-overload]
    weights = problem.initial()

    def run_round(cohort: Cohort) -> None:
        nonlocal weights
        sums: dict[str, Tensor] = {}
        for client, epoch in cohort:
            model.load_state_dict(weights)
            train_epoch(model, problem.batches(client, epoch, given["batch_size"]), given["lr"], given["dtype"])
            for key, value in model.state_dict().items():
                sums[key] = sums[key] + value if key in sums else value.clone()
        weights = {key: value / len(cohort) for key, value in sums.items()}

    def result(path: Path) -> dict[str, Any]:
        write_weights(path, weights)
        return {}

    serve(run_round, result, channel)


if __name__ == "__main__":
    main()
