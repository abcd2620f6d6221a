"""FedAvg with pfl-research, a round at a time: a callback at the end of a central iteration waits for the next one.

With ``tuned`` it shards the cohort over processes of one thread (its own data parallelism, over gloo), else one process
has all threads.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from driver import Channel, Cohort, end_with_parent, options
from workload import LAYOUTS, MODELS, Problem, write_weights


class Net(torch.nn.Module):
    """The model with what pfl asks of one."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.net = MODELS[given["model"]]().to(memory_format=LAYOUTS[given["layout"]])  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        return functional.cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Any]:
        from pfl.metrics import Weighted

        return {"loss": Weighted(float(self.loss(x, y)), len(y))}


def main() -> None:
    channel, given = Channel(), options()
    helpers = spread(given["processes"]) if given["tuned"] and "RANK" not in os.environ else []
    if given["tuned"]:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    # a process joins the others when pfl is imported
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    problem = Problem.read(Path(given["problem"]), given["layout"])
    net = Net(given)
    net.net.load_state_dict(problem.initial())

    def result(path: Path) -> dict[str, Any]:
        write_weights(path, net.net.state_dict())
        return {}

    clock = 0.0
    drawn: Iterator[tuple[int, int]] = iter(())

    def wait() -> int:
        """Wait for the next round, and say how many take part; 0 at the end."""
        nonlocal clock, drawn
        cohort = channel.next_round(result)
        for helper in helpers:
            tell(helper, cohort)
        drawn, clock = iter(cohort or ()), time.perf_counter()
        return len(cohort or ())

    class Step(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            channel.answer({"seconds": time.perf_counter() - clock})
            return wait() == 0, Metrics()

    def dataset(user: tuple[int, int]) -> Any:
        return PyTorchTensorDataset(problem.epoch(*user), user_id=str(user[0]))

    data = FederatedDataset(dataset, lambda: next(drawn))
    model = PyTorchModel(
        net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0),
        amp_dtype=torch.bfloat16 if given["dtype"] == "bfloat16" else None,
    )  # fmt: skip
    train = NNTrainHyperParams(
        local_batch_size=given["batch_size"], local_num_epochs=1, local_learning_rate=given["lr"]
    )
    channel.ready()
    if cohort_size := wait():
        rounds = NNAlgorithmParams(
            central_num_iterations=10**6, evaluation_frequency=10**6, train_cohort_size=cohort_size, val_cohort_size=0
        )
        FederatedAveraging().run(
            rounds, SimulatedBackend(data, data), model, train, NNEvalHyperParams(local_batch_size=500), [Step()]
        )


def spread(processes: int) -> list[subprocess.Popen[str]]:
    """Make this the first of several processes as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "benchmark", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
    }  # fmt: skip
    helpers = []
    for rank in range(1, processes):
        ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        helpers.append(
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env=os.environ | ranked,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                preexec_fn=end_with_parent,
            )
        )
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    return helpers


def tell(helper: subprocess.Popen[str], cohort: Cohort | None) -> None:
    """Pass a request for a round on, or the end."""
    assert helper.stdin is not None
    if cohort is None:
        helper.stdin.close()
    else:
        print(json.dumps({"do": "round", "clients": cohort}), file=helper.stdin, flush=True)


if __name__ == "__main__":
    main()
