"""Adapters: where they are, what they add, and that they begin as nothing (invariants E1 to E4, E7, E10, E13, E14)."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from worlds import TinyLlama, llama2, llama3

from interfuse.data import Batch
from interfuse.errors import ModelError
from interfuse.models import SplitModel
from interfuse.models.adapters import (
    BACKBONE,
    BASIS,
    GATE,
    LINEARS,
    OWN,
    RECEIVED,
    Adapted,
    CoLoRALinear,
    CoreLinear,
    DualLoRALinear,
    GateName,
    LoRALinear,
    adapt,
    carriers,
    make_gate,
    transformer_layers,
)
from interfuse.training import fit

RANK = 3
KINDS = ("lora", "dual", "colora", "core")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def made(kind: str, base: nn.Linear, gate: GateName = "scalar", dropout: float = 0.0) -> Adapted:
    mix = make_gate(gate, base.in_features)
    return {
        "lora": partial(LoRALinear, base, RANK, 2.0, dropout),
        "dual": partial(DualLoRALinear, base, RANK, 2.0, mix, dropout),
        "colora": partial(CoLoRALinear, base, RANK, 2.0, mix, dropout),
        "core": partial(CoreLinear, base, RANK, 2.0, dropout),
    }[kind]()


def adapted(model: SplitModel, kind: str = "colora", linears: tuple[str, ...] = LINEARS) -> SplitModel:
    return adapt(model, linears, lambda layer, layers, linear, base: made(kind, base))


def filled(module: nn.Module, *names: str) -> None:
    """Random values in the parameters that begin as zeros."""
    for key, parameter in module.named_parameters():
        if key.rpartition(".")[2] in names:
            nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize(
    ("layers", "blocks", "expected"),
    [
        (16, 4, (3, 7, 11, 15)), (28, 4, (6, 13, 20, 27)), (32, 4, (7, 15, 23, 31)), (24, 4, (5, 11, 17, 23)),
        (36, 4, (8, 17, 26, 35)), (30, 4, (6, 13, 20, 29)), (6, 4, (0, 1, 2, 5)), (4, 4, (0, 1, 2, 3)), (7, 1, (6,)),
    ],
)  # fmt: skip
def test_e1_carriers_are_those_of_the_sheet(layers: int, blocks: int, expected: tuple[int, ...]) -> None:
    assert carriers(layers, blocks) == expected


def test_e1_every_depth_has_as_many_carriers_as_blocks_and_ends_with_the_last_layer() -> None:
    for layers, blocks in itertools.product(range(1, 60), range(1, 9)):
        if layers < blocks:
            with pytest.raises(ModelError, match=f"{layers} layers cannot have {blocks} blocks"):
                carriers(layers, blocks)
            continue
        found = carriers(layers, blocks)
        assert len(found) == blocks
        assert list(found) == sorted(set(found))
        assert (found[0] >= 0, found[-1]) == (True, layers - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [llama2, llama3])
def test_e2_an_adapted_model_begins_as_its_backbone(kind: str, build: object) -> None:
    assert callable(build)
    backbone, x = build((5,), 3, 8), torch.randn(4, 5)
    with torch.no_grad():
        before = backbone(x)
        torch.testing.assert_close(adapted(backbone, kind)(x), before, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_e3_a_step_changes_what_is_the_clients_and_nothing_else(kind: str) -> None:
    model, x = adapted(llama2((5,), 3, 8), kind), 3 * torch.randn(20, 5)
    filled(model, "B", "P", "Q")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with model.training_parts((OWN, GATE)):
        torch.autograd.backward(model(x).square().sum())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign())
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {*model.keys_of(OWN), *model.keys_of(GATE)}
    assert not changed & {*model.keys_of(BASIS), *model.keys_of(RECEIVED), *model.given_keys}
    assert {*model.given_keys} == {*model.keys_of(BACKBONE)}
    assert {*model.tensors()} == {key for key in before if key not in model.given_keys}


def test_e4_the_gradient_of_p_is_that_of_the_formula_and_no_zero() -> None:
    base = nn.Linear(7, 6)
    module, x, g = CoreLinear(base, RANK, 2.0), torch.randn(5, 7), torch.randn(5, 6)
    torch.autograd.backward(module(x), g)
    expected = 2.0 * (g @ module.B).T @ (x @ module.A.T)
    assert module.own.P.grad is not None
    torch.testing.assert_close(module.own.P.grad, expected)
    assert expected.abs().min() > 0


def test_e7_the_updates_span_all_r_squared_directions_and_keep_norms() -> None:
    module = CoreLinear(nn.Linear(9, 8), RANK, 1.0)
    units = torch.eye(RANK * RANK).reshape(-1, RANK, RANK)
    updates = (module.B @ units @ module.A).flatten(1)
    assert torch.linalg.matrix_rank(updates) == RANK * RANK
    p = torch.randn(RANK, RANK)
    torch.testing.assert_close((module.B @ p @ module.A).norm(), p.norm())


def test_e10_a_rotated_basis_is_the_same_function_and_averages_across_bases_are_not() -> None:
    base, x = nn.Linear(9, 8), torch.randn(4, 9)
    one = CoreLinear(base, RANK, 1.0)
    filled(one, "P", "Q")
    other, r = copy.deepcopy(one), torch.linalg.qr(torch.randn(RANK, RANK))[0]
    with torch.no_grad():
        other.A.copy_(r @ one.A)
        other.B.copy_(one.B @ r.T)
        other.own.P.copy_(r @ one.own.P @ r.T)
        other.own.Q.copy_(r @ one.own.Q)
        torch.testing.assert_close(other(x), one(x))
        other.own.P.copy_((one.own.P + other.own.P) / 2)
        assert (other(x) - one(x)).norm() > 0.1 * (one(x) - base(x)).norm()


@pytest.mark.parametrize("kind", ["dual", "colora"])
def test_e13_where_own_and_received_agree_the_gate_means_nothing(kind: str) -> None:
    base = nn.Linear(7, 6)
    module, x = made(kind, base), torch.randn(5, 7)
    filled(module.own, "B", "P", "Q")
    module.received.load_state_dict(module.own.state_dict())
    with torch.no_grad():
        module.gate.beta.fill_(0.0)
        assert module.gate(x) == 0.5
        half = module(x)
        module.gate.beta.fill_(3.0)
    torch.testing.assert_close(module(x), half)
    torch.autograd.backward(module(x).square().sum())
    assert module.gate.beta.grad is not None
    torch.testing.assert_close(module.gate.beta.grad, torch.zeros(()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["dual", "colora"])
def test_e13_the_gate_of_the_input_is_noise_in_training_alone(kind: str) -> None:
    module, x = made(kind, nn.Linear(7, 6), gate="input"), torch.randn(5, 4, 7)
    filled(module, "B", "P", "Q")
    module.eval()
    assert torch.equal(module.gate(x), torch.full((5, 1, 1), 0.5))
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
    filled(module.gate, "w")
    module.eval()
    torch.testing.assert_close(module.gate(x)[:, 0, 0], (x @ module.gate.w).mean(1).sigmoid())


def test_e14_a_constant_gate_can_be_merged_into_the_layer() -> None:
    base, x = nn.Linear(9, 8), torch.randn(4, 9)
    module = CoLoRALinear(base, RANK, 2.0, make_gate("scalar", 9))
    filled(module, "P", "Q", "beta")
    beta, (own, received) = module.gate(x), (module.own, module.received)
    weight = base.weight + 2 * module.B @ (beta * received.P + (1 - beta) * own.P) @ module.A
    bias = base.bias + 2 * module.B @ (beta * received.Q + (1 - beta) * own.Q)
    torch.testing.assert_close(module(x), nn.functional.linear(x, weight, bias))


def test_e14_so_can_two_lora_adapters() -> None:
    base, x = nn.Linear(9, 8), torch.randn(4, 9)
    module = DualLoRALinear(base, RANK, 2.0, make_gate("scalar", 9))
    filled(module, "A", "B", "beta")
    beta, own, received = module.gate(x), module.own, module.received
    weight = base.weight + 2 * (beta * received.B @ received.A + (1 - beta) * own.B @ own.A)
    torch.testing.assert_close(module(x), nn.functional.linear(x, weight, base.bias))


def test_dropout_is_of_the_adapter_alone() -> None:
    base, x = nn.Linear(9, 8), torch.randn(4, 9)
    module = LoRALinear(base, RANK, 1.0, dropout=0.999999)
    filled(module, "B")
    torch.testing.assert_close(module(x), base(x))
    module.eval()
    assert not torch.allclose(module(x), base(x))


def test_layers_are_found_by_the_names_of_their_modules() -> None:
    model = llama3((5,), 3, 8)
    layers = transformer_layers(model)
    assert len(layers) == 3
    assert tuple(layers[1]) == LINEARS
    assert layers[1]["down"] == "transformer.0.layers.1.mlp.down_proj"
    # of several transformers it is the last one's: a vision tower comes before what answers
    two = SplitModel({"tower": nn.Flatten(), "seen": TinyLlama(2, 4), "text": TinyLlama(3, 4)})
    assert transformer_layers(two)[0]["q"] == "text.layers.0.self_attn.q_proj"
    assert transformer_layers(adapted(model)) == layers


def test_what_cannot_have_adapters_says_so() -> None:
    plain = SplitModel({"base": nn.Linear(5, 4), "modular": nn.Linear(4, 3)})
    with pytest.raises(ModelError, match="no transformer layers with the modules of a known family"):
        adapted(plain)
    with pytest.raises(ModelError, match=r"layers have no 'query'.*take linears"):
        adapted(llama2((5,), 3, 8), linears=("query",))
    with pytest.raises(ModelError, match="rank 3 is above the width of a linear layer of 2 inputs"):
        made("colora", nn.Linear(2, 6))
    with pytest.raises(ModelError, match="has an adapter already"):
        adapted(adapted(llama2((5,), 3, 8)))


def test_learning_rates_differ_by_group() -> None:

    def loss(model: SplitModel, batch: Batch, step: int) -> Tensor:
        found: Tensor = model(batch.x).sum()
        return found

    model, x = adapted(llama2((5,), 3, 8), "lora"), torch.randn(6, 5)
    filled(model, "B")
    slow, batch = copy.deepcopy(model), Batch(x, torch.zeros(6))
    before = {key: tensor.clone() for key, tensor in model.tensors(OWN).items()}
    fit(model, loss, [batch], lr=0.2, train=OWN)
    fit(slow, loss, [batch], lr=0.1, train=OWN, scales={OWN: 2.0})
    for key, tensor in slow.tensors(OWN).items():
        torch.testing.assert_close(tensor, model.tensors(OWN)[key])
    fit(slow, loss, [batch], lr=0.1, train=OWN, scales={OWN: 0.0}, optimizer="adamw")
    assert any(not torch.equal(slow.tensors(OWN)[key], tensor) for key, tensor in before.items())
