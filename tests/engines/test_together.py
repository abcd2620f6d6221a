"""Clients trained together: the same results as one after the other, but for rounding, whoever computes them."""

from __future__ import annotations

import gc
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import everything_owned, federation, same_bits, shares_of, tiny_dataset

import interfuse.engines.groups
from interfuse.client import Client, Profile
from interfuse.clients import Clients, Request
from interfuse.data import Batch
from interfuse.engines.groups import Groups, _Handling
from interfuse.engines.stacked import PERCEPTRON, FitCall, NotTogetherError, alike, fit_together
from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.handler import on_client
from interfuse.messages import Weights
from interfuse.method import Method
from interfuse.methods import built_in
from interfuse.methods.fedavg import FedAvg
from interfuse.models import SplitModel, pair
from interfuse.numerics import Numerics
from interfuse.party import ALL
from interfuse.server import Server
from interfuse.training import Cosine, Fitted, Optimizer, cross_entropy, fit, modular_cross_entropy

RAGGED = shares_of(range(0, 13), range(13, 30), range(30, 34), range(34, 57), range(57, 60), range(60, 90))
"""Other numbers of batches, and of rows in the last."""


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients were computed together, each time."""
    found: list[int] = []
    module = sys.modules["interfuse.engines.groups"]
    fit_together = interfuse.engines.groups.fit_together

    def noted(calls: Sequence[FitCall], layers: Any) -> Any:
        results = fit_together(calls, layers)
        found.append(len(calls))
        return results

    monkeypatch.setattr(module, "fit_together", noted)
    return found


def world(method: str | Method, together: int, layers: Any = "linear", **settings: Any) -> Federation:
    settings = {"models": ["mlp"], "dataset": tiny_dataset(rows=90), "clients": 6, "rounds": 2} | settings
    return federation(method, numerics=Numerics(together=together, layers_together=layers), **settings)


CASES: dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "the model of all": ("fedavg", {"lr": 0.1, "local_epochs": 2, "batch_size": 4}, {}),
    "shares of many sizes": ("fedavg", {"lr": 0.1, "local_epochs": 2, "batch_size": 4}, {"shares": RAGGED}),
    "base and modular": ("ifl", {"local_steps": 2, "batch_size": 4}, {}),
    "the modular blocks alone": (
        "ifl",
        {"local_steps": 2, "batch_size": 4},
        {"models": ["cnn"], "dataset": tiny_dataset(rows=90, shape=(1, 8, 8))},
    ),
    "tensors by client": ("fedprox", {"lr": 0.1, "batch_size": 4}, {"shares": RAGGED}),
    "two networks side by side": ("fml", {"lr": 0.1, "batch_size": 4, "meme": "mlp"}, {"shares": RAGGED}),
    "prototypes": ("fedproto", {"batch_size": 4}, {}),
    "momentum that is kept": ("local", {"batch_size": 4, "local_epochs": 1, "optimizer": "adamw"}, {}),
    "momentum that is not": (
        "fedavg",
        {"batch_size": 4, "local_epochs": 2, "optimizer": "adam"},
        {"shares": RAGGED},
    ),
    "two architectures": ("fedproto", {"batch_size": 4}, {"models": ["mlp", "logistic"]}),
    "convolutions": (
        "fedavg",
        {"lr": 0.1, "batch_size": 4},
        {"models": ["cnn"], "dataset": tiny_dataset(rows=90, shape=(1, 8, 8)), "layers": "all", "shares": RAGGED},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_clients_together_end_where_they_end_one_after_the_other(case: str, computed: list[int]) -> None:
    name, settings, more = CASES[case]
    method = built_in()[name].configure(settings)
    alone = everything_owned(world(method, 1, **more))
    assert computed == []
    together = everything_owned(world(method, 4, **more))
    assert computed
    assert max(computed) == (3 if case == "two architectures" else 4)
    assert alone.keys() == together.keys()
    for key, tensor in alone.items():
        assert together[key].shape == tensor.shape
        assert torch.allclose(together[key], tensor, rtol=1e-4, atol=2e-6 if "adam" not in str(settings) else 1e-3), key


def layers(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """All that counts as linear."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, width), nn.Tanh())
    return pair(base, nn.Linear(width, classes))


def dropping(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """With randomness, and with statistics of batches."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5))
    return pair(base, nn.Linear(width, classes))


def base_loss(model: SplitModel, batch: Batch, step: int, *, centre: Tensor) -> Tensor:
    """Leaves the modular block without a gradient."""
    return (model.base(batch.x) - centre).square().mean() / (1 + step)


def bound_in_front(centre: Tensor, model: SplitModel, batch: Batch, step: int) -> Tensor:
    return base_loss(model, batch, step, centre=centre)


def batches(count: int, seed: int, rows: int = 4) -> list[Batch]:
    noise = torch.Generator().manual_seed(seed)
    return [Batch(torch.randn(rows, 5, generator=noise), torch.arange(rows) % 3) for _ in range(count)]


def calls(
    *, build: Any = layers, losses: Any = cross_entropy, of: Any = batches, counts: Any = (3, 5, 0), **options: Any
) -> list[FitCall]:
    """Those of three clients: models and losses of their own, the very same in every call."""
    found = []
    for client, count in enumerate(counts):
        torch.manual_seed(client)
        model = build((5,), 3, 6)
        loss = partial(losses, centre=torch.full((6,), float(client))) if losses is base_loss else losses
        found.append(FitCall(model, loss, of(count, client), {}, 1, None, {"lr": 0.1, **options}))
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum and decay": {"optimizer": Optimizer("sgd", 0.9, 0.1)},
    "adam": {"optimizer": "adam", "counts": (4, 4, 0)},
    "a schedule": {"lr": Cosine(0.3, 4)},
    "one part": {"train": "modular"},
    "what is bound without a name": {"losses": partial(bound_in_front, torch.ones(6))},
    "a part that the loss does not reach": {"losses": base_loss, "optimizer": Optimizer("sgd", 0.9, 0.1)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_calls_together_are_calls_of_fit(name: str) -> None:
    one, other = calls(**OPTIONS[name]), calls(**OPTIONS[name])
    for again in range(2):  # the second goes on with the optimizers' slots
        if again:
            for known in (*one, *other):
                known.batches = batches(3, 7)
        (members,) = alike(dict(enumerate(other)), PERCEPTRON)
        assert members[:2] == [0, 1]  # client 2 has no slots where the others have some
        found = fit_together([other[place] for place in members], PERCEPTRON)
        for call, fitted in zip(one, found, strict=False):
            expected = fit(call.model, call.losses, call.batches, slots=call.slots, round=call.round, **call.options)
            assert isinstance(fitted, Fitted)
            assert fitted.loss == pytest.approx(expected.loss, rel=1e-5)
            assert replace(fitted, loss=0.0) == replace(expected, loss=0.0)
        for call, known in list(zip(one, other, strict=True))[: len(members)]:
            assert all(p.grad is None and p.requires_grad for p in known.model.parameters())
            for (key, p), q in zip(call.model.named_parameters(), known.model.parameters(), strict=True):
                assert torch.allclose(p, q, rtol=1e-4, atol=1e-6), key
            assert call.slots is not None
            assert known.slots is not None
            assert {key: own.keys() for key, own in call.slots.items()} == {
                k: own.keys() for k, own in known.slots.items()
            }
            for key, own in call.slots.items():
                for slot, tensor in own.items():
                    assert torch.allclose(tensor, known.slots[key][slot], rtol=1e-3, atol=1e-5), (key, slot)


def peeking(model: SplitModel, batch: Batch, step: int) -> Tensor:
    return cross_entropy(model, batch, step) * float(batch.x.sum() > 0)


def random_loss(model: SplitModel, batch: Batch, step: int) -> Tensor:
    return cross_entropy(model, Batch(batch.x + torch.randn(4, 5), batch.y), step)


def frozen_too(model: SplitModel, batch: Batch, step: int) -> Tensor:
    return modular_cross_entropy(model, Batch(torch.ones(4, 6), batch.y), step) + sum(
        parameter.square().sum() for parameter in model.parameters()
    )


def with_graph(count: int, seed: int) -> list[Batch]:
    return [Batch(batch.features.requires_grad_(), batch.y) for batch in batches(count, seed)]


@pytest.mark.parametrize(
    "options",
    [
        {"build": dropping},
        {"losses": {"a": cross_entropy}},
        {"clip": 1.0},
        {"clip": 0.0},
        {"losses": partial(base_loss, centre=torch.zeros(6, requires_grad=True))},
        {"outputs_of": "base"},
        {"of": with_graph},
        {"of": lambda count, seed: iter(batches(count, seed))},
    ],
)
def test_what_cannot_be_computed_together_is_not_tried(options: dict[str, Any]) -> None:
    assert alike(dict(enumerate(calls(**options))), PERCEPTRON) == []


@pytest.mark.parametrize("losses", [peeking, random_loss])
def test_what_shows_in_the_first_step_leaves_everything_as_it_was(losses: Any) -> None:
    found, before = calls(losses=losses), calls()
    with pytest.raises(NotTogetherError):
        fit_together(found, PERCEPTRON)
    for call, known in zip(found, before, strict=True):
        assert [len(batch.y) for batch in call.batches] == [4] * len(list(known.batches))
        assert all(torch.equal(p, q) for p, q in zip(call.model.parameters(), known.model.parameters(), strict=True))
        assert not any(module._forward_pre_hooks for module in call.model.modules())


def test_layers_of_another_kind_are_not_taken_for_one_client_s() -> None:
    """An objective that looks at the first client's convolutions would be wrong for the others."""
    assert fit_together(calls(losses=frozen_too, train="modular")[:2], PERCEPTRON)  # every client's own
    found = calls(build=dropping, losses=frozen_too, train="modular")[:2]
    assert alike(dict(enumerate(found)), PERCEPTRON) == [[0, 1]]
    with pytest.raises(NotTogetherError):
        fit_together(found, PERCEPTRON)


def test_hooks_and_other_numbers_keep_clients_apart() -> None:
    hooked, other, third = calls()
    hooked.model.register_forward_hook(lambda module, x, y: None)
    other.model.eval()
    third.options["lr"] = 0.2
    assert alike(dict(enumerate([*calls(), hooked, other, third])), PERCEPTRON) == [[0, 1, 2]]


@dataclass(frozen=True)
class Scaled(Method):
    """Everybody trains; the loss of some clients is that of others, many times over."""

    factor: float = 1e30
    lr: float = 0.1

    def keeps(self) -> frozenset[str]:
        return ALL

    def round(self, server: Server, clients: Clients) -> None:
        said = clients.call(self.train, minimum=1).failures
        assert [failure.client for failure in said] == ([2] if self.factor > 1 else [])
        assert all("training diverged: the mean loss of 6 steps is" in failure.reason for failure in said)

    @on_client
    def train(self, client: Client) -> None:
        scale = torch.tensor(self.factor if client.id == 2 else 1.0)
        client.fit(partial(scaled, scale=scale), steps=6, batch_size=4, lr=self.lr)
        client.fit(partial(scaled, scale=torch.tensor(1.0)), steps=1 + client.id % 2, batch_size=4, lr=self.lr)


def scaled(model: SplitModel, batch: Batch, step: int, *, scale: Tensor) -> Tensor:
    return cross_entropy(model, batch, step) * scale


def test_a_client_that_diverges_is_alone_with_it(computed: list[int]) -> None:
    alone, together = (world(Scaled(), many, rounds=1) for many in (1, 6))
    assert computed == [6, 5]
    assert together.exchange.steps == alone.exchange.steps == Counter({0: 7, 1: 8, 3: 8, 4: 7, 5: 8, 2: 0})
    one, other = everything_owned(alone), everything_owned(together)
    assert all(torch.allclose(other[key], one[key], rtol=1e-4, atol=1e-6) for key in one)  # client 2 is put back


@pytest.mark.parametrize("models", [["cnn"], [dropping]])
def test_what_is_not_computed_together_has_the_same_bits(models: Any, computed: list[int]) -> None:
    dataset = tiny_dataset(rows=90, shape=(1, 8, 8)) if models == ["cnn"] else tiny_dataset(rows=90)
    method = built_in()["fedavg"].configure({"batch_size": 4, "local_epochs": 2})
    one, other = (
        everything_owned(world(method, many, models=models, dataset=dataset, shares=RAGGED)) for many in (1, 4)
    )
    assert computed == []
    assert same_bits(one, other)


@pytest.mark.parametrize("name", ["fedavg", "ifl", "fedproto"])
def test_bits_depend_neither_on_workers_nor_on_a_resume(name: str, tmp_path: Path) -> None:
    settings = {"batch_size": 4} | ({"local_steps": 2} if name == "ifl" else {"local_epochs": 2})
    method = built_in()[name].configure(settings)
    found = []
    for workers in (1, 2, 3):
        made = world(method, 2, workers=workers, models=["mlp", "logistic"], shares=RAGGED)
        try:
            if workers == 2:
                saved = made.save(tmp_path)
                made.run_round()
                made.load(tmp_path, 2, saved)
            made.run_round()
            found.append((everything_owned(made), evaluate(made, full=True)))
        finally:
            made.engine.close()
    assert all(same_bits(found[0][0], other[0]) and found[0][1] == other[1] for other in found[1:])


@dataclass(frozen=True)
class Numbered(FedAvg):
    """Everybody sends its number in each place of the model; some train before."""

    def round(self, server: Server, clients: Clients) -> None:
        sent = clients.call(self.number, self.models(server.state.weights, clients))
        for client, numbers in sent.items():
            assert all(bool((tensor == client).all()) for tensor in numbers.tensors.values()), client

    @on_client
    def number(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        if client.id % 2:
            client.fit(client.loss, steps=1, lr=0.1)
        client.model.load({key: torch.full_like(t, client.id) for key, t in received.tensors.items()})
        return Weights(client.tensors())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reply_is_not_in_memory_that_the_next_client_of_the_group_works_in(workers: int) -> None:
    world(Numbered(), 4, workers=workers, rounds=1).engine.close()


@dataclass(frozen=True)
class Ends(Scaled):
    """The last client ends the process when it is called."""

    @on_client
    def train(self, client: Client) -> None:
        if client.id == 5:
            raise SystemExit(3)
        client.fit(client.loss, steps=1, lr=self.lr)


def test_nothing_is_left_of_a_group_s_threads_and_messages() -> None:
    def handlings() -> int:
        gc.collect()
        return sum(type(found) is _Handling for found in gc.get_objects())

    before = threading.active_count(), handlings()
    made = world("fedproto", 4, rounds=1)
    assert (threading.active_count(), handlings()) == before
    made = world(Ends(), 6, rounds=0)
    with pytest.raises(SystemExit):
        made.run_round()
    assert threading.active_count() == before[0]


def test_groups_depend_on_the_call_alone() -> None:
    profiles = {i: Profile(i, "ab"[i % 2], {}, 10, None) for i in range(9)}
    made, request = Groups(profiles, 3), Request("method", "train", "training", 1, 0)
    assert made.of(request, range(9)) == [[0, 2, 4], [1, 3, 5], [6, 8], [7]]
    assert made.of(request, [8, 6, 4, 1]) == [[8, 6], [4], [1]]  # who met before stays together
    made.end_round()
    assert made.of(request, [1, 4, 6, 8]) == [[1], [4, 6, 8]]
    assert made.of(replace(request, heading="evaluation"), [0, 2]) == [[0], [2]]
    assert Groups(profiles, 1).of(request, [0, 2]) == [[0], [2]]
