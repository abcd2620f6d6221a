"""FedMosaic: who gets what (E2, E5, E6, E15), against sums by hand; what it sends, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor
from worlds import Recorder, entries, llama2, llama3, resident

from interfuse.client import ClientId
from interfuse.errors import ClientError, ModelError
from interfuse.families.adapters import Adapters, BlockAdapters
from interfuse.families.mosaic import Mixture, Mosaic, Upload
from interfuse.families.relevance import ProbeGradient
from interfuse.families.weighing import mixed, weights
from interfuse.federation import Federation
from interfuse.methods.fedmosaic import FedMosaic
from interfuse.methods.fedmosaic_homo import FedMosaicHomo
from interfuse.models.adapters import BASIS, CORES, GATE, OWN, RECEIVED
from interfuse.models.split import SplitModel

SMALL = FedMosaic(
    rank=2, alpha=4.0, blocks=2, local_steps=3, batch_size=4, lr=0.05, dropout=0.0, probe=f"{worlds.__file__}:llama2",
    gradient_every=1, temperature=0.1,
)  # fmt: skip


def federation(method: Any = SMALL, *, models: Any = (llama2, llama3), clients: int = 5, **rest: Any) -> Federation:
    return worlds.federation(method, models=models, clients=clients, **rest)


def model_of(f: Federation, client: ClientId) -> SplitModel:
    return resident(f, client).model


def state(f: Federation) -> Mosaic:
    found = f.server.state
    assert isinstance(found, Mosaic)
    return found


def test_e2_a_round_with_nothing_received_begins_at_the_backbone() -> None:
    f = federation()
    x, model = torch.randn(6, 5), model_of(f, 1)
    with model.evaluating():
        adapted = model(x)
        plain = llama3((5,), 3, 8)
        plain.load({key.replace(".base.", "."): t for key, t in model.live(model.given_keys).items()})
        torch.testing.assert_close(adapted, plain(x), atol=0, rtol=0)


def test_bases_are_those_of_the_architecture_and_gates_stay_at_home() -> None:
    f = federation(wrap=Recorder, rounds=2)
    for one, other in ((0, 2), (1, 3)):
        mine, its = (model_of(f, client).tensors(BASIS) for client in (one, other))
        assert all(torch.equal(mine[key], its[key]) for key in mine)
    assert not any(".gate." in key for key in state(f).sent[0].others.tensors)
    gates = [model_of(f, client).tensors(GATE) for client in (0, 2)]
    assert any(not torch.equal(gates[0][key], gates[1][key]) for key in gates[0])


def test_a_client_gets_the_mixture_of_the_last_round_by_relevance_and_never_its_own() -> None:
    f = federation(rounds=2)
    before = state(f)
    f.run_round()
    among = torch.tensor([[i % 2 == j % 2 for j in range(5)] for i in range(5)])
    for shares, alike in (
        (weights(before.relevance.matrix, 0.1), False),
        (weights(before.relevance.matrix, 0.1, among), True),
    ):
        torch.testing.assert_close(shares.sum(1), torch.ones(5))
        assert not shares.diagonal().any()
        for client in range(5):
            received = model_of(f, client).tensors(RECEIVED)
            if alike:
                for key in before.sent[client].others.tensors:
                    peers = {j: before.sent[j].others.tensors[key] for j in range(5) if j % 2 == client % 2}
                    assert_mixture(received[key.replace(".own.", ".received.")], shares[client], peers)
            else:
                sent = {j: before.sent[j].cores.P.flatten(0, 1) for j in range(5)}
                carried = [t for key, t in received.items() if key.endswith(".P")]
                own_order = [key for key in model_of(f, client).keys_of(CORES) if key.endswith(".P")]
                assert len(carried) == len(own_order) == 14
                assert_mixture(by_linear(model_of(f, client), "received.P"), shares[client], sent)


def by_linear(model: SplitModel, last: str) -> Tensor:
    """Of the two last layers, by the linears' order of the paper."""
    layers = sorted({key.split(".layers.")[1].split(".")[0] for key in model.keys_of(CORES)})
    order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    live = {key: t for key, t in model.tensors(RECEIVED).items() if key.endswith(last)}
    return torch.stack(
        [next(t for k, t in live.items() if f".layers.{i}." in k and n in k) for i in layers for n in order]
    )


def assert_mixture(found: Tensor, shares: Tensor, tensors: Mapping[int, Tensor]) -> None:
    expected = sum(float(shares[j]) * tensor for j, tensor in tensors.items())
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found, expected)


def test_e5_who_has_nobody_alike_keeps_a_copy_of_its_own() -> None:
    f = federation(models=[llama2, llama2, llama3], clients=3, rounds=1)
    sent = state(f).sent[2].others.tensors
    f.run_round()
    received = model_of(f, 2).tensors(RECEIVED)
    assert sent
    for key, tensor in sent.items():
        torch.testing.assert_close(received[key.replace(".own.", ".received.")], tensor, atol=0, rtol=0)


def test_e6_a_mixture_of_p_is_the_mixture_of_updates_and_one_of_a_and_b_is_not() -> None:
    shares, (A, B) = torch.tensor([0.2, 0.5, 0.3]), (torch.randn(2, 6), torch.randn(7, 2))
    sent = {j: {"P": torch.randn(2, 2)} for j in range(3)}
    by_updates = sum(float(shares[j]) * B @ sent[j]["P"] @ A for j in range(3))
    assert isinstance(by_updates, Tensor)
    torch.testing.assert_close(B @ mixed(shares, sent)["P"] @ A, by_updates)
    pairs = {j: {"A": torch.randn(2, 6), "B": torch.randn(7, 2)} for j in range(3)}
    apart, by_products = mixed(shares, pairs), sum(float(shares[j]) * pairs[j]["B"] @ pairs[j]["A"] for j in range(3))
    assert not torch.allclose(apart["B"] @ apart["A"], torch.as_tensor(by_products))
    twins = {j: {"P": sent[0]["P"]} for j in range(3)}
    torch.testing.assert_close(mixed(shares, twins)["P"], sent[0]["P"])


def test_what_a_round_changes_and_what_it_leaves() -> None:
    f = federation(rounds=1)
    before = {c: {k: t.clone() for k, t in model_of(f, c).state_dict().items()} for c in range(5)}
    f.run_round()
    for client in range(5):
        model = model_of(f, client)
        changed = {k for k, t in model.state_dict().items() if not torch.equal(t, before[client][k])}
        assert changed & {*model.keys_of(CORES)}
        assert changed <= {*model.keys_of(OWN), *model.keys_of(GATE), *model.keys_of(RECEIVED)}


@pytest.mark.parametrize("builder", [llama2, llama3])
def test_e15_bytes_of_p_and_q_are_the_same_for_every_width(builder: Any) -> None:
    f = federation(models=[builder], clients=2, rounds=1, wrap=Recorder)
    assert isinstance(f.engine, Recorder)
    upload = next(m for r, _, m in f.engine.up if isinstance(m, Upload))
    values = upload.adapters.cores.P.numel() + upload.adapters.cores.Q.numel()
    assert values == 2 * 7 * (2 * 2 + 2)
    carried, up = 4 * values, next(e.raw for e in entries(f) if e.direction == "up" and e.kind == "Upload")
    rest = upload.gradient.gradient.numel() + sum(t.numel() for t in upload.adapters.others.tensors.values())
    assert up == carried + 4 * rest


def test_homo_shares_among_its_own_kind_and_has_no_cores() -> None:
    method = FedMosaicHomo(
        **{k: getattr(SMALL, k) for k in ("rank", "alpha", "local_steps", "batch_size", "lr", "probe")}
    )
    f = federation(method, clients=4, rounds=2)
    mixture = state(f).sent[0]
    assert mixture.cores.P.numel() == mixture.cores.Q.numel() == 0
    assert {*mixture.others.tensors} == {*model_of(f, 0).keys_of(OWN)}


def altered(upload: Upload, **changes: Any) -> Upload:
    cores, others = upload.adapters.cores, upload.adapters.others
    return Upload(Mixture(changes.get("cores", cores), changes.get("others", others)), upload.gradient)


HOSTILE: dict[str, Any] = {
    "P and Q of shapes": lambda u: altered(u, cores=BlockAdapters(u.adapters.cores.P[:1], u.adapters.cores.Q[:1])),
    "missing: ": lambda u: altered(u, others=Adapters({})),
    "a gradient of shape": lambda u: replace(u, gradient=type(u.gradient)(u.gradient.gradient[:1])),
}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_uploads_are_the_fault_of_who_sent_them(words: str) -> None:
    f = federation(rounds=1)
    upload = Upload(state(f).sent[1], next_gradient(f))
    with pytest.raises(ClientError, match=f"client 1 .*{words}") as caught:
        SMALL.taken(f.server, f.clients.profiles, {1: HOSTILE[words](upload)})
    assert caught.value.client == 1


def next_gradient(f: Federation) -> ProbeGradient:
    return ProbeGradient(state(f).relevance.gradients[0])


def test_models_that_cannot_carry_it_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"client 0 .*2 layers cannot have 4 blocks"):
        federation(replace(SMALL, blocks=4))
    with pytest.raises(ModelError, match="rank 9 is above the width"):
        federation(replace(SMALL, rank=9))
    with pytest.raises(ModelError, match="no transformer layers"):
        federation(models=["logistic"])
