"""A client that comes when FedMosaic's run is over begins with a mixture by relevance, against sums by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from small_runs import config_of
from torch import Tensor
from worlds import resident, tiny_dataset

from interfuse.client import Client
from interfuse.data import ClientData, EpochOrder
from interfuse.families.mosaic import Mosaic
from interfuse.families.weighing import relevance, weights
from interfuse.federation import Federation
from interfuse.methods.fedmosaic import FedMosaic
from interfuse.methods.fedmosaic_ablations import FedMosaicAblations
from interfuse.methods.fedmosaic_homo import FedMosaicHomo
from interfuse.models import SplitModel
from interfuse.models.adapters import BASIS, GATE, OWN, RECEIVED
from interfuse.party import ALL, Held
from interfuse.result import Result
from interfuse.runs import Given, execute

SETTINGS: dict[str, Any] = {
    "rank": 2, "alpha": 4.0, "local_steps": 3, "batch_size": 4, "lr": 0.05, "dropout": 0.0, "gradient_every": 1,
    "temperature": 0.1, "noise": 0.0, "probe": f"{worlds.__file__}:llama2",
}  # fmt: skip
MODELS = [f"{worlds.__file__}:llama2", f"{worlds.__file__}:llama3"]


def newcomer(f: Federation, like: int, rows: Any) -> Client[Any]:
    """A client of the architecture of another, with rows of its own, whose model is new."""
    setup, profile = f.setup, f.clients.profiles[like]
    data = ClientData(setup.dataset, worlds.shares_of(rows)[0], setup.inputs_of(like), setup.public)
    new: Client[Any] = Client(profile, data, EpochOrder(9, like, len(rows)), setup.dims, 9)
    new.networks["model"] = Held(ALL)
    new.networks["model"].own(setup.build(profile.architecture, "newcomer"))
    for name, network in f.method.networks(profile, setup.dims).items():
        new.networks[name] = Held(network.keeps)
        new.networks[name].own(network.build())
    return new


def welcomed(f: Federation, like: int, rows: Any = range(20)) -> Client[Any]:
    new = newcomer(f, like, rows)
    f.method.welcome(f.server, new, resident(f, like).model, f.setup.profiles)
    return new


def shares_by_hand(f: Federation, new: Client[Any], among: Tensor) -> Tensor:
    """The softmax over the cosines of the newcomer's gradient and those that the server has kept."""
    again = newcomer(f, new.profile.id, range(20))
    gradient = f.method.probed(again, f.method.positions(again)).gradient  # type: ignore[attr-defined]
    kept = f.server.state.relevance.gradients
    matrix = relevance(torch.cat([kept, gradient[None]]))
    allowed = torch.zeros(len(matrix), len(matrix), dtype=torch.bool)
    allowed[-1, :-1] = among
    return weights(matrix, 0.1, allowed)[-1, :-1]


@pytest.mark.parametrize("like", [0, 1])
def test_it_begins_with_what_relevance_mixes_of_the_stored(like: int) -> None:
    f = worlds.federation(FedMosaic(**SETTINGS, blocks=2), models=[worlds.llama2, worlds.llama3], clients=5, rounds=2)
    state = f.server.state
    assert isinstance(state, Mosaic)
    new, peer = welcomed(f, like), resident(f, like).model
    place = new.order.saved()["place"].tolist()
    model = new.model
    of_all, alike = (
        shares_by_hand(f, new, among)
        for among in (torch.ones(5, dtype=torch.bool), torch.tensor([c % 2 == like for c in range(5)]))
    )
    assert place == [0, 0]  # its training begins where that of any other start does
    assert float(of_all.max()) < 1
    own, came = model.tensors(OWN), model.tensors(RECEIVED)
    paths = f.method.carriers_of(new)  # type: ignore[attr-defined]
    for b, block in enumerate(paths):
        for i, path in enumerate(block):
            for name in "PQ":
                expected = sum(float(of_all[j]) * getattr(sent.cores, name)[b, i] for j, sent in state.sent.items())
                torch.testing.assert_close(own[f"{path}.own.{name}"], expected)
                assert torch.equal(own[f"{path}.own.{name}"], came[f"{path}.received.{name}"])
    others = state.sent[like].others.tensors
    assert others or like == 0  # llama2's two layers both carry P and Q
    for key in others:
        expected = sum(float(alike[j]) * state.sent[j].others.tensors[key] for j in range(like, 5, 2))
        torch.testing.assert_close(own[key], expected)
        assert torch.equal(own[key], came[key.replace(".own.", ".received.")])
    assert all(torch.equal(tensor, peer.tensors(BASIS)[key]) for key, tensor in model.tensors(BASIS).items())
    assert not any(tensor.any() for tensor in model.tensors(GATE).values())


def test_one_with_the_rows_of_another_begins_nearest_to_that() -> None:
    f = worlds.federation(
        FedMosaic(**SETTINGS | {"temperature": 0.001, "local_steps": 12}, blocks=2), models=[worlds.llama2],
        shares=worlds.shares_of(range(0, 20, 3), range(1, 30, 3), range(2, 40, 3)), rounds=1,
    )  # fmt: skip
    state, path = f.server.state, resident(f, 0).model.keys_of("cores")[0]
    for peer, rows in enumerate((range(0, 20, 3), range(1, 30, 3), range(2, 40, 3))):
        model = welcomed(f, 0, rows).model
        ways = {c: distance(model, resident(f, c).model) for c in range(3)}
        assert min(ways, key=lambda c: ways[c]) == peer, (ways, path, state.relevance.matrix)


def distance(one: SplitModel, other: SplitModel) -> float:
    return worlds.largest_difference(one.tensors("cores"), other.tensors("cores"))


def test_where_nobody_is_alike_or_nothing_is_stored_it_begins_as_the_backbone() -> None:
    empty = worlds.federation(FedMosaic(**SETTINGS, blocks=2), models=[worlds.llama2], clients=2)
    assert not any(tensor.any() for tensor in welcomed(empty, 0).model.tensors("cores").values())
    nobody = FedMosaicAblations(**SETTINGS, blocks=2, partners="none")
    f = worlds.federation(nobody, models=[worlds.llama2], clients=2, rounds=1)
    assert not any(tensor.any() for tensor in welcomed(f, 1).model.tensors("cores").values())


@pytest.mark.parametrize("method", ["fedmosaic", "fedmosaic-homo", "fedmosaic-plus", "fedmosaic-ablations", "fedit"])
def test_adaptation_tells_steps_from_there_beside_those_from_nothing(method: str, tmp_path: Path) -> None:
    known = SETTINGS | ({"blocks": 2} if method not in ("fedmosaic-homo", "fedit") else {})
    if method == "fedit":
        known = {name: known[name] for name in ("rank", "alpha", "local_steps", "batch_size", "lr", "dropout")}
    if method == "fedmosaic-ablations":
        known["weigh"] = "uniform"
    given = Given(dataset=tiny_dataset(), public=tiny_dataset())
    execute(
        config_of(method, rounds=2, settings=known, models=MODELS, public="in-memory:tiny"),
        tmp_path / "run",
        given=given,
    )
    result = Result(tmp_path / "run", given)
    before = worlds.everything_owned(result._federation)
    found = result.adaptation(tiny_dataset(rows=30, seed=4), clients=[0, 1], steps=(0, 2))
    starts = [f"welcomed ({name})" for name in reversed(MODELS)]
    assert [start for start in found.curves if start.startswith("welcomed")] == ([] if method == "fedit" else starts)
    assert worlds.same_bits(before, worlds.everything_owned(result._federation))
    if method != "fedit":
        again = result.adaptation(tiny_dataset(rows=30, seed=4), clients=[0, 1], steps=(0, 2))
        assert again.curves == found.curves


def test_models_alike_alone_share_lora_with_it() -> None:
    method = FedMosaicHomo(**SETTINGS)
    f = worlds.federation(method, models=[worlds.llama2, worlds.llama3], clients=3, rounds=2)
    own = welcomed(f, 1).model.tensors(OWN)
    assert all(torch.equal(tensor, own[key]) for key, tensor in f.server.state.sent[1].others.tensors.items())
