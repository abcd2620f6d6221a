"""Clients with equal models are evaluated once, with the numbers that each would have by itself; nobody else is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from worlds import Recorder, federation, fitting, live_model, tiny, tiny_dataset, wide

from interfuse import Client, on_client
from interfuse.aggregation import BufferPolicy
from interfuse.data import Inputs
from interfuse.equals import Equals, same_bits
from interfuse.evaluation import accuracy, evaluate, measure
from interfuse.evaluation.accuracy import FusedTests
from interfuse.federation import Federation
from interfuse.messages import State, Weights, flatten
from interfuse.method import Method
from interfuse.methods import built_in
from interfuse.methods.fedavg import FedAvg
from interfuse.models import SplitModel, pair

T = TypeVar("T")
PICTURES = tiny_dataset(rows=160, shape=(1, 6, 6), test_rows=70)


@contextmanager
def everyone_alone(*, asked: bool = True) -> Iterator[None]:
    """Inside, every answer is worked out for its client; and every client is ``asked`` for everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Equals, "once", lambda *arguments: arguments[-1]())
        if asked:
            patch.setattr(accuracy, "_alike", lambda program, outputs: {client: client for client in outputs})
            patch.setattr(accuracy.Evaluation, "composes", False)
        yield


def tensors_in(found: object) -> Iterator[Tensor]:
    """All tensors in mappings and tuples."""
    if isinstance(found, Tensor):
        yield found
    for inner in found.values() if isinstance(found, Mapping) else found if isinstance(found, tuple) else ():
        yield from tensors_in(inner)


@pytest.mark.parametrize("name", ["fedit", "local"])
def test_clients_that_all_differ_cost_one_copy_of_what_is_not_given(name: str) -> None:
    equals, method = Equals(), tiny(name)
    f = federation(method, models=fitting(method, ["mlp"]), clients=6)
    for client in range(6):
        model = live_model(f, client)
        equals.note(client, "one", model)
        equals.once("x", client, "one", partial(live_model, f, client), ["base"], [], lambda: 0)
    kept = {tensor.data_ptr(): tensor.numel() for tensor in tensors_in(tuple(vars(equals).values()))}
    assert sum(kept.values()) == sum(tensor.numel() for tensor in model.tensors().values())


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """How often each piece of work was done inside."""
    done: Counter[str] = Counter()
    inner = Equals.once

    def once(self: Equals, name: str, *rest: Any) -> Any:
        *before, work = rest

        def counted() -> Any:
            done[name] += 1
            return work()

        return inner(self, name, *before, counted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Equals, "once", once)
        yield done


def of(method: Method, clients: int = 4, rounds: int = 1, **settings: Any) -> Federation:
    given: dict[str, Any] = {"dataset": PICTURES, "models": ["cnn-bn"]} | settings
    return federation(method, clients=clients, rounds=rounds, **given | {"models": fitting(method, given["models"])})


def measured(f: Federation, *, full: bool = False) -> tuple[Any, ...]:
    found = {client: flatten(reply) for client, reply in measure(f).items()} if full else {}
    return repr(evaluate(f, full=full)), {
        (c, key): t.tolist() for c, tensors in found.items() for key, t in tensors.items()
    }


def same_as_alone(f: Federation, *, full: bool = False) -> None:
    together = measured(f, full=full)
    with everyone_alone():
        assert measured(f, full=full) == together


@pytest.mark.parametrize("name", sorted(built_in()))
def test_every_method_has_the_numbers_that_it_has_without(name: str) -> None:
    same_as_alone(of(tiny(name)), full=True)


@pytest.mark.parametrize("name", ["fedavg", "lg-fedavg", "fedproto"])
def test_so_have_many_clients_on_several_workers(name: str) -> None:
    f = of(tiny(name), clients=40, workers=2, models=[wide])
    together = measured(f)
    f.engine.close()
    with everyone_alone():
        assert measured(of(tiny(name), clients=40, models=[wide])) == together


@pytest.mark.parametrize("policy", BufferPolicy)
def test_every_policy_of_statistics_has_the_same_numbers(policy: BufferPolicy) -> None:
    f = of(FedAvg(buffers=policy, local_steps=1, batch_size=8, lr=0.1))
    same_as_alone(f, full=True)
    with counting() as done:
        evaluate(f, full=False)
    differ = policy in (BufferPolicy.LOCAL, BufferPolicy.RECALIBRATE)  # statistics of the client's own rows
    common = {BufferPolicy.BATCH_STATISTICS: {"count": 1}}.get(policy, {})
    assert done == {"fused": 4 if differ else 1, "composed": 1} | common


class Sent(Recorder):
    """Knows how many base blocks' outputs the clients are sent."""

    @property
    def outputs(self) -> list[int]:
        return [len(message.outputs) for _, _, message in self.down if isinstance(message, FusedTests)]


def test_a_model_of_all_is_worked_out_and_sent_once_and_models_of_their_own_each() -> None:
    expected = {"fedavg": (1, 1, 1), "lg-fedavg": (4, 1, 4), "local": (4, 4, 4)}
    for name, (bases, modulars, sent) in expected.items():
        f = of(tiny(name), models=[wide], wrap=Sent)
        assert isinstance(f.engine, Sent)
        with counting() as done:
            found = evaluate(f, full=False)
        assert done == {"fused": bases, "composed": modulars}
        assert f.engine.outputs == [sent] * 4
        assert found.composition is not None
        assert found.common == [found.composition[i][i] for i in range(4)]


def test_clients_of_two_data_sets_with_one_model_are_two_kinds() -> None:
    other = tiny_dataset(rows=160, shape=(1, 6, 6), test_rows=70, seed=1)
    f = of(tiny("fedavg"), models=[wide])
    f.setup.datasets[1::2] = [other, other]
    same_as_alone(f)


class Own(State):
    shift: Tensor


@dataclass(frozen=True)
class Shifted(FedAvg):
    """One model for all, and answers moved by something of the client's own."""

    def new_client(self, client: Client[Own]) -> Own:
        return Own(shift(client.id))

    @on_client
    def deploy(self, client: Client[Own], message: Weights) -> None:
        client.model.load(message.tensors)
        client.scratch["shift"] = shift(client.id)


def shift(client: int) -> Tensor:
    return 1e3 * nn.functional.one_hot(torch.tensor(client % 3), 3).float()


class ByState(Shifted):
    def predict(self, client: Client[Own], x: Inputs) -> Tensor:
        return super().predict(client, x) + client.state.shift


class ByScratch(Shifted):
    def predict(self, client: Client[Own], x: Inputs) -> Tensor:
        moved: Tensor = super().predict(client, x) + client.scratch["shift"]
        return moved


class ById(Shifted):
    def predict(self, client: Client[Own], x: Inputs) -> Tensor:
        return super().predict(client, x) + shift(client.id)


class ByData(Shifted):
    def predict(self, client: Client[Own], x: Inputs) -> Tensor:
        return super().predict(client, x) * client.data.raw().features.float().std()


class ByAttribute(Shifted):
    """The module itself is changed, which no tensor tells."""

    @on_client
    def deploy(self, client: Client[Own], message: Weights) -> None:
        client.model.load(message.tensors)
        client.model.get_submodule("modular").moved = shift(client.id)


class Moving(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + getattr(self, "moved", 0.0)


class Drawing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e3 * torch.rand(len(x), self.out_features)


def with_head(head: type[nn.Linear]) -> Callable[..., SplitModel]:
    def build(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
        base = nn.Sequential(nn.Flatten(), nn.LazyLinear(width))
        base(torch.zeros(1, *sample_shape))
        return pair(base, head(width, classes))

    return build


@pytest.mark.parametrize(
    ("method", "head"),
    [(ByState, nn.Linear), (ByScratch, nn.Linear), (ById, nn.Linear), (ByAttribute, Moving)],
)
def test_what_sees_more_than_a_models_tensors_is_asked_for_every_client(
    method: type[FedAvg], head: type[nn.Linear]
) -> None:
    f = of(method(local_steps=1, batch_size=8), models=[with_head(head)])
    same_as_alone(f)
    assert len(set(evaluate(f, full=False).common)) > 1


class ByLuck(FedAvg):
    def predict(self, client: Client[Any], x: Inputs) -> Tensor:
        return super().predict(client, x) + 1e3 * torch.rand(len(x), 3, generator=client.generator)


@pytest.mark.parametrize(("method", "head"), [(FedAvg, Drawing), (ByLuck, nn.Linear)])
def test_what_draws_random_numbers_is_asked_for_every_client(method: type[FedAvg], head: type[nn.Linear]) -> None:
    f = of(method(local_steps=1, batch_size=8), models=[with_head(head)], workers=2)
    drawn = evaluate(f, full=False)
    f.engine.close()
    assert len(set(drawn.common)) > 1
    with everyone_alone(asked=False):
        alone = of(method(local_steps=1, batch_size=8), models=[with_head(head)])
        assert repr(evaluate(alone, full=False)) == repr(drawn)


def test_a_predict_that_sees_the_clients_rows_is_asked_for_every_client() -> None:
    f = of(ByData(local_steps=1, batch_size=8), models=[wide])
    with counting() as done:
        evaluate(f, full=False)
    assert "count" not in done
    same_as_alone(f)


def test_bits_are_compared_and_not_values() -> None:
    zero, nan = {"w": torch.zeros(2)}, {"w": torch.full((2,), torch.nan)}
    assert same_bits(nan, {"w": nan["w"].clone()})
    assert not same_bits(zero, {"w": -zero["w"]})
    assert not same_bits(zero, {"w": zero["w"].int()})
    assert not same_bits(zero, {"w": torch.zeros(1)})
    assert not same_bits(zero, {"v": zero["w"]})


def test_nothing_found_outlives_its_evaluation() -> None:
    """A model that went on training, in the very same memory, is another one."""
    f = of(tiny("local"), models=[wide])
    for _ in range(2):
        f.run_round()
        same_as_alone(f)
