"""FedAvg by PFLlib's own code, from the checkout that ``PFLLIB`` names; see :mod:`checkouts`.

It shuffles and leaves a last small batch out; its data loader is told to do neither, so that it takes the same steps as
all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

import checkouts
from driver import Channel, options
from workload import MODELS, Problem, write_weights


def main() -> None:
    channel, given = Channel(), options()
    problem = Problem.read(Path(given["problem"]))
    checkouts.enter(Path(given["checkout"]), Path(given["scratch"]))
    checkouts.write_shares(problem)
    from flcore.clients import clientbase
    from flcore.servers.serveravg import FedAvg

    clientbase.DataLoader = in_order
    model = MODELS[given["model"]]()
    model.load_state_dict(problem.initial())
    server = FedAvg(
        checkouts.arguments(
            given, len(problem.rows), model=model, algorithm="FedAvg", dlg_eval=False, dlg_gap=100,
            batch_num_per_client=2,
            num_new_clients=0, fine_tuning_epoch_new=0, learning_rate_decay=False, learning_rate_decay_gamma=0.99,
        ),
        0,
    )  # fmt: skip

    def result(path: Path) -> dict[str, Any]:
        write_weights(path, server.global_model.state_dict())
        return {}

    checkouts.drive(server, problem, channel, result)


def in_order(samples: Dataset[Any], size: int, *, drop_last: bool, shuffle: bool) -> DataLoader[Any]:
    """Their data loader, without what would make other batches of the samples."""
    return DataLoader(samples, size)


if __name__ == "__main__":
    main()
