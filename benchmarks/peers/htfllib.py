"""FedProto by HtFLlib's own code, from the checkout that ``HTFLLIB`` names; see :mod:`checkouts`.

PyTorch loads its saved modules where PyTorch's own switch asks for that. Models begin with the benchmark's weights by
way of HtFLlib's folder of pre-trained models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

import checkouts
from driver import Channel, options
from workload import Problem


def main() -> None:
    channel, given = Channel(), options()
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    problem = Problem.read(Path(given["problem"]))
    checkouts.enter(Path(given["checkout"]), Path(given["scratch"]))
    checkouts.write_shares(problem)
    from flcore.clients.clientbase import save_item
    from flcore.servers.serverproto import FedProto
    from flcore.trainmodel.models import BaseHeadSplit

    args = checkouts.arguments(
        given, len(problem.rows), algorithm="FedProto", lamda=given["pull"], feature_dim=512,
        models_folder_name="initial",
        models=["CNN(in_features=1, num_classes=10, height=28, num_cov=2, feature_dim=512, hidden_dims=[])"],
    )  # fmt: skip
    for client in range(len(problem.rows)):
        model = BaseHeadSplit(args, client)
        weights = dict(zip(model.state_dict(), problem.initial(client).values(), strict=True))
        model.load_state_dict(weights)
        save_item(model, f"Client_{client}", "model", args.models_folder_name)
    server = FedProto(args, 0)

    def result(path: Path) -> dict[str, Any]:
        server.evaluate()
        return {"accuracy": float(server.rs_test_acc[-1])}

    checkouts.drive(server, problem, channel, result)


if __name__ == "__main__":
    main()
