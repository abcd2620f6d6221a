"""Adapters of different rank on one backbone: FLoRA and HetLoRA in closed form, and what a client's own rank makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from worlds import (
    Recorder,
    everything_owned,
    federation,
    live_model,
    llama2,
    llama3,
    resident,
    same_bits,
    setup_of,
    shares_of,
    tiny_dataset,
)

from interfuse.client import Client, ClientId
from interfuse.clients import Answer, Request
from interfuse.coordination.driver import Terms, coordinate
from interfuse.errors import ClientError, ConfigError, MessageError
from interfuse.evaluation import evaluate
from interfuse.families.adapters import Adapters, AdapterTraining
from interfuse.families.averaging import under
from interfuse.federation import Federation
from interfuse.messages import Message
from interfuse.messages.delivery import check
from interfuse.methods.fedit import FedIT
from interfuse.methods.flora import FLoRA, stacked
from interfuse.methods.hetlora import HetLoRA, Rank, of_tail
from interfuse.methods.sft import SFT
from interfuse.models import SplitModel
from interfuse.runs import parse_config
from interfuse.training import Fitted

SGD: dict[str, Any] = {
    "local_steps": 2, "batch_size": 6, "lr": 0.2, "optimizer": "sgd", "dropout": 0.0, "clip": 0.0,
    "rank": 2, "alpha": 4.0, "keep_optimizer": False,
}  # fmt: skip
OWN: dict[ClientId, dict[str, Any]] = {1: {"rank": 1, "alpha": 3.0}, 3: {"rank": 4}}
RANKS, SCALES = {0: 2, 1: 1, 3: 4}, {0: 2.0, 1: 3.0, 3: 1.0}
SAMPLES = {0: 14, 1: 17, 3: 20}
BACKBONE = "llama2:"
Tensors = Mapping[str, Tensor]


def world(method: Any, **settings: Any) -> Federation:
    """Four clients of ranks 2, 1, 2 and 4, of which the third has another backbone."""
    shares = shares_of(range(0, 14), range(14, 31), range(31, 40), range(40, 60))
    usual: dict[str, Any] = {"overrides": OWN, "wrap": Recorder}
    return federation(method, models=[llama2, llama2, llama3, llama2], shares=shares, **usual | settings)


def own(f: Federation, client: ClientId) -> dict[str, Tensor]:
    return own_of(live_model(f, client))


def own_of(model: SplitModel) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.tensors(["own"]).items()}


def products(tensors: Tensors, scale: float = 1.0) -> dict[str, Tensor]:
    """s·B A by linear layer."""
    paths = [key.removesuffix(".own.A") for key in tensors if key.endswith(".A")]
    return {path: scale * tensors[f"{path}.own.B"] @ tensors[f"{path}.own.A"] for path in paths}


def sent(f: Federation, round: int) -> dict[ClientId, Any]:
    engine: Any = f.engine
    return {c: m.tensors for request, c, m in engine.up if (request.handler, request.round) == ("train", round)}


class FromKnown(AdapterTraining):
    """A client begins each round with an A that its number decides."""

    def fit(self, client: Client[Any], losses: Any, **options: Any) -> Fitted:
        draw = torch.Generator().manual_seed(client.id)
        begin = {key: torch.randn(t.shape, generator=draw) for key, t in own_of(client.model).items() if key[-1] == "A"}
        client.model.load(begin)
        return super().fit(client, losses, **options)


@dataclass(frozen=True)
class KnownFLoRA(FromKnown, FLoRA):
    """FLoRA, but for that."""


@dataclass(frozen=True)
class KnownSFT(FromKnown, SFT):
    """SFT, but for that."""


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_flora_adds_up_the_updates_of_all_ranks_exactly(weights: Any) -> None:
    f, alone = world(KnownFLoRA(**SGD, weights=weights)), world(KnownSFT(**SGD))
    assert {c: next(iter(own(f, c).values())).shape[0] for c in RANKS} == RANKS
    counts = SAMPLES if weights == "samples" else dict.fromkeys(SAMPLES, 1)
    shares = {client: count / sum(counts.values()) for client, count in counts.items()}
    f.run_round()
    alone.run_round()
    updates = {client: products(own(alone, client), SCALES[client]) for client in RANKS}
    expected = {path: sum(shares[c] * updates[c][path] for c in RANKS) for path in updates[0]}
    merged = under(BACKBONE, f.server.state.weights)
    assert merged.keys() == {f"{path}.received" for path in expected}
    for path, update in expected.items():
        torch.testing.assert_close(merged[f"{path}.received"], update, atol=1e-6, rtol=0)
    for path, update in products(own(alone, 2), 2.0).items():  # who is alone with its backbone
        found = f.server.state.weights[f"llama3:{path}.received"]
        torch.testing.assert_close(found, update, atol=1e-6, rtol=0)
    f.run_round()
    second = {client: products(tensors) for client, tensors in sent(f, 2).items()}
    for path in expected:
        both = merged[f"{path}.received"] + sum(shares[c] * second[c][path] for c in RANKS)
        found = f.server.state.weights[f"{BACKBONE}{path}.received"]
        torch.testing.assert_close(found, both, atol=1e-6, rtol=0)


def test_stacks_are_as_the_paper_has_them() -> None:
    """A below each other, times the shares; B beside each other."""
    draw = torch.Generator().manual_seed(0)
    of = {c: (torch.randn(rank, 5, generator=draw), torch.randn(4, rank, generator=draw)) for c, rank in RANKS.items()}
    shares = {0: 0.5, 1: 0.2, 3: 0.3}
    A, B = stacked({client: {"layer": pair} for client, pair in of.items()}, shares)["layer"]
    assert (A.shape, B.shape) == ((7, 5), (4, 7))
    assert torch.equal(A[2:3], 0.2 * of[1][0])
    assert torch.equal(B[:, 3:], of[3][1])
    exact = sum(share * (of[c][1].double() @ of[c][0].double()) for c, share in shares.items())
    torch.testing.assert_close((B @ A).double(), exact, atol=1e-6, rtol=0)


def test_after_a_round_of_flora_all_of_a_backbone_answer_with_one_model() -> None:
    f = world(FLoRA(**SGD, participation=0.5), rounds=2)
    engine: Any = f.engine
    assert {len({c for request, c, _ in engine.up if request.round == round}) for round in (1, 2)} == {2}
    plain = f.setup.build("llama2", "plain")
    for key, merged in under(BACKBONE, f.server.state.weights).items():
        layer: Any = plain.get_submodule(key.removesuffix(".received"))
        layer.base.weight = torch.nn.Parameter(layer.base.weight + merged)
    x = f.setup.dataset.normalise(f.setup.dataset.x_test)
    with torch.no_grad():
        whole = plain.eval()(x)
    with f.evaluating() as clients:
        for client in RANKS:
            model = live_model(f, client)
            with model.evaluating():
                torch.testing.assert_close(model(x), whole, atol=1e-5, rtol=1e-5)
        assert len(clients) == 4


def test_with_equal_ranks_padding_is_the_average_of_fedit_to_the_bit() -> None:
    settings: dict[str, Any] = {"weights": "uniform"}
    padded = world(HetLoRA(**SGD, **settings, prune_decay=1.0, prune_weight=0.0), overrides={}, rounds=2)
    plain = world(FedIT(**SGD, **settings), overrides={}, rounds=2)
    expected = plain.server.state.weights
    assert padded.server.state.weights.keys() == expected.keys()
    for key, tensor in padded.server.state.weights.items():
        assert torch.equal(tensor, expected[key] * (2.0 if key.endswith(".A") else 1.0))


@pytest.mark.parametrize("weights", ["norm", "samples", "uniform"])
def test_hetlora_pads_with_zeros_weighs_and_truncates(weights: Any) -> None:
    f = world(HetLoRA(**SGD, weights=weights, prune_decay=1.0), rounds=2)
    state = {key: tensor.clone() for key, tensor in under(BACKBONE, f.server.state.weights).items()}
    replies = sent(f, 2)
    for path in products(replies[0]):
        counts = {"samples": SAMPLES, "uniform": dict.fromkeys(RANKS, 1)}.get(weights) or {
            c: float(torch.linalg.svdvals(products(replies[c])[path]).square().sum().sqrt()) for c in RANKS
        }
        wide = {c: 4 - RANKS[c] for c in RANKS}
        of_a = {c: functional.pad(replies[c][f"{path}.own.A"], (0, 0, 0, wide[c])) for c in RANKS}
        of_b = {c: functional.pad(replies[c][f"{path}.own.B"], (0, wide[c])) for c in RANKS}
        for name, of in (("A", of_a), ("B", of_b)):
            mean: Any = sum(counts[c] * of[c] for c in RANKS) / sum(counts.values())
            torch.testing.assert_close(state[f"{path}.own.{name}"], mean, atol=1e-6, rtol=1e-5)
    f.run_round()
    engine: Any = f.engine
    came = {c: m.tensors for request, c, m in engine.down if (request.handler, request.round) == ("train", 3)}
    for client, rank in RANKS.items():
        for key, tensor in came[client].items():
            assert torch.equal(tensor, state[key][:rank] if key.endswith(".A") else state[key][:, :rank])
    deployed: Any = f.method.deployed(f.server, f.clients)
    assert all(own(f, c).keys() == deployed[c].tensors.keys() for c in f.clients)


def test_a_layer_that_nobody_changed_stays() -> None:
    f = world(HetLoRA(**SGD | {"local_steps": 0}))
    before = dict(f.server.state.weights)
    f.run_round()
    assert same_bits(before, f.server.state.weights)


def rank_of(f: Federation, client: ClientId) -> int:
    """What a client has left."""
    state: Rank = resident(f, client).state
    return state.rank


def test_a_client_gives_up_the_ranks_whose_norms_shrink_for_good() -> None:
    method = HetLoRA(**SGD | {"lr": 0.1}, prune_decay=0.5, prune_weight=0.0)
    assert [rank_of(world(method, rounds=1), c) for c in range(4)] == [2, 1, 2, 4]  # B was 0 when it came, and grew
    f = world(replace(method, prune_weight=9.0), rounds=3)
    ranks = [rank_of(f, client) for client in range(4)]
    assert ranks[1] == 1
    assert all(left < had for left, had in zip(ranks, [2, 2, 2, 4], strict=True))
    for client, tensors in sent(f, 3).items():
        for key, tensor in tensors.items():
            beyond = (tensor if key.endswith(".A") else tensor.T)[ranks[client] :]
            assert not beyond.any()
    assert not any(tensor.isnan().any() for tensor in f.server.state.weights.values())
    never = world(HetLoRA(**SGD | {"lr": 0.1}, prune_decay=1.0, prune_weight=9.0), rounds=2)
    assert [rank_of(never, client) for client in range(4)] == [2, 1, 2, 4]


def test_the_penalty_is_the_product_of_the_norms_of_the_tails() -> None:
    f = world(HetLoRA(**SGD), overrides={})
    model = live_model(f, 0)
    with torch.no_grad():
        for parameter in model.parameters_of("own").values():
            parameter.uniform_()
    tensors = own(f, 0)
    expected = [
        tensors[f"{path}.own.A"][1:].square().sum().sqrt() * tensors[f"{path}.own.B"][:, 1:].square().sum().sqrt()
        for path in products(tensors)
    ]
    nothing: Any = None
    found = of_tail(model, nothing, 0, tail=torch.tensor([0.0, 1.0]), weight=0.5)
    torch.testing.assert_close(found, 0.5 * torch.stack(expected).sum())


class Lying(Recorder):
    """An engine whose client 1 changes its replies in training."""

    lie = staticmethod(lambda tensors: tensors)

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        for answer in super().call(request, messages):
            if request.handler == "train" and answer.client == 1 and isinstance(answer.reply, Adapters):
                yield replace(answer, reply=Adapters(self.lie(answer.reply.tensors)))
            else:
                yield answer


def as_if(rank: int) -> Any:
    """The adapters, of another rank."""
    return lambda sent: {
        key: tensor.new_zeros(*((rank, tensor.shape[1]) if key.endswith(".A") else (tensor.shape[0], rank)))
        for key, tensor in sent.items()
    }


LIES: list[tuple[Any, str]] = [
    (as_if(3), r"\(3, \d+\), expected \(1, "),
    (as_if(0), r"\(0, \d+\), expected \(1, "),
    (lambda sent: dict([*sent.items()][1:]), "nothing, expected"),
    (lambda sent: {**sent, "elsewhere.own.A": torch.zeros(1, 8)}, r"'elsewhere.own.A' \(1, 8\), expected nothing"),
]


@pytest.mark.parametrize("method", [FLoRA(**SGD), HetLoRA(**SGD)], ids=["flora", "hetlora"])
@pytest.mark.parametrize(("lie", "said"), LIES)
def test_who_sends_adapters_that_it_has_not_is_named(method: Any, lie: Any, said: str) -> None:
    f = world(method, wrap=Lying)
    f.engine.lie = lie  # type: ignore[attr-defined]
    with pytest.raises(ClientError, match=f"client 1 sent as adapter .*{said}"):
        f.run_round()


def test_engines_refuse_another_rank_and_what_is_no_number() -> None:
    f = world(FLoRA(**SGD))
    shapes = f.clients.profiles[1].keys
    keys = {key: torch.ones(shape) for key, shape in shapes.items() if ".own." in key}
    check(Adapters(keys), f.setup.dims, shapes)
    for lie, said in (
        (as_if(2), "expected shape"),
        (as_if(0), "expected shape"),
        (lambda sent: {k: t * torch.nan for k, t in sent.items()}, "expected finite values"),
        (lambda sent: {k: t + 1e10 for k, t in sent.items()}, "expected values up to"),
    ):
        with pytest.raises(MessageError, match=said):
            check(Adapters(lie(keys)), f.setup.dims, shapes)


@pytest.mark.parametrize("method", [FLoRA(**SGD), HetLoRA(**SGD)], ids=["flora", "hetlora"])
def test_ranks_of_their_own_give_equal_bits_with_two_workers(method: Any) -> None:
    found = []
    for workers in (1, 2):
        f = world(method, workers=workers, rounds=2)
        found.append((everything_owned(f), evaluate(f, full=True)))
        f.engine.close()
    assert same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("clients", [1, 40])
@pytest.mark.parametrize("name", ["flora", "hetlora"])
def test_one_client_and_forty(name: str, clients: int) -> None:
    own: Any = {c: {"rank": 1 + c % 3} for c in range(1, clients)}
    method = FLoRA(**SGD | {"local_steps": 1}) if name == "flora" else HetLoRA(**SGD | {"local_steps": 1})
    f = federation(method, models=[llama2], clients=clients, overrides=own, rounds=1, dataset=tiny_dataset(rows=120))
    assert all(tensor.isfinite().all() for tensor in everything_owned(f).values())


def test_what_shapes_a_model_makes_it_another_architecture() -> None:
    setup = setup_of(FLoRA(**SGD), models=[llama2], overrides={1: {"rank": 1, "lr": 0.5}, 2: {"lr": 0.5}})
    assert [p.architecture for p in setup.profiles.values()] == ["llama2", "llama2 rank=1", "llama2"]
    assert {p.backbone for p in setup.profiles.values()} == {"llama2"}
    assert setup.profiles[1].size < setup.profiles[0].size
    apart = world(FedIT(**SGD), rounds=1)  # which averages among equal models alone
    assert {key.partition(":")[0] for key in apart.server.state.weights} == {
        "llama2", "llama3", "llama2%20rank%3D1%20alpha%3D3.0", "llama2%20rank%3D4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("own", "said"),
    [({"rank": 0}, "client 1: FLoRA: rank = 0 is impossible"), ({"linears": ("q",)}, "client 1: linears = .*the same")],
)
def test_settings_of_a_client_that_cannot_be_are_refused(own: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        setup_of(FLoRA(**SGD), models=[llama2], overrides={1: own})


def test_between_parties_all_have_one_rank(tmp_path: Path) -> None:
    config = parse_config({"method": "flora", "models": ["vqa-s"], "data": "easy-vqa", "client": {"1": {"rank": 4}}})
    nobody: Any = None
    with pytest.raises(ConfigError, match="client 1: rank = 4: between parties all models have the same rank"):
        coordinate(config, tmp_path, Terms(nobody, 2), nobody)


def test_who_is_alone_with_its_backbone_is_told() -> None:
    setup = setup_of(HetLoRA(**SGD), models=[llama2, llama3], clients=2)
    notice = setup.method.notice(setup.profiles)
    assert notice is not None
    assert "No two clients have one backbone" in notice.text
    assert setup.method.notice(setup_of(HetLoRA(**SGD), models=[llama2], clients=2).profiles) is None
