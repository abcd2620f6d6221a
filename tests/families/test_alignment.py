"""The alignment of A and B as a run does it: between clients, without a backbone that travels."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import LlamaLayer, Recorder, dataset_of, federation, live_model, run_handler

from interfuse.clients import Clients
from interfuse.data import Dataset, LanguageModelling, PublicData
from interfuse.errors import ClientError, ConfigError, DataError, InterfuseError
from interfuse.families.adapters import Basis, carrying
from interfuse.families.alignment import (
    Alignment,
    Alignments,
    basis_of,
)
from interfuse.families.alignment_maps import least_squares, shares
from interfuse.families.landmarks import Landmarks, check_basis, check_landmarks
from interfuse.families.public_tokens import chosen_rows, chosen_tokens, layer_of, observed
from interfuse.messages import Disclosure, disclosed
from interfuse.models import SplitModel
from interfuse.models.adapters import Adapted, CoLoRALinear, LoRALinear, ScalarGate, carriers
from interfuse.server import Server

ROWS, PLACES, CLASSES, TOKENS, WIDTH, RANK = 60, 6, 3, 11, 8, 3
MODES: tuple[Alignments, ...] = ("residual", "gradients", "base_outputs", "released", "none")


class Reader(nn.Module):
    """A small transformer on tokens. What answers is the last token, or the mean of all that are not padding, 0."""

    def __init__(self, width: int, layers: int, mean: bool = False, tokens: int = TOKENS) -> None:
        super().__init__()
        self.embed, self.mean = nn.Embedding(tokens, width), mean
        self.layers = nn.ModuleList(LlamaLayer(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.embed(x)
        for layer in self.layers:
            h = layer(h)
        there = (x != 0)[..., None]
        return (h * there).sum(1) / there.sum(1).clamp(min=1) if self.mean else h[:, -1]


def reader(width: int, layers: int, **options: Any) -> SplitModel:
    return SplitModel({"transformer": Reader(width, layers, **options), "answer": nn.Linear(width, CLASSES)})


def small(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return reader(WIDTH, 4)


def twin(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The same backbone by another name, so an architecture of its own."""
    return reader(WIDTH, 4)


def large(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return reader(14, 6)


def many_tokens(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return reader(14, 6, tokens=TOKENS + 1)


def shallow(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return reader(14, 1)


@dataclass(frozen=True)
class Aligned(Alignment):
    """Co-LoRA in the layers that carry it, aligned and never trained."""

    usual = {"rank": RANK, "blocks": 2, "align_ridge": 1e-9}

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        if layer in carriers(layers, self.blocks):
            return CoLoRALinear(base, self.rank, self.scale, ScalarGate(), self.dropout)
        return LoRALinear(base, self.rank, self.scale, self.dropout)

    def start(self, server: Server[Any], clients: Clients) -> None:
        self.hand_bases(clients, self.align_bases(server, clients))

    def round(self, server: Server[Any], clients: Clients) -> None:
        pass


def rows_of_tokens(rows: int = ROWS) -> Dataset:
    x = torch.randint(1, TOKENS, (rows, PLACES), generator=torch.Generator().manual_seed(0))
    y = torch.arange(rows) % CLASSES
    made: Dataset = Dataset.from_arrays("given", x, y, x[:6], y[:6], class_names=("a", "b", "c"))
    return made


def world(mode: Alignments = "residual", models: Any = (small, twin), clients: int = 2, **options: Any) -> Any:
    known = {f.name for f in fields(Aligned)}
    settings = {"align": mode} | {name: options.pop(name) for name in list(options) if name in known}
    method = replace(Aligned(), **settings)
    return federation(method, clients=clients, models=models, **{"dataset": rows_of_tokens()} | options)


def bases(model: SplitModel) -> dict[str, tuple[Tensor, Tensor]]:
    return {path: basis_of(model, path) for block in carrying(model, 2, Aligned().linears) for path in block}


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("mode", MODES)
def test_e9_an_identical_backbone_finds_the_anchors_a_and_b_where_the_mode_can(mode: Alignments) -> None:
    f = world(mode)
    anchor, other = (bases(live_model(f, client)) for client in (0, 1))
    for path, (A, B) in other.items():
        A_s, B_s = anchor[path]
        wide = path.endswith(("gate_proj", "up_proj"))  # their outputs do not span the space in which B is
        if mode == "none":
            assert min(far(A, A_s), far(B, B_s)) > 0.5
            continue
        assert far(A, A_s) < 1e-3
        if mode == "released":
            assert far(B, B_s) > 0.5  # its own random start
        elif mode == "gradients":
            if ".layers.1." in path:  # what the last layer writes has effects in three dimensions, one a class
                assert far(B, B_s) < 1e-2
        elif not wide:
            assert far(B, B_s) < 1e-3
        else:
            basis = torch.linalg.qr(live_model(f, 1).get_submodule(f"{path}.base").weight.detach().double())[0]
            assert far(B, basis @ basis.T @ B_s) < 1e-2


@pytest.mark.parametrize("mode", ["residual", "base_outputs"])
def test_what_writes_into_the_stream_goes_by_the_stream_or_by_itself(mode: Alignments) -> None:
    f = world(mode, models=(small, large), align_ridge=1e-2)
    path, wide = "transformer.layers.1.self_attn.o_proj", "transformer.layers.2.self_attn.o_proj"
    models = [live_model(f, client) for client in (0, 1)]
    tokens = chosen_tokens(models[0], f.server.public, chosen_rows(f.server.public, ROWS), ROWS * PLACES)
    x, y = (
        observed(model, f.server.public, tokens, {of: layer_of(of, model) if mode == "residual" else f"{of}.base"})[of]
        for model, of in zip(models, (path, wide), strict=True)
    )
    between = least_squares(x.outputs, y.outputs, shares(tokens.answer.double()), 1e-2)
    assert far(basis_of(models[1], wide)[1], between.T @ basis_of(models[0], path)[1]) < 1e-4


@pytest.mark.parametrize("clients", [1, 4, 40])
def test_all_clients_of_an_architecture_get_one_basis(clients: int) -> None:
    f = world(models=(small, large), clients=clients)
    found = [bases(live_model(f, client)) for client in range(clients)]
    for client in range(2, clients):
        assert all(
            torch.equal(a, b)
            for p in found[client]
            for a, b in zip(found[client][p], found[client % 2][p], strict=True)
        )
    for A, _ in (pair for of_client in found[:2] for pair in of_client.values()):
        assert torch.allclose(A @ A.T, torch.eye(RANK, dtype=torch.float64), atol=1e-6)


def test_what_travels_is_a_few_numbers_a_token_and_never_a_backbone() -> None:
    f = world(models=(large, small), clients=4, start=False)
    recorder = Recorder(f.exchange.engine)
    f.exchange.engine = recorder
    f.start()
    asked = [(request.handler, client) for request, client, _ in recorder.up]
    assert asked == [("describe", 1), ("find_basis", 0), ("own_basis", 1)]  # the small one is the anchor
    landmarks = recorder.up[0][2]
    assert isinstance(landmarks, Landmarks)
    assert landmarks.read.shape == landmarks.written.shape == (2, 7, ROWS * PLACES, RANK)
    assert disclosed(Landmarks) == {Disclosure.FEATURES, Disclosure.STATISTICS}
    assert disclosed(Basis) == {Disclosure.ADAPTERS}
    for _, _, reply in recorder.up[1:]:
        assert isinstance(reply, Basis)
        assert {key.rpartition(".")[2] for key in reply.tensors} == {"A", "B"}
        assert len(reply.tensors) == 2 * 2 * 7
    assert {client for request, client, _ in recorder.down if request.handler == "take_basis"} == {0, 1, 2, 3}


def test_settings_bound_rows_and_tokens() -> None:
    f = world(align_samples=20, align_tokens=50)
    marks = run_handler(f, f.setup.method.describe)
    assert len(marks.row) == 50
    assert len(marks.row.unique()) <= 20
    assert int(marks.answer.sum()) == 20  # one place a row answers, and all are there
    g = world(align_samples=20, align_tokens=20)
    few = run_handler(g, g.setup.method.describe)
    assert int(few.answer.sum()) == 10  # at most half, as there are others


def public_of(x: Tensor) -> PublicData:
    return PublicData(dataset_of(x, torch.arange(len(x)) % CLASSES, CLASSES), lambda rows: rows)


def test_tokens_are_those_on_which_the_output_depends() -> None:
    x = torch.tensor([[3, 1, 4, 0, 0], [1, 5, 9, 2, 6]])
    for mean in (False, True):
        model = reader(WIDTH, 2, mean=mean)
        tokens = chosen_tokens(model, public_of(x), chosen_rows(public_of(x), 9), 99)
        there = [(int(r), int(p)) for r, p in zip(tokens.row, tokens.place, strict=True)]
        answers = [pair for pair, is_answer in zip(there, tokens.answer.tolist(), strict=True) if is_answer]
        real = [(0, 0), (0, 1), (0, 2), *((1, place) for place in range(5))]
        if mean:  # the model is causal: padding behind is not seen
            assert there == answers == real
        else:
            assert there == [(row, place) for row in range(2) for place in range(5)]
            assert answers == [(0, 4), (1, 4)]


def test_places_whose_target_does_not_count_are_no_answers() -> None:
    class EachPlace(Reader):
        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.layers[0](self.embed(x))
            return h

    model = SplitModel({"transformer": EachPlace(WIDTH, 1), "answer": nn.Linear(WIDTH, CLASSES)})
    x, y = torch.tensor([[3, 1, 4, 2]]), torch.tensor([[-100, -100, 1, 2]])
    made = Dataset.from_arrays("text", x, y, x, y, task=LanguageModelling(CLASSES), layout="tokens")
    public = PublicData(made, lambda rows: rows)
    tokens = chosen_tokens(model, public, chosen_rows(public, 9), 99)
    assert tokens.answer.tolist() == [False, False, True, True]


def test_what_is_observed_is_what_hooks_by_hand_see() -> None:
    model = Aligned().adapted(reader(WIDTH, 4))
    x = torch.randint(1, TOKENS, (70, PLACES))  # several batches
    public = public_of(x)
    tokens = chosen_tokens(model, public, chosen_rows(public, 70), 100)
    path = "transformer.layers.1.self_attn.o_proj"
    assert layer_of(path, model) == "transformer.layers.1"
    seen = observed(model, public, tokens, {path: "transformer.layers.1"})[path]
    transformer: Any = model.get_submodule("transformer")
    h = transformer.layers[0](transformer.embed(x))
    q, k, v = (transformer.layers[1].self_attn[f"{name}_proj"](h) for name in "qkv")
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(seen.inputs, wanted[tokens.row, tokens.place], atol=1e-6)
    assert torch.allclose(seen.outputs, transformer.layers[1](h)[tokens.row, tokens.place], atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_are_those_of_the_same_sums_for_all_models() -> None:
    public = public_of(torch.randint(1, TOKENS, (5, PLACES)))
    model = Aligned().adapted(reader(WIDTH, 4))
    tokens = chosen_tokens(model, public, chosen_rows(public, 5), 99)
    path = "transformer.layers.3.mlp.down_proj"
    first, again = (observed(model, public, tokens, {path: f"{path}.base"}, gradients=True)[path] for _ in range(2))
    assert torch.equal(first.outputs, again.outputs)
    at_answers = first.outputs[tokens.answer]
    head = model.get_submodule("answer").weight
    projected = torch.linalg.lstsq(head.T, at_answers.T).solution.T  # the last layer's: sums of the head's rows
    assert torch.allclose(projected @ head, at_answers, atol=1e-5)
    assert not first.outputs[~tokens.answer].any()
    assert all(p.grad is None for p in model.parameters())


def test_another_tokenizer_is_refused() -> None:
    models = (small, many_tokens)
    with pytest.raises(InterfuseError, match=r"knows 12 tokens, the smallest one 11.*align = 'none'"):
        world(models=models)
    world("none", models=models)


def test_public_data_that_is_missing_or_empty_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        public_of(torch.zeros(0, PLACES, dtype=torch.int64))
    f = world(start=False)
    f.server._public = None
    with pytest.raises(ConfigError, match="public = "):
        f.start()


def test_fewer_layers_than_blocks_and_a_rank_above_the_width_are_refused() -> None:
    with pytest.raises(InterfuseError, match="1 layers cannot have 2 blocks"):
        world(models=(small, shallow))
    with pytest.raises(InterfuseError, match="rank 9 is above the width"):
        world(rank=9)


def honest() -> tuple[Any, Landmarks]:
    f = world()
    return f, run_handler(f, f.setup.method.describe)


def test_landmarks_that_nobody_can_have_found_are_refused() -> None:
    _, marks = honest()
    rows, shape = torch.arange(ROWS), (2, 7, RANK)
    check_landmarks(0, marks, rows, shape, True)
    wrong: dict[str, Any]
    flat, huge = marks.read.clone(), marks.read.clone()
    flat[0, 3, :, 1] = flat[0, 3, :, 0]
    huge[0, 0, 0, 0] = 1e12
    backwards = marks.row.flip(0)
    for wrong, said in (
        ({"read": marks.read[:1]}, "of shapes"),
        ({"written": marks.written[..., :1]}, "of shapes"),
        ({"row": torch.full_like(marks.row, ROWS)}, "some are none"),
        ({"place": marks.place - 1}, "some are none"),
        ({"row": backwards}, "out of order"),
        ({"place": torch.zeros_like(marks.place)}, "there twice"),
        ({"read": flat}, "rank below 3"),
        ({"read": huge}, "above"),
        ({"written": torch.zeros_like(marks.written)}, "rank below 3"),
    ):
        with pytest.raises(ClientError, match=said):
            check_landmarks(7, replace(marks, **wrong), rows, shape, True)
    few = Landmarks(
        marks.row[:2], marks.place[:2], marks.answer[:2], marks.read[:, :, :2], marks.written[:, :, :2], 11, 0
    )
    with pytest.raises(ClientError, match="too few"):
        check_landmarks(7, few, rows, shape, True)


def test_a_and_b_that_nobody_can_have_found_are_refused() -> None:
    f, _ = honest()
    sent = run_handler(f, f.setup.method.own_basis).tensors
    check_basis(0, sent, 14, RANK)
    some = next(iter(sent)).rpartition(".")[0]
    for wrong, said in (
        ({f"{some}.A": 2 * sent[f"{some}.A"]}, "orthonormal"),
        ({f"{some}.B": 1e12 * sent[f"{some}.B"]}, "above"),
        ({f"{some}.B": 0 * sent[f"{some}.B"]}, "a B of a rank below 3"),
        ({f"{some}.B": sent[f"{some}.B"][:, :1].expand(-1, RANK)}, "a B of a rank below 3"),
        ({f"{some}.C": sent[f"{some}.B"]}, "or others"),
    ):
        with pytest.raises(ClientError, match=said):
            check_basis(7, sent | wrong, 14, RANK)
    with pytest.raises(ClientError, match="13 linear layers"):
        check_basis(7, {key: t for key, t in sent.items() if not key.startswith(some)}, 14, RANK)
