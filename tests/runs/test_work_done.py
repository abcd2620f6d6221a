"""Work that could not be done is counted, and goes with the figures."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import tiny_dataset

import interfuse
from interfuse import Client, Clients, Method, Network, Profile, Result, Server, SplitModel, cross_entropy, on_client
from interfuse.data import Batch
from interfuse.messages import Dims
from interfuse.models import Builder
from interfuse.numerics import Numerics
from interfuse.report import diagnose
from interfuse.report.progress import Standing
from interfuse.runs import Given, Row, execute, parse_config
from interfuse.runs.summary import LeftOut, Steps


def normalised(sample_shape: tuple[int, ...], classes: int, width: int, *, front: bool, tail: bool) -> SplitModel:
    """Two blocks of vectors, with batch normalisation in one of them or in both."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(5, width), *([nn.BatchNorm1d(width)] if front else []))
    return interfuse.pair(base, nn.Sequential(*([nn.BatchNorm1d(width)] if tail else []), nn.Linear(width, classes)))


BOTH = partial(normalised, front=True, tail=True)


def run(path: Path, method: str, rows: int, build: Builder = BOTH, **options: Any) -> Result:
    """A client for each 4 of the rows, none of which are kept back."""
    values: dict[str, Any] = {
        "method": method, "data": "in-memory:tiny", "models": ["in-memory:pair"], "clients": rows // 4, "rounds": 2,
        "fusion_width": 8, "beside": [], "validation": 0.0, "test": 0.0, "eval_every": 2, "execution": {"workers": 1},
    }  # fmt: skip
    given = Given(dataset=tiny_dataset(rows), builders=[build])
    execute(parse_config(values | options), path, given=given)
    return Result(path, given)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_last_row_of_each_epoch_is_counted_where_it_cannot_be_trained_on(tmp_path: Path, workers: int) -> None:
    """Shares of 5, 5, 4 rows in batches of 4: two clients have a row left over in each of two epochs a round."""
    result = run(
        tmp_path / "r", "fedavg", 14, settings={"batch_size": 4, "local_epochs": 2}, execution={"workers": workers}
    )
    five = [client.id for client in result.summary.clients if client.samples == 5]
    assert len(five) == 2
    assert [row.left_out for row in result.metrics] == [LeftOut(), *[LeftOut(clients=dict.fromkeys(five, 2))] * 2]
    assert [row.first_steps for row in result.metrics] == [(), (0, 1, 2), ()]
    summary = result.summary
    assert (summary.left_out, summary.untrained) == (LeftOut(clients=dict.fromkeys(five, 4)), ())
    assert summary.gradient_steps.clients == 2 * 3 * 2
    (found,) = [d for d in diagnose(summary, result.metrics) if d.name == "rows left out of training"]
    assert f"Clients {five[0]} and {five[1]} left out 8 rows" in found.text
    assert "batch_size" in found.text


def test_a_follower_hears_of_each_client_once(tmp_path: Path) -> None:
    result = run(tmp_path / "r", "fedavg", 14, settings={"batch_size": 4})
    standing = Standing(result.config, 0)
    lines = [standing.update(row) for row in result.metrics]
    assert [len(found) for found in lines] == [0, 1, 0]
    assert re.match(r"round 1: clients \d and \d left rows out of training: .*batch_size", lines[1][0])


@pytest.mark.parametrize("method", ["splitfed-v1", "splitfed-v2"])
@pytest.mark.parametrize(("front", "tail"), [(True, False), (False, True)])
def test_neither_side_of_a_cut_takes_a_step_on_what_the_other_leaves_out(
    tmp_path: Path, method: str, front: bool, tail: bool
) -> None:
    """Shares of 1, 1 and 2 rows: of the first two nothing can be trained on, on whichever side."""
    build = partial(normalised, front=front, tail=tail)
    summary = run(tmp_path / "r", method, 4, build, clients=3).summary
    alone = [client.id for client in summary.clients if client.samples == 1]
    assert summary.gradient_steps == Steps(clients=2, server=2)
    assert summary.left_out == LeftOut(clients=dict.fromkeys(alone, 2) if front else {}, server=0 if front else 4)
    assert summary.untrained == tuple(alone)
    assert "rows left out of training" in [warning.name for warning in summary.warnings]
    build = partial(normalised, front=False, tail=False)
    summary = run(tmp_path / "s", method, 4, build, clients=3).summary
    assert (summary.gradient_steps, summary.left_out.total) == (Steps(clients=6, server=6), 0)


def test_a_generator_is_trained_whatever_the_batch_of_clients(tmp_path: Path) -> None:
    build = partial(normalised, front=False, tail=False)
    settings = {"batch_size": 1, "local_steps": 2, "generator_steps": 3}
    summary = run(tmp_path / "r", "fedgen", 8, build, settings=settings).summary
    assert (summary.gradient_steps.server, summary.left_out.total) == (2 * 3, 0)


def test_clients_without_a_step_are_named(tmp_path: Path) -> None:
    """One of ten clients is drawn in each of two rounds."""
    build = partial(normalised, front=False, tail=False)
    result = run(tmp_path / "r", "fedavg", 40, build, settings={"participation": 0.1})
    trained = {client for row in result.metrics for client in row.first_steps}
    assert result.summary.untrained == tuple(sorted({*range(10)} - trained))
    assert len(trained) in (1, 2)
    (found,) = [d for d in diagnose(result.summary, result.metrics) if d.name == "clients that never trained"]
    assert (
        f"client{'s' if len(result.summary.untrained) > 1 else ''} {result.summary.untrained[0]}" in found.text.lower()
    )


def test_a_reference_without_a_step_is_named(tmp_path: Path) -> None:
    build = partial(normalised, front=False, tail=False)
    summary = run(tmp_path / "r", "fedavg", 8, build, settings={"local_steps": 0}, beside=["local"]).summary
    (found,) = [d for d in diagnose(summary, ()) if d.name == "nothing was trained"]
    assert "nor by Local" in found.text


def test_a_line_without_the_counts_says_that_nothing_was_left_out() -> None:
    old = {
        "round": 1, "uplink": {"raw": 0, "wire": 0}, "downlink": {"raw": 0, "wire": 0},
        "steps": {"clients": 1, "server": 0}, "failures": [], "outstanding": 0, "virtual_seconds": {}, "seconds": {},
    }  # fmt: skip
    assert Row.model_validate(old).left_out.total == 0


A_MOMENT = 0.02  # seconds


def slow(model: SplitModel, batch: Batch, step: int) -> Tensor:
    time.sleep(A_MOMENT)
    return cross_entropy(model, batch, step)


def side_by_side(model: SplitModel, batch: Batch, step: int) -> Tensor:
    return slow(model.inner("model"), batch, step) + cross_entropy(model.inner("small"), batch, step)


@dataclass(frozen=True)
class ThreeNetworks(Method):
    """Clients train a model, a small network, and both in one step; the server trains one of its own."""

    def networks(self, owner: Profile | None, dims: Dims) -> dict[str, Network]:
        def build() -> SplitModel:
            return SplitModel({"layer": nn.Sequential(nn.Flatten(), nn.Linear(5, dims["classes"]))})

        return {"own" if owner is None else "small": Network(build)}

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train)
        server.fit(slow, 2 * [Batch(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))], network="own", lr=0.1)

    @on_client
    def train(self, client: Client) -> None:
        client.fit(slow, steps=2, lr=0.1)
        client.fit(slow, steps=1, lr=0.1)
        client.fit(slow, steps=2, lr=0.1, network="small")
        client.fit(side_by_side, steps=1, lr=0.1, network=("model", "small"))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("workers", "together", "computations"), [(1, 1, 3), (2, 1, 3), (1, 2, 2)])
def test_seconds_of_training_by_network(workers: int, together: int, computations: int, tmp_path: Path) -> None:
    """Of three clients in two rounds; they are parts of other phases, and no time of the run's own."""
    summary = interfuse.run(
        ThreeNetworks(), data=tiny_dataset(), models=["logistic"], clients=3, rounds=2, fusion_width=8, beside=[],
        eval_every=2, out=tmp_path / "r", progress=interfuse.Silent(),
        workers=workers, numerics=Numerics(together=together),
    ).summary  # fmt: skip
    phases = dict(summary.seconds_by_phase)
    least = {"model": 3 * 2 * computations, "small": 2 * 2 * computations, "model and small": 2 * computations}
    clients = {name: phases.pop(f"training {name}, all clients") for name in least}
    assert all(clients[name] >= steps * A_MOMENT for name, steps in least.items())
    assert sum(clients.values()) <= phases.pop("local work, all clients") + 1e-3
    assert 4 * A_MOMENT <= phases.pop("training own, server") <= phases["server"]
    assert set(phases) == {"calls", "server", "evaluation", "commit"}
    assert summary.seconds == pytest.approx(sum(phases.values()), abs=0.01)
