"""FedGen with heads alone: LG-FedAvg without its generator, with it HtFLlib's loss, and its published bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import skewed
from torch.nn import functional
from worlds import (
    Recorder,
    federation,
    in_steps,
    largest_difference,
    resident,
    same_bits,
    server_copy,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.clients import Answer, Request
from interfuse.data import Batch
from interfuse.errors import ClientError, ModelError
from interfuse.families.feature_generators import network
from interfuse.families.learning_from_generators import WeightsAndCounts, WeightsAndGenerator
from interfuse.methods.fedgen_heads import FedGenHeads
from interfuse.methods.lg_fedavg import LGFedAvg

OPTIONS: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "lr": 0.1}


def test_without_generated_features_it_is_lg_fedavg() -> None:
    gen = federation(FedGenHeads(**OPTIONS, generator_steps=0), rounds=3, **skewed())
    lg = federation(LGFedAvg(**OPTIONS, momentum=0, weights="samples"), rounds=3, **skewed())
    assert largest_difference(gen.server.state.head, lg.server.state.modular) < 1e-6
    assert all(largest_difference(weights_of(gen, c, "base"), weights_of(lg, c, "base")) < 1e-6 for c in gen.clients)
    taught = federation(FedGenHeads(**OPTIONS), rounds=3, **skewed())
    assert largest_difference(taught.server.state.head, lg.server.state.modular) > 1e-3


def test_the_clients_loss_is_cross_entropy_of_samples_and_of_generated_features() -> None:
    f = federation(FedGenHeads(**OPTIONS), rounds=2, **skewed())
    method, client = f.method, resident(f, 0)
    assert isinstance(method, FedGenHeads)
    client.round, trained, counts = 9, f.server.network("generator").tensors(), method.chances(f.server.state.counts)
    assert counts.tolist() == [16.0, 12.0, 16.0, 0.0]  # as often as they are there
    model = server_copy(f.setup, f.setup.architectures[0], weights_of(f, 0, "base") | f.server.state.head)
    x, y = in_steps(f.setup, 0, 1, 8)[0]
    generator = network(4, 8, 32, 512)
    generator.load(trained)
    torch.default_generator.manual_seed(7)
    found = method.loss(client, WeightsAndGenerator(f.server.state.head, trained, counts))(model, Batch(x, y), 1000)
    torch.default_generator.manual_seed(7)
    labels = torch.multinomial(counts, 8, replacement=True)
    with generator.evaluating():
        z = generator(torch.cat([torch.rand(8, 32), functional.one_hot(labels, 4).float()], 1))
    expected = functional.cross_entropy(model(x), y) + functional.cross_entropy(model.modular(z), labels)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_htfllibs_published_bytes() -> None:  # U20: 7.66 M scalars down for 20 clients, 1.03 M up
    """Parameters alone, as published: label counts and the generator's statistics travel beside them."""
    method = FedGenHeads(local_steps=0, generator_steps=1)
    f = federation(method, models=["logistic"], width=512, wrap=Recorder, rounds=2, **hundred())
    assert isinstance(f.engine, Recorder)
    down = [m for r, _, m in f.engine.down if isinstance(m, WeightsAndGenerator) and r.round == 2]
    up = [m for _, _, m in f.engine.up if isinstance(m, WeightsAndCounts)]
    parameters = {key for key, _ in network(100, 512, 32, 512).named_parameters()}
    for message in down:
        generator = sum(tensor.numel() for key, tensor in message.generator.items() if key in parameters)
        assert sum(tensor.numel() for tensor in message.weights.values()) + generator == 383_076
        assert {k for k in message.generator if k not in parameters} == {
            "hidden.1.running_mean",
            "hidden.1.running_var",
        }
    assert {sum(tensor.numel() for tensor in message.weights.values()) for message in up} == {51_300}
    assert all(tuple(message.counts.shape) == (100,) for message in [*up, *down])


def hundred() -> dict[str, Any]:
    return {"dataset": tiny_dataset(rows=100, classes=100), "clients": 2}


def test_only_heads_travel_and_clients_answer_with_the_mean() -> None:
    f = federation(FedGenHeads(**OPTIONS), rounds=2, wrap=Recorder, **skewed())
    assert isinstance(f.engine, Recorder)
    assert {k for _, _, m in f.engine.up if isinstance(m, WeightsAndCounts) for k in m.weights} == set(
        f.server.state.head
    )
    with f.evaluating():
        assert all(same_bits(f.server.state.head, dict(resident(f, c).model.tensors("modular"))) for c in f.clients)


def test_heads_must_be_alike() -> None:
    with pytest.raises(ModelError, match="modular blocks differ"):
        federation(FedGenHeads(), models=["logistic", wide])


class Miscounting(Recorder):
    """An engine whose client 1 says it has other numbers of samples."""

    counts: Any = None

    def call(self, request: Request, messages: Any) -> Any:
        for answer in super().call(request, messages):
            if answer.client == 1 and isinstance(answer.reply, WeightsAndCounts):
                answer = Answer(1, replace(answer.reply, counts=self.counts), 0.0)
            yield answer


@pytest.mark.parametrize("counts", [[5.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
def test_counts_that_nobody_can_have_are_refused_by_name(counts: list[float]) -> None:
    f = federation(FedGenHeads(**OPTIONS), wrap=Miscounting, **skewed())
    assert isinstance(f.engine, Miscounting)
    f.engine.counts = torch.tensor(counts)
    with pytest.raises(ClientError, match="client 1 sent label counts that nobody can have"):
        f.run_round()
