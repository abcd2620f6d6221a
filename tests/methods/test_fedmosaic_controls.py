"""FedMosaic's controls, and fedmosaic+: who gets what from whom, and what is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor
from worlds import Recorder, llama2, llama3, resident, run_handler, tiny_dataset

from interfuse.errors import ConfigError
from interfuse.families.mosaic import Mosaic, Upload
from interfuse.families.weighing import effective_sources
from interfuse.federation import Federation
from interfuse.methods.fedmosaic import FedMosaic
from interfuse.methods.fedmosaic_ablations import FedMosaicAblations, dealt_anew
from interfuse.methods.fedmosaic_plus import FedMosaicPlus
from interfuse.models.adapters import BASIS, RECEIVED

SMALL: dict[str, Any] = {
    "rank": 2, "alpha": 4.0, "blocks": 2, "local_steps": 1, "batch_size": 4, "lr": 0.05, "dropout": 0.0,
    "probe": f"{worlds.__file__}:llama2", "gradient_every": 1, "temperature": 0.1, "align": "none",
}  # fmt: skip
CONTROL = FedMosaicAblations(**SMALL)
TASKS = replace(tiny_dataset(), groups=torch.arange(60) % 5, group_names=("hue", "bgr", "hue", "hue", "grey"))


def federation(method: Any, rounds: int = 1, **rest: Any) -> Federation:
    rest = {"models": (llama2, llama3), "clients": 5} | rest
    return worlds.federation(method, rounds=rounds, **rest)


def state(f: Federation) -> Mosaic:
    found = f.server.state
    assert isinstance(found, Mosaic)
    return found


def shares(method: FedMosaicAblations | FedMosaic, f: Federation) -> Tensor:
    return method.mixture(state(f).relevance)


def cores(f: Federation) -> Tensor:
    return torch.stack([sent.cores.P for _, sent in sorted(state(f).sent.items())])


def test_without_a_control_it_is_fedmosaic() -> None:
    runs = [federation(kind(**SMALL), rounds=2) for kind in (FedMosaic, FedMosaicAblations)]
    assert torch.equal(cores(runs[0]), cores(runs[1]))


def test_uniform_weights_and_those_against_relevance() -> None:
    plain, uniform, anti = (replace(CONTROL, weigh=name) for name in ("relevance", "uniform", "anti"))
    runs = [federation(method) for method in (plain, uniform, anti)]
    torch.testing.assert_close(shares(uniform, runs[1]), (1 - torch.eye(5)) / 4)
    wanted, against = shares(plain, runs[0]), shares(anti, runs[2])
    off = ~torch.eye(5, dtype=torch.bool)
    ranks = [share[off].reshape(5, 4).argsort(1) for share in (wanted, against)]
    assert torch.equal(ranks[0], ranks[1].flip(1))
    assert torch.equal(state(runs[0]).relevance.matrix, state(runs[2]).relevance.matrix)  # the picture stays


def test_random_weights_are_as_selective() -> None:
    matrix = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T
    matrix[2] = matrix[:, 2] = torch.nan
    found = dealt_anew(matrix, torch.Generator().manual_seed(1))
    above = torch.ones(6, 6).triu(1).bool()
    assert sorted(map(str, found[above].tolist())) == sorted(map(str, matrix[above].tolist()))
    torch.testing.assert_close(found, found.T, equal_nan=True)
    assert torch.equal(found[above].isnan(), matrix[above].isnan())
    assert not torch.equal(found[above].nan_to_num(), matrix[above].nan_to_num())


def test_the_oracle_has_all_weight_on_those_with_the_same_task() -> None:
    """Twins have other groups that are called alike."""
    method = replace(CONTROL, weigh="oracle")
    rows = [(TASKS.groups == g).nonzero().flatten().tolist() for g in range(5)]
    f = federation(method, dataset=TASKS, shares=worlds.shares_of(*rows))
    half = [[0, 0, 0.5, 0.5, 0], [0, 1, 0, 0, 0], [0.5, 0, 0, 0.5, 0], [0.5, 0, 0.5, 0, 0], [0, 0, 0, 0, 1]]
    assert shares(method, f).tolist() == half
    assert [run_handler(f, method.tell, client=client).number for client in range(5)] == [0, 1, 0, 0, 4]
    of_several = worlds.shares_of(rows[0][:2] + rows[1][:3], rows[0][:1] + rows[1][:3] + rows[2] + rows[3], *rows[2:])
    several = federation(method, dataset=TASKS, shares=of_several)
    assert [run_handler(several, method.tell, client=client).number for client in range(5)] == [1, 0, 0, 0, 4]
    with pytest.raises(ConfigError, match="goes by tasks, but the data of client 0 have none"):
        federation(method)


def received(f: Federation, client: int) -> Tensor:
    """P of others, by linear layer."""
    model = resident(f, client).model
    paths = CONTROL.carriers_of(resident(f, client))
    live = model.tensors(RECEIVED)
    return torch.stack([torch.stack([live[f"{path}.received.P"] for path in block]) for block in paths])


@pytest.mark.parametrize("partners", ["alike", "none"])
def test_p_and_q_are_of_fewer_partners(partners: Any) -> None:
    method = replace(CONTROL, partners=partners, weigh="uniform")
    f = federation(method)
    sent = cores(f)
    f.run_round()
    for client in range(5):
        peers = [j for j in range(5) if j % 2 == client % 2 and j != client] if partners == "alike" else [client]
        torch.testing.assert_close(received(f, client), sent[peers].mean(0))


def test_reversed_blocks_come_from_the_other_end() -> None:
    runs = [federation(replace(CONTROL, reversed_blocks=way), rounds=1) for way in (False, True)]
    for f in runs:
        f.run_round()
    torch.testing.assert_close(received(runs[1], 0), received(runs[0], 0).flip(0))


PLUS = FedMosaicPlus(**SMALL, sketch=16)


def test_plus_gets_from_as_many_sources_as_it_wants() -> None:
    for sources in (1.5, 3.0):
        f = federation(replace(PLUS, sources=sources))
        found = effective_sources(replace(PLUS, sources=sources).mixture(state(f).relevance))
        torch.testing.assert_close(found, torch.full((5,), sources), atol=1e-3, rtol=0)
    f = federation(replace(PLUS, sources=0.0))
    assert torch.equal(replace(PLUS, sources=0.0).mixture(state(f).relevance), CONTROL.mixture(state(f).relevance))


def test_plus_sends_p_and_q_of_all_layers_and_a_sketch() -> None:
    f = federation(PLUS, rounds=2, wrap=Recorder)
    assert isinstance(f.engine, Recorder)
    for client, layers in ((0, 2), (1, 3)):
        upload = [m for _, c, m in f.engine.up if c == client and isinstance(m, Upload)][-1]
        assert upload.gradient.gradient.shape == (1, 16)
        others = upload.adapters.others.tensors
        assert len(others) == (layers - 2) * 7 * 2
        assert {tuple(t.shape) for t in others.values()} <= {(2, 2), (2,)}
        assert not any(".layers.0." in key or ".layers.2." in key for key in others)  # carriers of three layers
    assert all(t.any() for t in state(f).sent[1].others.tensors.values())
    got = {k: t for k, t in resident(f, 1).model.tensors(RECEIVED).items() if ".layers.1." in k}
    assert all(tensor.any() for tensor in got.values())


def test_bases_of_plus_are_those_of_the_architecture() -> None:
    f = federation(PLUS, rounds=0)
    for one, other in ((0, 2), (1, 3)):
        mine, its = (resident(f, client).model.tensors(BASIS) for client in (one, other))
        assert all(torch.equal(mine[key], its[key]) for key in mine)
