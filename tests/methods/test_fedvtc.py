"""FedVTC: its invariants VTC-1 to VTC-9, each term of its losses by hand, and clients that have little."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_hand import HELD, fused, means_by_hand, skewed
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from worlds import (
    Recorder,
    alone,
    entries,
    everything_owned,
    federation,
    resident,
    same_bits,
    shares_of,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.client import ClientId
from interfuse.clients import Answer, Request
from interfuse.data import Batch, Dataset
from interfuse.errors import ClientError, ConfigError, ModelError
from interfuse.evaluation import evaluate
from interfuse.families.class_statistics import ClassStatistics, Kind
from interfuse.families.class_tables import ClassTable
from interfuse.families.drawing import (
    drawing_to,
    gaussian_divergence,
    learning_to_draw,
    load_generator,
    matching,
    own_rows,
    precisions,
    reconstruction,
)
from interfuse.families.priors import VTC, Prior, Statistics
from interfuse.federation import Federation
from interfuse.messages import Message, flatten
from interfuse.methods.fedvtc import FedVTC
from interfuse.models import SplitModel, pair
from interfuse.models.generators import as_samples, vtc
from interfuse.party import Party
from interfuse.training import Fitted

FAST: dict[str, Any] = {
    "local_steps": 3,
    "batch_size": 8,
    "lr": 0.1,
    "generator_steps": 2,
    "channels": 4,
    "finetune_epochs": 1,
    "latents": 3,
}
KINDS: tuple[Kind, ...] = ("shared", "diagonal", "scalar")


def hetero() -> dict[str, Any]:
    """Three clients whose models differ in both blocks; client 1 has one class, class 3 nobody."""
    return skewed() | {"models": ["logistic", wide]}


def finished(method: FedVTC, rounds: int = 2, **world: Any) -> Federation:
    """A run to its end, fine-tuning included."""
    f = federation(method, **(world or hetero()))
    f.rounds = rounds
    for _ in range(rounds):
        f.run_round()
    return f


def prior_of(f: Federation) -> Prior:
    assert isinstance(f.method, FedVTC)
    return f.method.prior(f.server)


def finite(f: Federation) -> bool:
    owned = everything_owned(f)
    return all(tensor.isfinite().all() for tensor in owned.values() if tensor.is_floating_point())


@pytest.mark.parametrize("share_vtc", [True, False])
def test_vtc_1_without_samples_and_pull_models_are_those_of_local_training(share_vtc: bool) -> None:
    method = FedVTC(**FAST | {"latents": 0}, pull=0.0, share_vtc=share_vtc, momentum=0.9)
    together, apart = finished(method, 3), federation(alone(method), rounds=3, **hetero())
    assert all(same_bits(weights_of(together, c), weights_of(apart, c)) for c in together.clients)
    tuned = finished(replace(method, latents=3), 3)
    assert not any(same_bits(weights_of(tuned, c), weights_of(apart, c)) for c in apart.clients)


def gaussians() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    z, c = (torch.randn(4, 3, generator=noise, dtype=torch.float64) for _ in range(2))
    own, of_all = (0.2 + torch.rand(1, 3, generator=noise, dtype=torch.float64) for _ in range(2))
    return z, own, c, of_all


def normals(mean: Tensor, variance: Tensor) -> Independent:
    return Independent(Normal(mean, variance.sqrt().expand_as(mean)), 1)


def test_vtc_2_the_divergence_is_that_of_torch_and_0_of_equals_alone() -> None:
    z, own, c, of_all = gaussians()
    torch.testing.assert_close(
        gaussian_divergence(z, own, c, of_all), kl_divergence(normals(z, own), normals(c, of_all))
    )
    assert torch.equal(gaussian_divergence(z, own, z, own), torch.zeros(4, dtype=torch.float64))
    assert (gaussian_divergence(z, own, c, own) > 0).all()
    assert (gaussian_divergence(z, own, z, of_all) > 0).all()


def test_vtc_2_the_divergence_is_the_mean_of_log_ratios_of_samples() -> None:
    z, own, c, of_all = gaussians()
    v = z + own.sqrt() * torch.randn(50_000, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ratios = normals(z, own).log_prob(v) - normals(c, of_all).log_prob(v)
    error = ratios.std(0) / len(v) ** 0.5
    assert ((ratios.mean(0) - gaussian_divergence(z, own, c, of_all)).abs() < 4 * error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_vtc_3_of_one_client_the_prior_is_its_own(kind: Kind) -> None:
    world = hetero()
    f = federation(FedVTC(**FAST, variance=kind), rounds=1, wrap=Recorder, **world | {"shares": world["shares"][:1]})
    assert isinstance(f.engine, Recorder)
    sent = flatten(f.engine.up[0][2])
    told = flatten(prior_of(f))
    assert told.pop("y").tolist() == sent.pop("y").tolist() == [0, 1]
    del sent["count"]
    assert same_bits(told, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_vtc_4_the_prior_is_that_of_all_rows_together(kind: Kind) -> None:
    f = federation(FedVTC(**FAST, variance=kind), rounds=1, **hetero())
    rows = [row for client in f.clients for row in fused(f, client, weights_of(f, client))]
    means = {y: mean for mean, y in means_by_hand(rows)}
    squares = {y: torch.stack([(z - means[y]) ** 2 for z, own in rows if own == y]) for y in means}
    state = f.server.state
    assert state.count.tolist() == [len(squares[y]) if y in squares else 0 for y in range(4)]
    for y, mean in means.items():
        torch.testing.assert_close(state.means[y], mean)
    if kind == "shared":
        torch.testing.assert_close(state.variance, torch.cat([*squares.values()]).mean(0, keepdim=True))
        return
    for y, own in squares.items():
        torch.testing.assert_close(state.variance[y], own.mean(0) if kind == "diagonal" else own.mean()[None])
    assert not state.means[3].any()
    assert not state.variance[3].any()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Tensor]]]:
    """Each call of ``fit``: the network that it trained, and the labels of its batches. No other network changes."""
    seen: list[tuple[str, list[Tensor]]] = []
    plain: Callable[..., Fitted] = Party.fit

    def fit(party: Any, losses: Any, batches: Iterable[Batch], *, network: str = "model", **options: Any) -> Fitted:
        others = {name: party.network(name) for name in party.networks if name != network}
        before = {name: {key: t.clone() for key, t in other.tensors().items()} for name, other in others.items()}
        labels: list[Tensor] = []

        def told() -> Iterator[Batch]:
            for batch in batches:
                labels.append(batch.y)
                yield batch

        done = plain(party, losses, told(), network=network, **options)
        for name, other in others.items():
            assert same_bits(before[name], other.tensors())
            assert all(p.grad is None for p in other.parameters())
        seen.append((network, labels))
        return done

    monkeypatch.setattr(Party, "fit", fit)
    return seen


@pytest.mark.parametrize("share_vtc", [True, False])
def test_vtc_5_model_and_generator_train_in_turn(share_vtc: bool, fits: list[tuple[str, list[Tensor]]]) -> None:
    f = finished(FedVTC(**FAST, share_vtc=share_vtc, momentum=0.9))
    assert [network for network, _ in fits] == ["model", VTC] * 3 * 2 + ["model"] * 3
    kept = everything_owned(f)
    slots = {key.split("optimizers/")[1].split("/")[0] for key in kept if "optimizers/" in key}
    assert slots == {"model"}  # moments of Adam are gone when the generator is trained


def test_vtc_6_without_variance_a_sample_is_that_of_the_class_mean() -> None:
    f = finished(FedVTC(**FAST))
    method: Any = f.method
    state, y = f.server.state, torch.tensor([0, 2, 2])
    f.server.state = replace(state, variance=torch.zeros_like(state.variance))
    generator = vtc(8, (5,), 4)
    load_generator(generator, state.generator)
    with f.evaluating() as clients:
        drawn = [method.samples_of(resident(f, client), y) for client in clients]
    expected = generator(state.means[y]).detach()
    assert all(torch.equal(found, expected) for found in drawn)
    f.server.state = state
    with f.evaluating():
        assert not torch.equal(method.samples_of(resident(f, 0), y), expected)


@pytest.mark.parametrize("share_vtc", [True, False])
def test_vtc_7_bytes_are_those_of_fedproto_one_variance_and_the_generator(share_vtc: bool) -> None:
    f = federation(FedVTC(**FAST, share_vtc=share_vtc), rounds=2, **hetero())
    more = 4 * 8 + 4 * share_vtc * sum(p.numel() for p in vtc(8, (5,), 4).parameters())
    for direction, prototypes in (
        ("up", [len(held) * (4 * 8 + 1 + 4) for held in HELD] * 2),
        ("down", [0] * 3 + [3 * (4 * 8 + 1)] * 3),
    ):
        expected = [size + more for size in prototypes]
        assert [entry.raw for entry in entries(f) if entry.direction == direction] == expected


def test_vtc_7_sizes_that_are_worked_out_for_the_paper() -> None:
    """Ten classes, p = 512, 28x28: 22.53 kB of means and one variance, and a generator of 1,642,240 parameters."""
    data = tiny_dataset(rows=20, classes=10, shape=(1, 28, 28), dtype=torch.uint8)
    method = FedVTC(local_steps=0, generator_steps=1, latents=0, batch_size=2)
    f = federation(method, rounds=1, clients=1, width=512, dataset=data)
    (up,) = (entry.raw for entry in entries(f) if entry.direction == "up")
    assert up - 10 * (1 + 4) == 22_528 + 4 * 1_642_240  # class numbers and counts beside


@pytest.mark.parametrize("replay", [True, False])
def test_vtc_8_classes_that_nobody_has_are_never_drawn(replay: bool, fits: list[tuple[str, list[Tensor]]]) -> None:
    f = finished(FedVTC(**FAST, replay_real=replay))
    assert finite(f)
    for client, (network, labels) in zip(f.clients, fits[-3:], strict=True):
        own = f.setup.dataset.y_train[f.setup.shares[client].train]
        drawn = torch.cat(labels).bincount(minlength=4) - replay * own.bincount(minlength=4)
        assert (network, drawn.tolist()) == ("model", [3, 3, 3, 0])
    method: Any = f.method
    with f.evaluating():
        assert method.samples_of(resident(f, 1), torch.tensor([0, 1, 2])).shape == (3, 5)
        assert method.samples_of(resident(f, 1), torch.tensor([0, 3])) is None


def statistics(kind: Kind, absent: bool = True) -> ClassStatistics:
    noise = torch.Generator().manual_seed(4)
    count = torch.tensor([2.0, 0 if absent else 1, 5])
    rows = torch.randn(3, 8, generator=noise) * (count > 0)[:, None]
    shape = {"shared": (1, 8), "diagonal": (3, 8), "scalar": (3, 1)}[kind]
    return ClassStatistics(ClassTable(rows, count), 0.1 + torch.rand(shape, generator=noise), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_vtc_9_the_pull_has_the_gradient_of_the_divergence_to_the_mean_and_none_by_the_variance(kind: Kind) -> None:
    known, y = statistics(kind), torch.tensor([0, 1, 2, 0])
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    model = pair(nn.Identity(), nn.Linear(8, 3))
    loss, plain = (drawing_to(known, 1e-4, pull)(model, Batch(z, y), 0) for pull in (2.5, 0.0))
    (found,) = torch.autograd.grad(loss - plain, z)
    variance = known.variance.expand(3, 8)
    of_divergence = gaussian_divergence(z, variance[y], known.means.rows[y], variance[y])
    (expected,) = torch.autograd.grad(of_divergence.sum(), z)
    factor = 2.5 * 2 / (4 * 8) / (1 / variance[[0, 2]]).mean()
    torch.testing.assert_close(found[[0, 2, 3]], factor * expected[[0, 2, 3]])
    assert not found[1].any()  # a class without a mean


def test_weights_have_a_mean_of_1_and_a_floor_bounds_them() -> None:
    known = statistics("diagonal")
    tiny = replace(known, variance=torch.where(torch.arange(8) < 4, 0.0, 1.0).expand(3, 8))
    weights = precisions(tiny.variance.clamp(min=0.5), tiny.means)
    torch.testing.assert_close(weights[0], torch.tensor([4 / 3] * 4 + [2 / 3] * 4))
    torch.testing.assert_close(precisions(known.variance, known.means)[[0, 2]].mean(), torch.tensor(1.0))
    nobody = ClassTable(known.means.rows * 0, known.means.count * 0)
    assert torch.equal(precisions(known.variance, nobody), torch.ones(3, 8))


def test_reconstruction_and_matching_are_sums_by_hand() -> None:
    noise = torch.Generator().manual_seed(2)
    x, drawn = (torch.randn(3, 2, 4, generator=noise) for _ in range(2))
    z, means = torch.randn(2, 5, 8, generator=noise), torch.randn(2, 8, generator=noise)
    squares = [float((drawn[i, j, k] - x[i, j, k]) ** 2) for i in range(3) for j in range(2) for k in range(4)]
    assert reconstruction(drawn, x).item() == pytest.approx(sum(squares) / 3)
    apart = [float(sum((sum(z[c, :, j]) / 5 - means[c, j]) ** 2 for j in range(8))) for c in range(2)]
    assert matching(z, means).item() == pytest.approx(sum(apart) / 2, rel=1e-5)


def drawn_by_hand(
    noise: float, weights: tuple[float, float], targets: Tensor
) -> tuple[SplitModel, dict[str, Any], Batch, Tensor]:
    """An objective's arguments, and its value of one normal draw after the other."""
    known, model, generator = statistics("shared"), wide((5,), 3, 8), vtc(8, (5,), 4)
    bound: dict[str, Any] = {
        "extractor": model,
        "tensors": model.tensors(),
        "deviations": noise * torch.ones(3, 8),
        "means": known.means.rows[[0, 2]],
        "spread": known.deviations[[0, 2]],
        "bounds": torch.tensor([[-1.0] * 5, [2.0] * 5]),
        "latents": 3,
        "weights": weights,
        "targets": targets,
    }
    batch = Batch(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    torch.default_generator.manual_seed(7)
    with torch.no_grad():
        z = model.base(batch.x)
    made = as_samples(generator(z + noise * torch.randn(4, 8)), bound["bounds"])
    value = weights[0] * (made - batch.features).square().sum() / 4
    if weights[1]:
        v = bound["means"][:, None] + bound["spread"][:, None] * torch.randn(2, 3, 8)
        again = model.base(as_samples(generator(v.reshape(6, 8)), bound["bounds"])).reshape(2, 3, 8)
        value = value + weights[1] * (again.mean(1) - targets).square().sum() / 2
    return generator, bound, batch, value


@pytest.mark.parametrize(("noise", "weights"), [(0.0, (1.0, 0.0)), (0.5, (2.0, 0.0)), (0.3, (0.0, 1.5)), (1.0, (1, 1))])
def test_the_generators_loss_and_gradient_are_those_by_hand(noise: float, weights: tuple[float, float]) -> None:
    generator, bound, batch, expected = drawn_by_hand(noise, weights, torch.full((2, 8), 0.4))
    torch.default_generator.manual_seed(7)
    found = learning_to_draw(generator, batch, 0, **bound)
    torch.testing.assert_close(found, expected)
    parameters = list(generator.parameters())
    for one, other in zip(
        torch.autograd.grad(found, parameters, retain_graph=True),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    with pytest.raises(RuntimeError, match="unused|not require grad|not have been used"):
        torch.autograd.grad(found, list(bound["extractor"].parameters()))


def test_before_there_is_a_prior_nothing_is_matched() -> None:
    generator, bound, batch, expected = drawn_by_hand(0.5, (2.0, 0.0), torch.zeros(0, 8))
    none = {"means": torch.zeros(0, 8), "spread": torch.zeros(0, 8), "weights": (2.0, 1.0)}
    torch.default_generator.manual_seed(7)
    torch.testing.assert_close(learning_to_draw(generator, batch, 0, **bound | none), expected)


def test_the_generators_mean_counts_clients_alike_and_all_begin_with_one() -> None:
    f = federation(FedVTC(**FAST), wrap=Recorder, **hetero())
    first = {key: tensor.clone() for key, tensor in f.server.state.generator.items()}
    f.run_round()
    assert isinstance(f.engine, Recorder)
    assert all(same_bits(message.generator, first) for _, _, message in f.engine.down)
    sent = [message.generator for _, _, message in f.engine.up]
    for key, mean in f.server.state.generator.items():
        torch.testing.assert_close(mean, torch.stack([own[key] for own in sent]).mean(0))
        assert not torch.equal(mean, first[key])


def test_generators_that_are_not_shared_stay_and_go_on(tmp_path: Path) -> None:
    f = federation(FedVTC(**FAST, share_vtc=False), rounds=1, wrap=Recorder, **hetero())
    assert isinstance(f.engine, Recorder)
    assert not any(path.startswith("generator") for _, _, message in f.engine.up for path in flatten(message))
    before = [everything_owned(f)]
    f.run_round()
    before.append(everything_owned(f))
    keys = [key for key in before[0] if "networks/vtc" in key]
    assert len(keys) == 3 * len(list(vtc(8, (5,), 4).parameters()))
    assert not any(torch.equal(before[0][key], before[1][key]) for key in keys)


def test_rows_for_the_generator_leave_the_order_of_the_models() -> None:
    f = federation(FedVTC(**FAST), rounds=1, **hetero())
    client = resident(f, 0)
    place = (client.order.epoch, client.order.position)
    two = list(own_rows(client, 8, epochs=2))
    assert (client.order.epoch, client.order.position) == place
    assert [len(batch.y) for batch in two] == [8, 8, 1] * 2
    share = next(client.data.train_batches(100)).features
    for epoch in (two[:3], two[3:]):
        rows = torch.cat([batch.features for batch in epoch])
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, share.tolist()))
    assert [len(batch.y) for batch in own_rows(client, 8, steps=5)] == [8, 8, 1, 8, 8]


def test_fine_tuning_of_the_head_leaves_the_base_and_may_come_in_every_round() -> None:
    plain = finished(FedVTC(**FAST | {"latents": 0}))
    head = finished(FedVTC(**FAST, tuned="modular"))
    for c in plain.clients:
        assert same_bits(weights_of(plain, c, "base"), weights_of(head, c, "base"))
        assert not same_bits(weights_of(plain, c, "modular"), weights_of(head, c, "modular"))
    each = finished(FedVTC(**FAST, finetune="every_round"), 1)
    first = federation(FedVTC(**FAST), rounds=1, **hetero())
    assert all(same_bits(weights_of(each, c), weights_of(first, c)) for c in first.clients)  # nothing to draw of yet
    each.run_round()
    first.run_round()
    assert not any(same_bits(weights_of(each, c), weights_of(first, c)) for c in first.clients)


def test_of_a_class_that_no_client_of_a_round_has_all_stays() -> None:
    f = federation(FedVTC(**FAST, variance="diagonal", participation=0.34), wrap=Recorder, **hetero())
    assert isinstance(f.engine, Recorder)
    for _ in range(6):
        before = f.server.state
        f.run_round()
        drawn = {client for request, client, _ in f.engine.up if request.round == f.round}
        assert len(drawn) == 1
        (sent,) = (m for request, _, m in f.engine.up if request.round == f.round and isinstance(m, Statistics))
        after = f.server.state
        for y in range(4):
            if y in sent.y.tolist():
                assert torch.equal(after.means[y], sent.mean[sent.y.tolist().index(y)])
            else:
                assert torch.equal(after.means[y], before.means[y])
                assert torch.equal(after.variance[y], before.variance[y])
    assert len({client for _, client, _ in f.engine.up}) > 1


class Lying(Recorder):
    """An engine that changes what client 1 sends."""

    lie: Callable[[Statistics], Statistics]

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        for answer in super().call(request, messages):
            lies = answer.client == 1 and isinstance(answer.reply, Statistics)
            yield replace(answer, reply=self.lie(answer.reply)) if lies else answer


LIES: dict[str, Callable[[Statistics], Statistics]] = {
    "'first.0.bias' nothing, expected": lambda m: replace(
        m, generator={key: t for key, t in m.generator.items() if key != "first.0.bias"}
    ),
    "'strange' .*expected nothing": lambda m: replace(m, generator=m.generator | {"strange": torch.zeros(1)}),
    "'last.bias' .1000,., expected .5,.": lambda m: replace(
        m, generator=m.generator | {"last.bias": torch.zeros(1000)}
    ),
    "variance below 0": lambda m: replace(m, variance=-m.variance - 1),
    "variances of shape": lambda m: replace(m, variance=m.variance.repeat(2, 1)),
    "counts that are not above 0": lambda m: replace(m, count=-m.count),
    "a class twice": lambda m: replace(m, y=m.y.repeat(2), mean=m.mean.repeat(2, 1), count=m.count.repeat(2)),
    "no class": lambda m: replace(m, y=m.y[:0], mean=m.mean[:0], count=m.count[:0]),
}


@pytest.mark.parametrize("words", LIES)
def test_what_no_client_can_have_sent_is_that_clients_fault(words: str) -> None:
    f = federation(FedVTC(**FAST), wrap=Lying, **hetero())
    assert isinstance(f.engine, Lying)
    f.engine.lie = LIES[words]
    state = f.server.state
    with pytest.raises(ClientError, match=f"client 1 .*{words}") as caught:
        f.run_round()
    assert caught.value.client == 1
    assert f.server.state is state


def test_a_generator_that_lacks_a_tensor_is_not_put_in_place() -> None:
    generator = vtc(8, (5,), 4)
    with pytest.raises(ModelError, match="without first.0.bias"):
        load_generator(generator, {key: t for key, t in generator.tensors().items() if key != "first.0.bias"})


def dead(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """All features are 0 behind the ReLU."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(5, width), nn.ReLU())
    nn.init.constant_(base[1].bias, -1e3)  # type: ignore[arg-type]
    return pair(base, nn.Linear(width, classes))


def little(case: str) -> dict[str, Any]:
    easy = tiny_dataset(rows=120, classes=3)
    of = [torch.nonzero(easy.y_train == c).flatten().tolist() for c in range(3)]
    shares: dict[str, list[Any]] = {
        "one class each": [of[0], of[1], of[2]],
        "one sample a class": [[of[0][0], of[1][0]], [of[2][0]]],
        "zero variance": [[of[0][0]] * 5, [of[1][0]] * 4],
        "features that are 0": [of[0] + of[1], of[2]],
        "one client": [of[0] + of[1]],
        "40 clients": [[k, k + 1, k + 2] for k in range(0, 120, 3)],
    }
    models = [dead] if case == "features that are 0" else ["logistic", wide]
    return {"dataset": easy, "shares": shares_of(*shares[case]), "models": models}


CASES = ("one class each", "one sample a class", "zero variance", "features that are 0", "one client")


@pytest.mark.parametrize(
    ("case", "kind"), [*((case, kind) for case in CASES for kind in KINDS), ("40 clients", "diagonal")]
)
def test_clients_that_have_little_end_with_finite_numbers(case: str, kind: Kind) -> None:
    f = finished(FedVTC(**FAST, variance=kind), **little(case))
    assert finite(f)
    assert all(0 <= accuracy <= 1 for accuracy in evaluate(f, full=True).common)
    if case in ("one sample a class", "features that are 0"):
        assert not f.server.state.variance.any()


def test_images_are_drawn_between_black_and_white() -> None:
    data = tiny_dataset(rows=30, shape=(1, 6, 6), dtype=torch.uint8)
    f = finished(FedVTC(**FAST), dataset=data)
    method: Any = f.method
    with f.evaluating():
        drawn = method.samples_of(resident(f, 0), torch.tensor([0, 1, 2, 2]))
        assert f.method.samples_of(resident(f, 0), torch.tensor([0])) is not None
    assert drawn.shape == (4, 1, 6, 6)
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()


def narrower(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return wide(sample_shape, classes, width // 2)


def test_what_it_cannot_do_is_said_before_anything_is_trained() -> None:
    with pytest.raises(ModelError, match="width"):
        federation(FedVTC(**FAST), models=["logistic", narrower])
    x = torch.rand(20, 5)
    numbers = Dataset.from_arrays("numbers", x, x[:, 0] * 3.7, x, x[:, 0] * 3.7, task="regression")
    with pytest.raises(ConfigError, match="FedVTC needs classes"):
        federation(FedVTC(**FAST), dataset=numbers, shares=shares_of(range(20)))


def test_it_says_that_it_is_a_reconstruction() -> None:
    assert "reconstruction" in (FedVTC.__doc__ or "")
    f = federation(FedVTC(**FAST), **hetero())
    alone, few = (FedVTC(participation=part).notice(f.clients.profiles) for part in (1.0, 0.3))
    assert alone is not None
    assert few is not None
    assert alone.text.startswith("FedVTC is a reconstruction")
    assert few.text.endswith(alone.text)
    assert "what all know is of one client" in few.text


def test_a_resumed_run_goes_on_as_it_would_have(tmp_path: Path) -> None:
    straight = federation(FedVTC(**FAST), rounds=2, **hetero())
    resumed = federation(FedVTC(**FAST), start=False, **hetero())
    resumed.load(tmp_path, 2, straight.save(tmp_path))
    for f in (straight, resumed):
        f.rounds = 3
        f.run_round()
    assert same_bits(everything_owned(straight), everything_owned(resumed))


def test_samples_of_two_shapes_have_no_common_generator_and_each_its_own() -> None:
    f = federation(FedVTC(**FAST), **hetero(), rounds=0)
    profiles = dict(f.clients.profiles)
    clients: Any = SimpleNamespace(profiles=profiles | {1: replace(profiles[1], sample=(9, 9))})
    with pytest.raises(ModelError, match="samples have the shapes .* and 9x9.*share_vtc=false"):
        FedVTC(**FAST).start(f.server, clients)
    assert FedVTC(**FAST, share_vtc=False).start(f.server, clients).generator == {}
