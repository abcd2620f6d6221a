"""The gradient of a frozen probe: against autograd of the whole network, and by hand; what is left of it when sent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from worlds import classes_of, wide

from interfuse.data import Batch
from interfuse.errors import ModelError
from interfuse.families.probes import (
    frozen_probe,
    kept_rows,
    mean_of,
    probe_gradient,
    probed_weight,
    sanitised,
    sketched,
)
from interfuse.models import SplitModel

D, HIDDEN, CLASSES, ROWS, TIME = 64, 96, 5, 7, 3
KEY = "transformer.layers.1.mlp.down_proj.weight"
TASK = classes_of(CLASSES)


class Attention(nn.Module):
    """Linear layers with a transformer's names; tokens do not look at each other."""

    def __init__(self) -> None:
        super().__init__()
        for name in "qkvo":
            setattr(self, f"{name}_proj", nn.Linear(D, D, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.o_proj(torch.tanh(self.q_proj(x) + self.k_proj(x) + self.v_proj(x)))
        return found


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(D, HIDDEN, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(HIDDEN, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return found


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Gated()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(x)
        return x + self.mlp(functional.layer_norm(x, (D,)))


class Transformer(nn.Module):
    """From tokens ``[batch, time, d]`` to the last one's features."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.norm(x)[:, -1]
        return found


def probe(norm: nn.Module | None = None) -> SplitModel:
    torch.manual_seed(0)
    norm = norm or nn.RMSNorm(D, eps=1e-6)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    stages = {"transformer": Transformer(norm), "answer": nn.Linear(D, CLASSES, bias=False)}
    return SplitModel(stages).grouped({}, given="backbone")


def batch(rows: int = ROWS, seed: int = 1) -> Batch:
    noise = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(rows, TIME, D, generator=noise), torch.arange(rows) % CLASSES)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_e12_the_exact_gradient_is_that_of_autograd_and_of_the_chain_rule_by_hand() -> None:
    model, some = probe(), batch()
    found = probe_gradient(model, some, TASK, KEY)
    assert not found.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # all parameters asking for gradients, in the module itself
    whole = model.requires_grad_(True)
    functional.cross_entropy(whole(some.features), some.y).backward()
    expected = whole.get_parameter(KEY).grad
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    # by hand, of the last tokens alone: delta, the head, the RMSNorm, the outer product
    transformer: Transformer = model.get_submodule("transformer")
    with torch.no_grad():
        x = transformer.layers[0](some.features)
        x = x + transformer.layers[1].self_attn(x)
        mlp = transformer.layers[1].mlp
        inside = functional.layer_norm(x, (D,))
        z = (functional.silu(mlp.gate_proj(inside)) * mlp.up_proj(inside))[:, -1]
        h = x[:, -1] + mlp.down_proj(z)
        gamma, head = transformer.norm.weight, model.get_submodule("answer").weight
        s = h.square().mean(1, keepdim=True) + 1e-6
        delta = (functional.linear(gamma * h * s.rsqrt(), head).softmax(1) - functional.one_hot(some.y, CLASSES)) / ROWS
        g = gamma * (delta @ head)
        behind = g * s.rsqrt() - h * s.pow(-1.5) / D * (g * h).sum(1, keepdim=True)
    torch.testing.assert_close(found, behind.T @ z, rtol=1e-4, atol=1e-6)
    released = g * s.rsqrt() * (1 - h.square() / (s * D))
    diagonal = probe_gradient(model, some, TASK, KEY, "diagonal")
    torch.testing.assert_close(diagonal, released.T @ z, rtol=1e-4, atol=1e-6)


def test_e12_the_released_diagonal_is_near_it_and_not_it() -> None:
    model, some = probe(), batch(200)
    exact, diagonal = (probe_gradient(model, some, TASK, KEY, form) for form in ("exact", "diagonal"))
    assert 0.97 < cosine(exact, diagonal) < 0.9999
    assert float((exact - diagonal).norm() / exact.norm()) > 0.02
    assert not any(module._forward_hooks for module in model.modules())


def test_the_diagonal_is_of_an_rms_norm() -> None:
    with pytest.raises(ModelError, match="ends with LayerNorm.*exact"):
        probe_gradient(probe(nn.LayerNorm(D)), batch(), TASK, KEY, "diagonal")


def test_the_gradient_of_a_batch_is_the_mean_of_its_samples() -> None:
    model, some = probe(), batch(4)
    single = [probe_gradient(model, Batch(some.features[[i]], some.y[[i]]), TASK, KEY) for i in range(4)]
    torch.testing.assert_close(mean_of(iter(single), single[0].shape), probe_gradient(model, some, TASK, KEY))
    assert mean_of([], (2, 3)).tolist() == [[0.0] * 3] * 2


def test_the_probed_weight_is_the_down_projection_of_the_last_layer() -> None:
    assert probed_weight(probe()) == KEY
    with pytest.raises(ModelError, match="no transformer layers"):
        probed_weight(wide((5,), 3, 8))


def test_a_probe_is_the_same_everywhere_and_all_given() -> None:
    torch.manual_seed(1)
    one = frozen_probe("mlp", (5,), 3, 8)
    torch.manual_seed(2)
    other = frozen_probe("mlp", (5,), 3, 8)
    assert one.given_keys == {*one.keys_of()}
    assert not one.tensors()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_rows_are_the_first_or_drawn_and_the_same_for_all() -> None:
    assert kept_rows(10, 0.4).tolist() == [0, 1, 2, 3]
    assert kept_rows(48, 0.4).tolist() == [*range(19)]
    assert kept_rows(10, 0.7).tolist() == [*range(7)]  # 0.7 · 10 is 6.999... in floats
    assert kept_rows(3, 0.1).tolist() == [0]
    drawn = kept_rows(100, 0.4, "random", seed=3)
    assert len(set(drawn.tolist())) == 40
    assert torch.equal(drawn, kept_rows(100, 0.4, "random", seed=3))
    assert not torch.equal(drawn, kept_rows(100, 0.4, "random", seed=4))
    assert kept_rows(100, 1.0, "random").tolist() == [*range(100)]


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    gradient = torch.randn(400, 50, generator=torch.Generator().manual_seed(0)) * 0.03
    index = kept_rows(400, 0.5)

    def noise(amount: float, unit: str) -> Tensor:
        made = sanitised(gradient, index, amount, unit, torch.Generator().manual_seed(5))
        return made - gradient[:200]

    assert not noise(0.0, "absolute").any()
    assert float(noise(1e-4, "absolute").std()) == pytest.approx(1e-4, rel=0.03)
    assert float(noise(0.1, "relative").std()) == pytest.approx(0.003, rel=0.03)
    assert torch.equal(noise(1e-2, "absolute"), noise(1e-2, "absolute"))  # of the generator alone


def test_a_sketch_keeps_inner_products_in_the_mean_and_cosines_nearly() -> None:
    noise = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(19, 128, generator=noise)  # without random signs, means would count once for all places
    y = 0.6 * x + 0.8 * torch.randn(19, 128, generator=noise)
    exact, size = float((x * y).sum()), 1024
    found = torch.tensor([float((sketched(x, size, s) * sketched(y, size, s)).sum()) for s in range(200)])
    deviation = ((x.square().sum() * y.square().sum() + exact**2) / size).sqrt()
    assert abs(float(found.mean()) - exact) < 3 * float(deviation) / 200**0.5
    assert float(found.std()) < 1.15 * float(deviation)
    errors = [abs(cosine(sketched(x, size, s), sketched(y, size, s)) - cosine(x, y)) for s in range(200)]
    assert max(errors) < 4 / size**0.5


def test_a_sketch_is_linear_and_the_same_for_all_who_know_the_seed() -> None:
    x, y = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert sketched(x, 16).shape == (1, 16)
    torch.testing.assert_close(sketched(2 * x - y, 16), 2 * sketched(x, 16) - sketched(y, 16))
    assert torch.equal(sketched(x, 16, 3), sketched(x, 16, 3))
    assert not torch.equal(sketched(x, 16, 3), sketched(x, 16, 4))
