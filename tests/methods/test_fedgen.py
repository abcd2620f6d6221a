"""FedGen: FedAvg without its generator, the generator's size and losses, and that clients get the trained one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from worlds import (
    Recorder,
    depth1,
    depth2,
    federation,
    in_steps,
    largest_difference,
    linear_head,
    resident,
    same_bits,
    server_copy,
    shares_of,
    wide,
)

from interfuse.data import Batch
from interfuse.errors import ModelError
from interfuse.families.feature_generators import alike, labelled, network, recognised
from interfuse.families.learning_from_generators import WeightsAndGenerator
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedgen import FedGen
from interfuse.models import SplitModel

UNEVEN = shares_of(range(0, 9), range(9, 26), range(26, 60))
OPTIONS: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "lr": 0.05}


@pytest.mark.parametrize("models", [[depth1, depth2], ["logistic", linear_head]])
def test_without_both_weights_it_is_fedavg(models: Any) -> None:
    world: dict[str, Any] = {"models": models, "shares": UNEVEN}
    gen, avg = (federation(kind, **world) for kind in (FedGen(**OPTIONS, alpha=0, beta=0), FedAvg(**OPTIONS)))
    for _ in range(3):
        gen.run_round()
        avg.run_round()
        assert largest_difference(gen.server.state.weights, avg.server.state.weights) < 1e-6
    strong = federation(FedGen(**OPTIONS), **world, rounds=3)
    assert largest_difference(strong.server.state.weights, avg.server.state.weights) > 1e-2


def test_the_first_round_has_no_generator() -> None:
    world: dict[str, Any] = {"models": [wide], "shares": UNEVEN, "rounds": 1}
    gen, avg = (federation(kind(**OPTIONS), **world, wrap=Recorder) for kind in (FedGen, FedAvg))
    assert same_bits(gen.server.state.weights, avg.server.state.weights)
    assert isinstance(gen.engine, Recorder)
    assert all(not m.generator for _, _, m in gen.engine.down if isinstance(m, WeightsAndGenerator))


def test_clients_get_the_generator_that_was_trained() -> None:
    f = federation(FedGen(**OPTIONS), models=[wide], shares=UNEVEN, wrap=Recorder)
    first = {key: t.clone() for key, t in f.server.network("generator").tensors().items()}
    f.run_round()
    trained = {key: t.clone() for key, t in f.server.network("generator").tensors().items()}
    assert all(not torch.equal(first[key], trained[key]) for key in first)
    f.run_round()
    assert isinstance(f.engine, Recorder)
    sent = [m for r, _, m in f.engine.down if isinstance(m, WeightsAndGenerator) and r.round == 2]
    assert len(sent) == 3
    assert all(same_bits(trained, m.generator) for m in sent)
    assert all(torch.equal(m.counts, torch.ones(3)) for m in sent)


def test_the_generators_parameters() -> None:  # U20, the part of HtFLlib's 7.66 M
    generator = network(classes=100, d=512, noise=32, hidden=512)
    assert sum(p.numel() for p in generator.parameters()) == 331_776
    assert generator(torch.zeros(4, 132)).shape == (4, 512)


def test_features_that_do_not_follow_the_noise_are_all_alike() -> None:
    noise = torch.rand(6, 4)
    assert alike(noise, torch.ones(6, 3)) == 1
    z = torch.randn(6, 3)
    expected = torch.exp(
        -sum(((noise[i] - noise[j]) ** 2).mean() * (z[i] - z[j]).abs().mean() for i in range(6) for j in range(6)) / 36
    )  # type: ignore[arg-type]
    assert float(alike(noise, z)) == pytest.approx(float(expected), rel=1e-5)
    assert alike(noise, 2 * z) < alike(noise, z) < 1


def test_the_heads_learn_to_be_recognised() -> None:
    """The server's training: heads that know a label count for it by their part of its samples."""
    f = federation(FedGen(**OPTIONS, generator_steps=400, generator_lr=0.003), models=["logistic"], clients=3)
    f.run_round()
    method, state = f.method, f.server.state
    assert isinstance(method, FedGen)
    generator = f.server.network("generator").frozen({})
    head = server_copy(f.setup, "logistic", state.weights)
    y = torch.arange(3).repeat(50)
    answers = head.modular(generator(labelled(y, 3, method.noise))).argmax(1)
    assert float((answers == y).float().mean()) > 0.9


def test_heads_count_for_a_label_by_their_part_of_its_samples() -> None:
    heads = [SplitModel({"head": torch.nn.Linear(4, 3)}) for _ in range(2)]
    z, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 2, 1])
    counts = torch.tensor([[8.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    parts = [[1.0, 0.25, 0.0], [0.0, 0.75, 0.0]]
    by_hand = (
        sum(
            parts[k][int(y[i])] * functional.cross_entropy(heads[k](z[i : i + 1]), y[i : i + 1])
            for k in range(2)
            for i in range(5)
        )
        / 5
    )
    torch.testing.assert_close(recognised([head(z) for head in heads], y, counts), by_hand)


@pytest.mark.parametrize("steps", [0, 2, 3])
def test_only_the_first_steps_learn_from_the_generator(steps: int) -> None:
    world: dict[str, Any] = {"models": [wide], "shares": UNEVEN, "rounds": 2}
    f = federation(FedGen(**OPTIONS, regularised_steps=steps), **world)
    plain = federation(FedGen(**OPTIONS, alpha=0, beta=0), **world)
    distance = largest_difference(f.server.state.weights, plain.server.state.weights)
    assert (distance < 1e-6) == (steps == 0)
    whole = federation(FedGen(**OPTIONS), **world)
    assert same_bits(f.server.state.weights, whole.server.state.weights) == (steps == OPTIONS["local_steps"])


def test_labels_that_nobody_has_are_never_drawn() -> None:
    method = FedGen(batch_size=64, generator_steps=20)
    counts = torch.tensor([5.0, 0.0, 2.0, 0.0])
    drawn = list(method.drawn(counts, torch.Generator().manual_seed(0)))
    assert len(drawn) == 20
    y = torch.cat([batch.y for batch in drawn])
    assert y.unique().tolist() == [0, 2]
    assert float((y == 0).float().mean()) == pytest.approx(5 / 7, abs=0.05)
    for batch in drawn:
        assert torch.equal(batch.x[:, 32:], functional.one_hot(batch.y, 4).float())
        assert ((batch.x[:, :32] >= 0) & (batch.x[:, :32] < 1)).all()


def test_the_clients_loss_by_hand() -> None:
    f = federation(FedGen(**OPTIONS, alpha=0.3, beta=0.7, decay=0.5), models=[wide], shares=UNEVEN, rounds=2)
    method, client = f.method, resident(f, 1)
    assert isinstance(method, FedGen)
    client.round = 3
    model, state = server_copy(f.setup, f.setup.architectures[1], f.server.state.weights), f.server.state
    trained = f.server.network("generator").tensors()
    message = WeightsAndGenerator(state.weights, trained, state.counts)
    x, y = in_steps(f.setup, 1, 1, 8)[0]
    generator, loss = network(3, 8, 32, 256), method.loss(client, message)
    generator.load(trained)
    generator.eval()
    torch.default_generator.manual_seed(7)
    found = loss(model, Batch(x, y), 0).detach()
    torch.default_generator.manual_seed(7)
    others = torch.multinomial(state.counts, 8, replacement=True)
    of_others, of_own = (
        model.modular(generator(torch.cat([torch.rand(8, 32), functional.one_hot(labels, 3).float()], 1)))
        for labels in (others, y)
    )
    logits, teacher = model(x), of_own.softmax(1)
    kl = (teacher * (teacher.log() - logits.log_softmax(1))).sum() / 8
    generated = functional.cross_entropy(of_others, others)
    expected = functional.cross_entropy(logits, y) + 0.5**2 * (0.3 * generated + 0.7 * kl)
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_heads_must_be_alike() -> None:
    with pytest.raises(ModelError, match="modular blocks differ"):
        federation(FedGen(), models=["logistic", wide])


@pytest.mark.parametrize(("labels", "chances"), [("uniform", [1.0, 1.0, 0.0]), ("samples", [40.0, 2.0, 0.0])])
def test_labels_that_are_there_are_drawn_alike_or_as_often(labels: Any, chances: list[float]) -> None:
    method = FedGen(labels=labels)
    drawn = method.chances(torch.tensor([40.0, 2.0, 0.0]))
    assert drawn.tolist() == chances
    y = torch.cat([batch.y for batch in method.drawn(drawn, torch.Generator().manual_seed(0))])
    share = float((y == 0).float().mean())
    assert share == pytest.approx(chances[0] / sum(chances), abs=0.05)
    assert not (y == 2).any()
