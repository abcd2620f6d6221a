"""FedIN: FedIN-1 to -8, U5 and U6, its choices, and Table 2's parameters from the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from worlds import (
    Recorder,
    entries,
    federation,
    in_steps,
    largest_difference,
    resident,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
)

from interfuse.client import ClientId
from interfuse.data import EpochOrder
from interfuse.errors import ModelError
from interfuse.evaluation import evaluate
from interfuse.families.imitation import Rule, alleviated, on_intermediate
from interfuse.families.intermediate import FeaturePair, ModelAndFeatures
from interfuse.federation import Federation
from interfuse.method import Method, disclosures_of
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedin import FedIN
from interfuse.methods.fedin_ablations import FedINAblations
from interfuse.methods.fedprox import FedProx
from interfuse.methods.scaffold import SCAFFOLD
from interfuse.models import SplitModel
from interfuse.training import Gradients

UNEVEN = shares_of(range(0, 16), range(16, 36), range(36, 60))
IMAGES = tiny_dataset(shape=(1, 4, 4))
NO_BATCH: Any = None
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "batch_size": 8}


def _parted(blocks: int, sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    stages: dict[str, nn.Module] = {
        "stem": nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), 6), nn.ReLU()),
        "block0": nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU()),
    }
    stages |= {f"block{i}": nn.Sequential(nn.Linear(width, width), nn.Tanh()) for i in range(1, blocks)}
    parts = {"extractor": ["stem"], "intermediate": [*stages][1:], "classifier": ["classifier"]}
    return SplitModel(stages | {"classifier": nn.Linear(width, classes)}, parts)


def parted1(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Extractor, one block with batch normalisation, classifier."""
    return _parted(1, sample_shape, classes, width)


def parted2(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """``parted1`` and one block more."""
    return _parted(2, sample_shape, classes, width)


def messages(f: Federation, round: int, direction: str = "up") -> dict[ClientId, ModelAndFeatures]:
    assert isinstance(f.engine, Recorder)
    sent = f.engine.up if direction == "up" else f.engine.down
    return {c: m for r, c, m in sent if isinstance(m, ModelAndFeatures) and r.round == round}


# --- the gradient rule ----------------------------------------------------------------------------


def drawn(seed: int) -> tuple[Gradients, Gradients]:
    noise = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3), "bias": (4,)}
    return tuple({k: torch.randn(s, generator=noise) for k, s in shapes.items()} for _ in range(2))  # type: ignore[return-value]


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[key].double() * b[key].double()).sum()) for key in a)


@given(st.integers(0, 500), st.booleans())
def test_the_exact_rule_is_the_nearest_gradient_that_does_not_oppose_the_local_one(seed: int, turned: bool) -> None:
    """U5, FedIN-2, FedIN-3."""
    local, foreign = drawn(seed)
    a, b = dot(local, local), dot(local, foreign)
    if turned:
        foreign, b = {key: -g for key, g in foreign.items()}, -b
    z = alleviated(local, foreign, "exact", 1.0)
    if b >= 0:
        assert all(torch.equal(z[key], foreign[key]) for key in z)
        return
    assert abs(dot(z, local)) <= 1e-6 * a
    assert largest_difference(z, {key: g - b / a * local[key] for key, g in foreign.items()}) < 1e-5  # eq. 12
    minimising = -2 * b / a  # of the dual, eq. 11
    by_lambda = {key: g + minimising / 2 * local[key] for key, g in foreign.items()}
    assert largest_difference(z, by_lambda) < 1e-5
    lambdas = torch.linspace(0, 4 * minimising, 81, dtype=torch.float64)
    dual = -lambdas.square() / 4 * a - lambdas * b
    assert float(lambdas[dual.argmax()]) == pytest.approx(minimising)


def given_inner_product(seed: int, ratio: float) -> tuple[Gradients, Gradients]:
    """Gradients whose b is ``ratio`` times their a."""
    local, foreign = drawn(seed)
    shift = ratio - dot(local, foreign) / dot(local, local)
    return local, {key: g + shift * local[key] for key, g in foreign.items()}


@pytest.mark.parametrize("ratio", [-2.0, -0.8, -0.55, -0.45, -0.1, 0.0, 1.0])
def test_the_simplified_rule_may_still_oppose_the_local_gradient(ratio: float) -> None:  # U5
    """It does not for b ≥ −a/2, and is the exact rule for b = −a/2 alone."""
    local, foreign = given_inner_product(3, ratio)
    z = alleviated(local, foreign, "simplified", 1.0)
    assert (dot(z, local) >= 0) == (ratio >= -0.5)
    assert largest_difference(z, alleviated(local, foreign, "exact", 1.0)) > 1e-2
    same = given_inner_product(3, -0.5)
    assert largest_difference(*(alleviated(*same, rule, 1.0) for rule in ("simplified", "exact"))) < 1e-6  # FedIN-4


def test_the_other_rules() -> None:
    local, foreign = given_inner_product(5, -0.7)
    exact = alleviated(local, foreign, "exact", 9.0)
    added = alleviated(local, foreign, "projected", 9.0)
    assert largest_difference(added, {key: g + local[key] for key, g in exact.items()}) < 1e-6
    summed = alleviated(local, foreign, "sum", 9.0)
    assert largest_difference(summed, {key: g + local[key] for key, g in foreign.items()}) == 0
    assert largest_difference(summed, alleviated(local, foreign, "simplified", 2.0)) == 0


@pytest.mark.parametrize("rule", ["simplified", "exact", "sum", "projected"])
def test_no_gradients_at_all_are_none(rule: Rule) -> None:
    zeros = {"weight": torch.zeros(3)}
    assert torch.equal(alleviated(zeros, zeros, rule, 1.0)["weight"], torch.zeros(3))


def test_the_rule_holds_for_all_tensors_together_or_for_each() -> None:
    local, foreign = drawn(0)
    local["fc.weight"], foreign["fc.weight"] = torch.tensor([-90.0]), torch.tensor([9.0])  # decides alone over all
    gradients = {"local": {**local, "stem.bias": torch.ones(2)}, "in": foreign}
    whole, apart = (on_intermediate(gradients, {}, rule="exact", lam=1.0, per_tensor=each) for each in (False, True))
    assert largest_difference({k: whole[k] for k in foreign}, alleviated(local, foreign, "exact", 1.0)) == 0
    for key in foreign:
        alone = alleviated({key: local[key]}, {key: foreign[key]}, "exact", 1.0)
        assert torch.equal(apart[key], alone[key])
    assert torch.equal(whole["stem.bias"], torch.ones(2))
    assert largest_difference(whole, apart) > 1e-3


# --- beside FedAvg and FedProx ---------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["layerwise", "group"])
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_without_features_it_is_layerwise_fedavg_or_fedprox(aggregation: Any, mu: float) -> None:  # FedIN-1
    world: dict[str, Any] = {"models": [parted1, parted2], "shares": UNEVEN, "dataset": IMAGES}
    options: dict[str, Any] = {**SGD, "local_epochs": 2, "weights": "uniform", "aggregation": aggregation}
    inn, prox, avg = (
        federation(kind, **world)
        for kind in (
            FedINAblations(**options, mu=mu, imitation=False),
            FedProx(**options, mu=mu),
            FedAvg(**options),
        )
    )
    for round in (1, 2):
        for f in (inn, prox, avg):
            f.run_round()
        if round == 1:
            assert same_bits(inn.server.state.weights, prox.server.state.weights)
            assert same_bits(inn.server.state.weights, avg.server.state.weights) == (mu == 0)
    first = federation(FedIN(**options, mu=mu), **world, rounds=1)  # nobody has features yet
    prox = federation(FedProx(**options, mu=mu), **world, rounds=1)
    assert same_bits(first.server.state.weights, prox.server.state.weights)
    first.run_round()
    assert largest_difference(first.server.state.weights, inn.server.state.weights) > 1e-4


def test_one_architecture_is_uniform_fedavg_however_it_is_averaged() -> None:  # FedIN-5
    """Eq. 19 and 20; and 21 where all have as many samples."""
    world: dict[str, Any] = {"models": [parted2], "clients": 3, "dataset": IMAGES, "wrap": Recorder, "rounds": 1}
    layerwise, group, weighted = (
        federation(FedIN(**SGD, local_epochs=1, **choice), **world)
        for choice in ({}, {"aggregation": "group"}, {"weights": "samples"})  # type: ignore[arg-type]
    )
    assert len({len(share.train) for share in layerwise.setup.shares}) == 1
    mean = {
        key: torch.stack([m.weights[key].double() for m in messages(layerwise, 1).values()]).mean(0)
        for key in layerwise.server.state.weights
    }
    assert largest_difference(mean, layerwise.server.state.weights) < 1e-6
    assert same_bits(layerwise.server.state.weights, weighted.server.state.weights)
    assert same_bits(
        layerwise.server.state.weights,
        {key.removeprefix("parted2:"): t for key, t in group.server.state.weights.items()},
    )


def test_features_reach_the_intermediate_layers_alone() -> None:  # FedIN-8
    """In one step from one model, extractor and classifier get what FedProx gives them."""
    world: dict[str, Any] = {"models": [parted2], "clients": 2, "dataset": IMAGES, "wrap": Recorder}
    f = federation(FedIN(**SGD, local_steps=1), **world, rounds=2)
    g = federation(FedINAblations(**SGD, local_steps=1, imitation=False), **world, rounds=2)
    for client, sent in messages(f, 2).items():
        without = messages(g, 2)[client].weights
        changed = {key for key, t in sent.weights.items() if not torch.equal(t, without[key])}
        model = f.setup.build(f.setup.architectures[client])
        # the step before is the same for both, so statistics of normalisation are as well
        assert changed == set(model.parameters_of("intermediate"))


def test_a_clients_own_features_teach_it_nothing() -> None:  # FedIN-6
    """Under the weights they were made with, in evaluation mode: the loss and its gradient are 0."""
    model = _parted(2, (1, 4, 4), 3, 8)
    x, y = IMAGES.normalise(IMAGES.x_train), IMAGES.y_train
    with model.evaluating():
        s_in = model.run(x, "extractor")
        pair = FeaturePair(s_in, model.run(s_in, "intermediate"))
    method = FedIN()
    with model.training_parts():
        loss = method.imitating((pair,))(model, NO_BATCH, 0)
        local = functional.cross_entropy(model(x), y)
    parameters = model.parameters_of("intermediate")
    g_in = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    g_loc = dict(zip(parameters, torch.autograd.grad(local, list(parameters.values())), strict=True))
    assert loss == 0
    assert all((g == 0).all() for g in g_in.values())
    assert all((z == 0).all() for z in alleviated(g_loc, g_in, "exact", 1.0).values())
    half = {key: g / 2 for key, g in g_loc.items()}
    assert largest_difference(alleviated(g_loc, g_in, "simplified", 1.0), half) == 0


@pytest.mark.parametrize("rule", ["simplified", "exact", "sum", "projected"])
def test_a_round_by_hand(rule: Any) -> None:
    """Both clients of the second round, with PyTorch alone."""
    method = FedINAblations(**SGD, local_steps=3, mu=0.4, gradient=rule, in_weight=3.0)
    shares = shares_of(range(0, 24), range(24, 60))
    f = federation(method, models=[parted2], shares=shares, dataset=IMAGES, wrap=Recorder)
    f.run_round()
    anchor = {key: t.clone() for key, t in f.server.state.weights.items()}
    f.run_round()
    for client in (0, 1):
        (pair,) = messages(f, 2, "down")[client].features
        assert torch.equal(pair.s_in, messages(f, 1)[1 - client].features[0].s_in)
        model = server_copy(f.setup, "parted2", anchor)
        for x, y in in_steps(f.setup, client, 6, 8)[3:6]:
            model.train()
            loss = functional.cross_entropy(model(x), y)
            for key, p in model.named_parameters():
                loss = loss + 0.2 * (p - anchor[key]).square().sum()
            keys, parameters = zip(*model.named_parameters(), strict=True)
            g = dict(zip(keys, torch.autograd.grad(loss, parameters), strict=True))
            model.eval()
            blocks = model.parameters_of("intermediate")
            h = 3.0 * functional.mse_loss(model.run(pair.s_in, "intermediate"), pair.s_out)
            g_in = dict(zip(blocks, torch.autograd.grad(h, list(blocks.values())), strict=True))
            own = {key: g[key] for key in g_in}
            b, a = dot(own, g_in), dot(own, own)
            lam = max(0.0, -2 * b / a)
            factor = {"simplified": 0.5, "exact": lam / 2, "sum": 1.0, "projected": 1 + lam / 2}[rule]
            with torch.no_grad():
                for key, p in model.named_parameters():
                    p -= 0.05 * (g_in[key] + factor * g[key] if key in g_in else g[key])
        assert largest_difference(model.tensors(), messages(f, 2)[client].weights) < 1e-5


# --- features --------------------------------------------------------------------------------------


def features_of_share(f: Federation, client: ClientId, model: SplitModel) -> tuple[Tensor, Tensor]:
    """What a model makes of all rows of a client, in evaluation mode: s_in and s_out."""
    data = f.setup.dataset
    with model.evaluating():
        s_in = model.run(data.normalise(data.x_train[torch.from_numpy(f.setup.shares[client].train)]), "extractor")
        return s_in, model.run(s_in, "intermediate")


@pytest.mark.parametrize("amount", [{"local_steps": 3}, {"local_epochs": 2}])
def test_features_are_drawn_apart_from_the_order_of_training(amount: dict[str, int]) -> None:
    """So with one seed FedIN's local batches are those of FedAvg, and of two rounds its features are not the same."""
    world: dict[str, Any] = {"models": [parted1], "shares": UNEVEN, "dataset": IMAGES, "wrap": Recorder}
    f, avg = (federation(method, **world, rounds=3) for method in (FedIN(**SGD, **amount), FedAvg(**SGD, **amount)))
    places = [[resident(g, client).order.saved() for client in range(3)] for g in (f, avg)]
    assert all(same_bits(own, others) for own, others in zip(*places, strict=True))
    alone = {"imitation": False, "mu": 0.0, "weights": "samples"}
    without = federation(FedINAblations(**SGD, **amount, **alone), **world, rounds=3)
    assert same_bits(without.server.state.weights, avg.server.state.weights)
    of_round = [messages(f, round)[0].features[0].s_in for round in (1, 2)]
    assert not torch.equal(*of_round)


def test_clients_send_features_of_their_new_model_in_evaluation_mode() -> None:
    world: dict[str, Any] = {"models": [parted2], "clients": 2, "dataset": IMAGES, "wrap": Recorder}
    f = federation(FedIN(**SGD, local_steps=2), **world, rounds=2)
    for client, sent in messages(f, 2).items():
        model = server_copy(f.setup, "parted2", sent.weights)
        s_in, s_out = features_of_share(f, client, model)
        found = torch.cdist(s_in, sent.features[0].s_in).argmin(0)
        assert len(found.unique()) == 8
        torch.testing.assert_close(sent.features[0].s_in, s_in[found])
        torch.testing.assert_close(sent.features[0].s_out, s_out[found])
    assert not {"labels", "data"} & disclosures_of(FedIN)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_clients_receive_as_many_batches_as_asked_for_and_not_their_own(count: int) -> None:
    world: dict[str, Any] = {"models": [parted1, parted2], "clients": 4, "dataset": IMAGES, "wrap": Recorder}
    f = federation(FedINAblations(**SGD, local_steps=1, received_batches=count), **world, rounds=3)
    pairs = {c: m.features[0].s_in for c, m in messages(f, 2).items()}
    seen = set()
    for client, received in messages(f, 3, "down").items():
        from_whom = [next(c for c, s in pairs.items() if torch.equal(s, pair.s_in)) for pair in received.features]
        assert len(set(from_whom)) == len(from_whom) == min(count, 3)
        assert client not in from_whom
        seen |= set(from_whom)
    assert len(seen) > 1
    assert all(not m.features for m in messages(f, 1, "down").values())


def test_a_step_takes_one_of_the_batches_received() -> None:
    model = _parted(1, (1, 4, 4), 3, 8)
    pairs = tuple(FeaturePair(torch.randn(6, 6), torch.full((6, 8), float(level))) for level in range(3))
    with model.evaluating():
        one_by_one = {float(FedIN().imitating((pair,))(model, NO_BATCH, 0)) for pair in pairs}
        loss = FedIN().imitating(pairs)
        assert {float(loss(model, NO_BATCH, 0)) for _ in range(60)} == one_by_one
    assert len(one_by_one) == 3


def test_who_trains_alone_gets_its_own_features() -> None:
    f = federation(FedIN(**SGD, local_steps=1), models=[parted1], clients=1, dataset=IMAGES, wrap=Recorder, rounds=2)
    assert torch.equal(messages(f, 2, "down")[0].features[0].s_in, messages(f, 1)[0].features[0].s_in)


@pytest.mark.parametrize("where", ["upload", "forward", "both"])
def test_where_the_noise_is(where: Any) -> None:
    big = tiny_dataset(rows=1200, shape=(1, 4, 4))
    world: dict[str, Any] = {"models": [parted1], "shares": shares_of(range(1200)), "dataset": big, "wrap": Recorder}
    options: dict[str, Any] = {**SGD, "batch_size": 400, "local_steps": 1}
    noise: dict[str, Any] = {"noise": 0.8, "noise_where": where}
    plain, noisy = (federation(FedINAblations(**options, **more), **world, rounds=1) for more in ({}, noise))
    (clean,), (dirty,) = messages(plain, 1).values(), messages(noisy, 1).values()
    assert same_bits(clean.weights, dirty.weights) == (where == "upload")
    if where == "upload":
        for name in ("s_in", "s_out"):
            s = getattr(clean.features[0], name)
            added = getattr(dirty.features[0], name) - s
            assert float(added.std() / s.std(correction=0)) == pytest.approx(0.8, rel=0.05)
            assert abs(float(added.mean())) < 0.1 * float(s.std())
    model = server_copy(noisy.setup, "parted1", dirty.weights)
    s_in, _ = features_of_share(noisy, 0, model)
    nearest = torch.cdist(dirty.features[0].s_in, s_in, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert bool((nearest < 1e-5).all()) == (where == "forward")


@pytest.mark.parametrize("mode", ["eval", "batch", "train"])
def test_whose_statistics_others_features_move(mode: Any) -> None:
    """Only under ``train`` do foreign features reach the running statistics; under ``eval`` these normalise them."""
    model = _parted(1, (1, 4, 4), 3, 8)
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    pair = FeaturePair(5 + torch.randn(6, 6), torch.zeros(6, 8))
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with model.training_parts():
        loss = FedIN(in_normalisation=mode).imitating((pair,))(model, NO_BATCH, 0)
        assert norm.training
    assert same_bits(before, model.state_dict()) == (mode != "train")
    model.load({key: t for key, t in before.items() if "num_batches" not in key})
    expected = model.train(mode != "eval").run(pair.s_in, "intermediate").square().mean()
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize("order", ["after", "before"])
def test_training_apart(order: Any) -> None:
    method = FedINAblations(**SGD, local_epochs=2, in_order=order, in_steps=3, mu=0)
    f = federation(method, models=[parted2], clients=2, dataset=IMAGES, wrap=Recorder, rounds=1)
    anchor = {key: t.clone() for key, t in f.server.state.weights.items()}
    f.run_round()
    (pair,) = messages(f, 2, "down")[0].features
    model = server_copy(f.setup, "parted2", anchor)
    share = f.setup.shares[0].train

    def local() -> None:
        drawn = EpochOrder(f.setup.seed, 0, len(share), epoch=2)
        model.train()
        for positions in drawn.epochs(2, 8):
            rows = torch.from_numpy(share[positions])
            model.zero_grad()
            functional.cross_entropy(model(IMAGES.normalise(IMAGES.x_train[rows])), IMAGES.y_train[rows]).backward()
            step(model.parameters_of())

    def apart() -> None:
        model.eval()
        for _ in range(3):
            model.zero_grad()
            functional.mse_loss(model.run(pair.s_in, "intermediate"), pair.s_out).backward()
            step(model.parameters_of("intermediate"))

    @torch.no_grad()
    def step(parameters: Mapping[str, nn.Parameter]) -> None:
        for p in parameters.values():
            p -= 0.05 * p.grad

    for turn in (local, apart) if order == "after" else (apart, local):
        turn()
    assert largest_difference(model.tensors(), messages(f, 2)[0].weights) < 1e-5


# --- payload, and what does not fit ----------------------------------------------------------------

RESNETS = tuple(f"resnet{depth}" for depth in (10, 14, 18, 22, 26))
PARAMETERS = [4_904_650, 10_805_962, 11_175_370, 17_076_682, 17_446_090]
COLOUR = tiny_dataset(rows=40, classes=10, shape=(3, 32, 32))
GREY = tiny_dataset(rows=100, classes=10, shape=(1, 32, 32))
NOTHING: dict[str, Any] = {"local_steps": 0, "buffers": "local"}


def uplinks(method: Method, models: Sequence[str]) -> list[int]:
    """Scalars that each client sends in a round, from the ledger; statistics of normalisation do not travel."""
    f = federation(method, models=models, clients=len(models), dataset=GREY, width=512, rounds=1)
    return [e.raw // 4 for e in entries(f) if e.direction == "up" and e.round == 1]


def test_parameters_of_table_2_from_the_ledger() -> None:  # FedIN-7, U6, U20
    """In millions, mean over the five models, not rounded but cut: 12.28, 24.56 and 12.35.

    This is for one channel of 32 by 32; with three SCAFFOLD's would be 24.57.
    """
    narrow = [f"{model}-narrow@0.25" for model in RESNETS]
    small, double = (uplinks(kind(**NOTHING), narrow) for kind in (FedAvg, SCAFFOLD))
    assert double == [2 * p for p in small]
    assert 16 * (64 * 8 * 8 + 512) == 73_728
    inn = uplinks(FedIN(**NOTHING), RESNETS)
    assert inn == [p + 73_728 for p in PARAMETERS]
    avg, scaffold = PARAMETERS, [2 * p for p in PARAMETERS]
    assert [f"{sum(sent) // 50_000 / 100:.2f}" for sent in (avg, scaffold, inn)] == ["12.28", "24.56", "12.35"]


def test_as_many_features_down_as_up() -> None:
    f = federation(FedIN(local_steps=0), models=["resnet10-narrow"], clients=2, dataset=COLOUR, rounds=2, wrap=Recorder)
    up, down = ([e.raw for e in entries(f) if e.direction == way and e.round == 2] for way in ("up", "down"))
    assert up == down


@pytest.mark.parametrize(
    ("models", "error"),
    [
        (["resnet10-narrow", "resnet10"], "(?s)resnet10.*shape"),
        (["cnn"], "client 0 .cnn. has the parts .*; needed are extractor, intermediate, classifier"),
    ],
)
def test_models_that_cannot_share_features_are_refused(models: Any, error: str) -> None:
    with pytest.raises(ModelError, match=error):
        federation(FedIN(), models=models, clients=2, dataset=COLOUR)


def test_features_of_other_shapes_are_refused_also_in_groups() -> None:
    with pytest.raises(ModelError, match="features behind the extractor: client 0 .*, client 1 .*one width"):
        federation(FedIN(aggregation="group"), models=["resnet10-narrow", "resnet10"], clients=2, dataset=COLOUR)


def test_clients_of_one_depth_are_evaluated_equally() -> None:  # U24
    f = federation(FedIN(**SGD), models=[parted1, parted2], clients=4, dataset=IMAGES, rounds=2)
    common = evaluate(f, full=True).common
    assert (common[0], common[1]) == (common[2], common[3])


@pytest.mark.parametrize("mode", ["eval", "batch", "train"])
def test_by_which_statistics_it_learns_is_said_before_the_run(mode: Any) -> None:
    method = FedIN(in_normalisation=mode)
    normalised, plain = (federation(method, models=[model], clients=2, dataset=IMAGES) for model in (parted1, flat))
    said = method.notice(normalised.clients.profiles)
    assert said is not None
    assert f'in_normalisation = "{mode}"' in said.text
    assert method.notice(plain.clients.profiles) is None


def flat(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Three linear parts without normalisation."""
    stages: dict[str, nn.Module] = {
        "stem": nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), 6)),
        "block": nn.Linear(6, width),
        "classifier": nn.Linear(width, classes),
    }
    return SplitModel(stages, {"extractor": ["stem"], "intermediate": ["block"], "classifier": ["classifier"]})
