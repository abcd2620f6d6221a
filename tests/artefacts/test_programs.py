"""Programs do what the module does, to the bit, and nothing that is on no list."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interfuse.artefacts import Program, export_program
from interfuse.errors import ArtefactError, ModelError
from interfuse.models import resolve


class Stranger(nn.Module):
    """What people write: convolution, normalisation, attention, constants, sizes, several ways to reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.normalisation = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.feed, self.dropout = nn.Linear(16, 8), nn.Dropout(0.5)
        self.last = nn.LayerNorm(8)
        self.register_buffer("scale", torch.tensor([0.25]))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32).mul_(self.scale).add_(-0.5)
        h = nn.functional.max_pool2d(torch.relu(self.normalisation(self.convolution(x))), 2)
        h = nn.functional.adaptive_avg_pool2d(h, 2).flatten(1)
        h = self.dropout(nn.functional.gelu(self.feed(h)))
        q = h[:, None].expand(-1, 3, -1) + torch.arange(3).float()[:, None]
        with torch.no_grad():
            weights = torch.tensor([1.0, float("inf"), 2.0]).clamp(max=3.0)
        q = self.last(self.attention(q, q, q)[0])
        return torch.einsum("btd,t->bd", q, weights).reshape(x.shape[0], -1)


def stranger() -> nn.Module:
    torch.manual_seed(0)
    module = Stranger()
    module.normalisation.running_mean.normal_()
    module.normalisation.running_var.uniform_(0.5, 2)
    return module.eval()


def again(program: Program) -> Program:
    return Program.of_text(program.text(), program.tensors)


@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_a_strangers_module_gives_the_same_for_any_number_of_samples(rows: int) -> None:
    module = stranger()
    x = torch.randint(0, 255, (rows, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        expected = module(x)
    found = again(export_program(module, x[[0, -1]]))(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # attention takes another path without gradients


@pytest.mark.parametrize("name", ["cnn", "cnn-bn", "deep-head", "residual", "resnet10-narrow"])
def test_models_of_the_zoo_give_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    model, x = resolve(name)((3, 16, 16), 5, 8).eval(), torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
    assert torch.equal(again(export_program(model, x[:2]))(x), expected)


def test_a_transformer_gives_the_same_but_for_rounding() -> None:
    torch.manual_seed(0)
    model, x = resolve("transformer")((9, 16), 5, 8).eval(), torch.randn(3, 9, 16)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(again(export_program(model, x[:2]))(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("last", "bounds"),
    [
        (nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Unflatten(1, (2, 2))), (0.0, None)),
        (nn.Sequential(nn.Linear(2, 4), nn.Tanh()), (-1.0, 1.0)),
        (nn.Sequential(nn.Linear(2, 4), nn.Softmax(1)), (0.0, 1.0)),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 4)), None),
        (nn.Flatten(), None),
    ],
)
def test_bounds_follow_from_the_last_operation(last: nn.Module, bounds: tuple[float, float | None] | None) -> None:
    found = again(export_program(last, torch.randn(3, 2))).bounds
    assert found == ({} if bounds is None else {"x": bounds})


def test_inputs_and_outputs_have_names() -> None:
    class Two(nn.Module):
        def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sum": x["a"] + x["b"], "a": x["a"]}

    given = {"a": torch.randn(3, 2), "b": torch.randn(3, 2)}
    found = again(export_program(Two(), given))(given)
    assert isinstance(found, dict)
    assert list(found) == ["sum", "a"]
    assert torch.equal(found["sum"], given["a"] + given["b"])
    with pytest.raises(ArtefactError, match="expected the inputs a, b, found x"):
        export_program(Two(), given)(given["a"])


class Of(nn.Module):
    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda x: x + torch.rand(4), r"aten\.rand\.default is no operation"),
        (lambda x: nn.functional.dropout(x), "aten.*dropout.* is no operation"),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5), "draws random numbers"),
        (lambda x: x * float(x.sum()), "cannot be exported"),
        (lambda x: x if x.sum() > 0 else -x, "cannot be exported"),
        (lambda x: torch.zeros(len(x), 4) + x[:, 0], r"fixes the number of samples.*x\.shape\[0\]"),
        (lambda x: torch.as_strided(x, (2, 2), (1, 1)), r"as_strided\.default is no operation"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_named(does: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        export_program(Of(does).train(), torch.randn(2, 3, 4))


def text_of(**changes: Any) -> str:
    """A program of one node, with some of it changed."""
    node = ["y", "aten.mul.Tensor", [{"node": "input.x"}, 2.0], {}]
    plain = {"format": 1, "inputs": ["x"], "outputs": {"x": {"node": "y"}}, "nodes": [node]}
    return json.dumps(plain | changes)


def with_node(operation: str, *arguments: Any, **options: Any) -> str:
    return text_of(nodes=[["y", operation, list(arguments), options]])


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 1


X = {"node": "input.x"}
HOSTILE = {
    "a file of the machine": with_node("aten.from_file.default", "/etc/passwd", False, 10),
    "other memory": with_node("aten.as_strided.default", X, [100], [1]),
    "memory of others": with_node("aten.empty.memory_format", [1000]),
    "random numbers": with_node("aten.rand.default", [2]),
    "a change of its input": with_node("aten.add_.Tensor", X, 1),
    "no ATen": with_node("prims.convert_element_type.default", X, {"dtype": "float32"}),
    "a function of Python": with_node("os.system", "true"),
    "a builtin": with_node("eval", "1"),
    "an attribute": with_node("aten.mul.__class__", X),
    "an attribute of the namespace": with_node("aten.__class__.mro"),
    "no overload": with_node("aten.mul.Nothing", X, 2),
    "a node that is not there": with_node("aten.mul.Tensor", {"node": "z"}, 2),
    "itself": with_node("aten.mul.Tensor", {"node": "y"}, 2),
    "a tensor that is not there": with_node("aten.mul.Tensor", {"tensor": "w"}, 2),
    "another kind": with_node("aten.mul.Tensor", {"code": "1"}, 2),
    "two kinds": with_node("aten.mul.Tensor", {"node": "input.x", "tensor": "w"}, 2),
    "an unknown type": with_node("aten._to_copy.default", X, dtype={"dtype": "object"}),
    "a name that is none": with_node("aten.mul.Tensor", {"node": 3}, 2),
    "too deep": with_node("aten.mul.Tensor", deep(50), 2),
    "deeper than Python": with_node("aten.mul.Tensor", 1).replace("1", "[" * 100_000, 1),
    "another format": text_of(format=2),
    "no nodes": text_of(nodes=None),
    "a node too short": text_of(nodes=[["y"]]),
    "a node too long": text_of(nodes=[["y", "aten.relu.default", [X], {}, 1]]),
    "arguments that are none": text_of(nodes=[["y", "aten.relu.default", 3, {}]]),
    "an operation that is none": text_of(nodes=[["y", 3, [X], {}]]),
    "outputs that are none": text_of(outputs=3),
    "an output that is not there": text_of(outputs={"x": {"node": "z"}}),
    "no object": "[]",
    "no JSON": "\x80abc",
    "nothing": "",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_on_no_list_is_refused_before_anything_runs(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "system", lambda command: pytest.fail(command))
    with pytest.raises(ArtefactError):
        Program.of_text(text, {})


@pytest.mark.parametrize(
    "text",
    [
        with_node("aten.mul.Tensor", X),
        with_node("aten.mul.Tensor", X, "two"),
        with_node("aten.matmul.default", X, X),
        with_node("aten.view.default", X, [7, 7, 7]),
        with_node("getitem", X, 99),
        with_node("floordiv", 1, 0),
        with_node("mul", [0], 10**12),
        with_node("mul", "a", 10**12),
        with_node("mul", 2**63, 2),
        with_node("add", X, 1),
        with_node("aten.mul.Tensor", X, 2, unknown=1),
        with_node("aten.full.default", [10**13], 1.0),
    ],
)
def test_what_cannot_be_done_is_an_error_with_the_operations_name(text: str) -> None:
    program = Program.of_text(text, {})
    with pytest.raises(ArtefactError, match=json.loads(text)["nodes"][0][1]):
        program(torch.ones(3, 2))


def test_a_program_changes_nothing_and_forgets_what_it_made() -> None:
    module, x = stranger(), torch.randint(0, 255, (3, 1, 28, 28), dtype=torch.uint8)
    program, before = export_program(module, x[:2]), x.clone()
    weights = {name: tensor.clone() for name, tensor in program.tensors.items()}
    assert torch.equal(program(x), program(x))
    assert torch.equal(x, before)
    assert all(torch.equal(weights[name], tensor) for name, tensor in program.tensors.items())
    ours, theirs = (
        {t.data_ptr() for t in program.tensors.values()},
        {t.data_ptr() for t in module.state_dict().values()},
    )
    assert not ours & theirs  # what is trained on does not change it
