"""The bare loop of the optimizer, as fast as PyTorch has it: fused steps, batches gathered an epoch at a time."""

from __future__ import annotations

from pathlib import Path

import torch

from driver import Channel, Cohort, options, serve
from workload import MODELS, Problem, train_epoch


def main() -> None:
    channel, given = Channel(), options()
    torch.set_num_threads(given["threads"])
    problem = Problem.read(Path(given["problem"]))
    model = MODELS[given["model"]]()
    model.load_state_dict(problem.initial())

    def run_round(cohort: Cohort) -> None:
        for client, epoch in cohort:
            train_epoch(model, problem.epoch_batches(client, epoch, given["batch_size"]), given["lr"], fused=True)

    serve(run_round, lambda path: {}, channel)


if __name__ == "__main__":
    main()
