"""FedL2G: its meta-gradient by finite differences and in closed form, and that vectors learn while models rest."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import skewed
from torch import Tensor, nn
from torch.nn import functional
from worlds import (
    Recorder,
    entries,
    everything_owned,
    federation,
    largest_difference,
    resident,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.data import Batch
from interfuse.errors import ClientError, ConfigError
from interfuse.families.guidance import Form, meta_gradient
from interfuse.methods.fedl2g import FedL2G, MeanGradient, MetaGradients
from interfuse.models import SplitModel

FORMS: Any = pytest.mark.parametrize("form", ["logits", "features"])
OPTIONS: dict[str, Any] = {"local_steps": 3, "batch_size": 6, "lr": 0.1, "trial_lr": 0.1, "warm_up": 2}
D, CLASSES = 4, 3


def smooth() -> SplitModel:
    torch.default_generator.manual_seed(0)
    base = nn.Sequential(nn.Linear(5, D), nn.BatchNorm1d(D), nn.Tanh())
    return SplitModel({"base": base, "modular": nn.Linear(D, CLASSES)}).double()


def batches(rows: int = 7) -> tuple[Batch, Batch]:
    noise = torch.Generator().manual_seed(1)
    made = (torch.randn(rows, 5, generator=noise, dtype=torch.float64) for _ in range(2))
    study, quiz = (Batch(x, torch.randint(CLASSES - 1, (rows,), generator=noise)) for x in made)
    return study, quiz


def after_a_step(vectors: Tensor, form: Form, lr: float, weight: float) -> float:
    """The loss on the quiz rows behind one step of PyTorch's SGD that these vectors guide."""
    model, (study, quiz) = smooth().eval(), batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    z = model.base(study.x)
    logits = model.modular(z)
    guides = torch.stack([vectors[int(y)] for y in study.y])
    loss = (
        functional.cross_entropy(logits, study.y)
        + weight * ((logits if form == "logits" else z) - guides).pow(2).mean()
    )
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(functional.cross_entropy(model(quiz.x), quiz.y).detach())


@FORMS
def test_a_meta_gradient_is_that_of_finite_differences(form: Form) -> None:
    width = CLASSES if form == "logits" else D
    vectors = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model, (study, quiz) = smooth(), batches()
    before = copy.deepcopy(model.state_dict())
    found = meta_gradient(model, study, quiz, vectors, lr=0.3, form=form, weight=0.8)  # type: ignore[arg-type]
    assert same_bits(before, model.state_dict())
    assert all(parameter.grad is None for parameter in model.parameters())
    for place in np.ndindex(CLASSES, width):
        near = []
        for shift in (1e-5, -1e-5):
            other = vectors.clone()
            other[place] += shift
            near.append(after_a_step(other, form, 0.3, 0.8))
        assert float(found[place]) == pytest.approx((near[0] - near[1]) / 2e-5, abs=1e-8)
    assert not found[CLASSES - 1].any()  # a class that is not in the step
    assert found[: CLASSES - 1].abs().min() > 1e-6


def test_of_a_linear_model_it_is_a_closed_form() -> None:
    """2 η ω / (n C) Σ_{i of class c} G x_i, G being the gradient of the quiz loss by the weights after the step."""
    model = SplitModel({"base": nn.Identity(), "modular": nn.Linear(5, CLASSES, bias=False)}).double()
    (study, quiz), eta, omega = batches(), 0.2, 0.7
    vectors = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    w = model.get_parameter("modular.weight").detach()
    x, y, n = study.features, study.y, len(study.y)
    target = functional.one_hot(y, CLASSES)
    of_ce = ((x @ w.T).softmax(1) - target).T @ x / n
    of_distance = 2 / (n * CLASSES) * (x @ w.T - vectors[y]).T @ x
    after = w - eta * (of_ce + omega * of_distance)
    error = (quiz.features @ after.T).softmax(1) - functional.one_hot(quiz.y, CLASSES)
    g = error.T @ quiz.features / n
    expected = torch.stack([2 * eta * omega / (n * CLASSES) * (x[y == c] @ g.T).sum(0) for c in range(CLASSES)])
    found = meta_gradient(model, study, quiz, vectors, lr=eta, form="logits", weight=omega)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


@FORMS
def test_warm_up_moves_the_vectors_and_leaves_clients_bit_for_bit(form: Form) -> None:
    world = skewed() | {"models": ["logistic", "mlp"]}
    warm, cold = (federation(FedL2G(**OPTIONS | {"warm_up": n}, form=form), **world) for n in (4, 0))
    for client in warm.clients:
        assert same_bits(weights_of(warm, client), weights_of(cold, client))
        assert resident(warm, client).order.saved()["place"].tolist() == [0, 0]
    apart = (warm.server.state.vectors - cold.server.state.vectors).abs().amax(1)
    assert (apart[:3] > 0).all()
    assert apart[3] == 0  # nobody has it
    owned = everything_owned(warm)
    assert all(tensor.isfinite().all() for tensor in owned.values() if tensor.is_floating_point())


def test_without_weight_clients_train_alone_on_what_is_no_quiz() -> None:
    f = federation(FedL2G(**OPTIONS, weight=0.0), models=["logistic"], shares=shares_of(range(20)), clients=1)
    method, client = f.method, resident(f, 0)
    assert isinstance(method, FedL2G)
    quiz = method.quiz(client)
    assert quiz.sum() == 6
    model = server_copy(f.setup, "logistic", weights_of(f, 0)).train()
    data = f.setup.dataset
    order = copy.deepcopy(client.order)
    for _ in range(6):
        drawn = order.take(6)
        rows = torch.from_numpy(f.setup.shares[0].train[drawn[~quiz[drawn]]])
        model.zero_grad()
        functional.cross_entropy(model(data.normalise(data.x_train[rows])), data.y_train[rows]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    f.run_round()
    f.run_round()
    assert largest_difference(model.state_dict(), weights_of(f, 0)) < 1e-6
    guided = federation(FedL2G(**OPTIONS), models=["logistic"], shares=shares_of(range(20)), clients=1, rounds=2)
    assert largest_difference(weights_of(guided, 0), weights_of(f, 0)) > 1e-3


@FORMS
def test_vectors_go_along_the_mean_over_those_who_have_the_class(form: Form) -> None:
    f = federation(
        FedL2G(**OPTIONS, form=form, server_lr=0.5), models=["logistic"], wrap=Recorder, **clients_of_one_row()
    )
    before = f.server.state.vectors.clone()
    f.run_round()
    assert isinstance(f.engine, Recorder)
    sent = [m for r, _, m in f.engine.up if isinstance(m, MetaGradients) and r.round == 1]
    assert not sent[-1].gradients.any()  # a client of one row has no quiz
    assert sent[-1].y.tolist() == [2]
    expected = before.clone()
    for c in range(3):
        own = [m.gradients[m.y.tolist().index(c)] for m in sent[:2]]
        own = [row for row in own if row.any()]
        expected[c] -= 0.5 * torch.stack(own).mean(0)
    torch.testing.assert_close(f.server.state.vectors, expected)
    width = 3 if form == "logits" else 8
    down = [entry.raw for entry in entries(f) if entry.direction == "down"]
    assert set(down) == {3 * width * 4}


def clients_of_one_row() -> dict[str, Any]:
    return {"dataset": tiny_dataset(rows=60), "shares": shares_of(range(20), range(20, 59), [59])}


def test_a_steep_mean_is_shortened() -> None:
    mean = MeanGradient(torch.zeros(2, 2))
    steep = MetaGradients(torch.tensor([[300.0, 400.0]]), torch.tensor([1], dtype=torch.uint8))
    mean.take(0, steep)
    torch.testing.assert_close(mean.result(), torch.tensor([[0.0, 0.0], [60.0, 80.0]]))


@pytest.mark.parametrize(
    "reply",
    [
        MetaGradients(torch.zeros(1, 3), torch.tensor([1], dtype=torch.uint8)),
        MetaGradients(torch.zeros(2, 2), torch.tensor([1, 1], dtype=torch.uint8)),
    ],
)
def test_gradients_of_no_vectors_are_refused_by_name(reply: MetaGradients) -> None:
    with pytest.raises(ClientError, match="client 5 sent gradients of no guiding vectors"):
        MeanGradient(torch.zeros(2, 2)).take(5, reply)


def test_gradients_of_which_two_have_no_sum_are_refused_by_name() -> None:
    """They made all vectors NaN, and the run ended with nobody to blame."""
    huge = MetaGradients(torch.full((1, 2), 3e38), torch.tensor([1], dtype=torch.uint8))
    with pytest.raises(ClientError, match="client 5 sent a gradient above") as found:
        MeanGradient(torch.zeros(2, 2)).take(5, huge)
    assert found.value.client == 5


def narrow(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return wide(sample_shape, classes, width - 3)


def test_features_are_guided_where_fusion_layers_agree_and_logits_anywhere() -> None:
    with pytest.raises(ConfigError, match='form = "features" needs fusion layers of one width'):
        federation(FedL2G(**OPTIONS, form="features"), models=[wide, narrow])
    f = federation(FedL2G(**OPTIONS), models=[wide, narrow], rounds=1)
    assert f.server.state.vectors.isfinite().all()
