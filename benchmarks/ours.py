"""interfuse as a contender, through its Python API, and the problem it sets to all others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import workload
from driver import Channel, Cohort, options, serve
from interfuse import SplitModel
from interfuse.data import EpochOrder
from interfuse.data.inputs import ONLY, named
from interfuse.engines import InProcess, local
from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.runs import parse_config
from interfuse.runs.loop import assemble
from interfuse.setup import Setup

HERE = Path(__file__).resolve()


def cnn(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return SplitModel(dict(workload.cnn().named_children()))


def htfl_cnn(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return SplitModel(dict(workload.htfl_cnn().named_children()))


def mlp(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return SplitModel(dict(workload.mlp().named_children()))


def large_mlp(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return SplitModel(dict(workload.large_mlp().named_children()))


def setup_of(values: Mapping[str, Any]) -> Setup:
    """The federation of a configuration.

    Raises:
        ConfigError: this version of interfuse does not know a value.
    """
    return assemble(parse_config(values, "benchmark"))


def cohorts(setup: Setup, participation: float, rounds: int) -> list[Cohort]:
    """Who takes part in each round, as interfuse draws it, and which epoch of each client that is."""
    federation = Federation(setup, InProcess(setup))
    epochs = dict.fromkeys(federation.clients.ids, 0)
    found = []
    for number in range(1, rounds + 1):
        federation.exchange.enter(number, "training")
        drawn = federation.clients.sample(participation).ids
        found.append([(client, epochs[client]) for client in drawn])
        for client in drawn:
            epochs[client] += 1
    return found


def write_problem(setup: Setup, folder: Path, epochs: int, *, own_models: bool = False) -> None:
    """Write what the other contenders read, see :class:`workload.Problem`.

    Args:
        epochs: How many epochs of each client are needed at most.
        own_models: Each client begins with weights of its own, not with the server's.
    """
    data, shares, normal = setup.dataset, setup.shares, setup.dataset.normalisation[ONLY]
    order = np.empty((len(shares), epochs, len(shares[0].train)), np.int64)
    for client, share in enumerate(shares):
        samples = EpochOrder(setup.seed, client, len(share.train))
        for epoch in range(epochs):
            order[client, epoch] = np.concatenate(list(samples.epochs(1, len(share.train))))
    np.savez(
        folder / "problem.npz",
        x_train=named(data.x_train)[ONLY].numpy(), y_train=data.y_train.numpy(),
        x_test=named(data.x_test)[ONLY].numpy(), y_test=data.y_test.numpy(),
        rows=np.stack([share.train for share in shares]), test_rows=np.stack([share.test for share in shares]),
        order=order, mean=np.array(normal.mean, np.float32), std=np.array(normal.std, np.float32),
    )  # fmt: skip
    if own_models:
        for client, architecture in enumerate(setup.architectures):
            model = setup.build(architecture, client)
            workload.write_weights(folder / f"initial-{client}.npz", model.state_dict())
    else:
        federation = Federation(setup, InProcess(setup))
        federation.start()
        workload.write_weights(folder / "initial.npz", federation.server.state.weights)


def main() -> None:
    channel, given = Channel(), options()
    setup = setup_of(given["config"])
    federation = Federation(setup, local(setup, given["workers"]))
    federation.start()

    def run_round(cohort: Cohort) -> None:
        federation.run_round()
        drawn = sorted({entry.client for entry in federation.exchange.ledger.drain() if entry.heading == "training"})
        if drawn != sorted(client for client, _ in cohort):
            raise SystemExit(f"interfuse drew the clients {drawn}, the others {cohort}")
        if given.get("evaluate"):
            evaluate(federation, full=True)

    def result(path: Path) -> dict[str, Any]:
        if given["answer"] == "accuracy":
            own = evaluate(federation, full=True).own
            return {"accuracy": sum(own) / len(own)}
        workload.write_weights(path, federation.server.state.weights)
        return {}

    serve(run_round, result, channel)
    federation.engine.close()


if __name__ == "__main__":
    main()
