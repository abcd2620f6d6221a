from __future__ import annotations

import math

import pytest
import torch
from slim import Round, mean_by_loops, slim
from torch import nn
from torch.nn import functional
from worlds import Recorder, dataset_of, federation, shares_of, tiny_dataset

from interfuse.aggregation import BufferPolicy
from interfuse.data import Batch
from interfuse.errors import ModelError
from interfuse.families.submodels import TrainedOnClasses, masked_cross_entropy
from interfuse.federation import Federation
from interfuse.messages import Weights
from interfuse.method import Method
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedrolex import FedRolex
from interfuse.methods.heterofl import HeteroFL
from interfuse.methods.scalefl import ScaleFL
from interfuse.models import Builder, SplitModel, resolve
from interfuse.training import cross_entropy, fit

CALM = {"lr": 0.05, "local_epochs": 1}
"""Settings with which a few small batches do not go astray."""


def skewed(method: object = None, models: tuple[int, ...] = (6, 3), rounds: int = 0) -> Federation:
    """Client 0 is wide and has classes 0 and 1, client 1 narrow with 1 and 2, client 2 wide with 0; 3 is nowhere."""
    easy = tiny_dataset(rows=60, classes=3)
    of = [torch.nonzero(easy.y_train == c).flatten().tolist() for c in range(3)]
    shares = shares_of([*of[0][:9], *of[1][:8]], [*of[1][8:13], *of[2]], of[0][9:20])
    data = dataset_of(easy.x_train, easy.y_train, 4, test_rows=30)
    return federation(
        method or HeteroFL(**CALM),
        dataset=data,
        shares=shares,
        models=[slim(n) for n in models],
        wrap=Recorder,
        rounds=rounds,
    )


HELD = {0: [0, 1], 1: [1, 2], 2: [0]}


def test_a_round_by_hand() -> None:
    f = skewed()
    for _ in range(2):
        now = Round(f)
        for client, message in now.down.items():
            assert isinstance(message, Weights)
            for key, tensor in message.tensors.items():
                first = tuple(slice(0, n) for n in f.clients.profiles[client].keys[key])
                assert torch.equal(tensor, now.before[key][first])
        for key, old in now.before.items():
            sent = []
            for client, reply in now.up.items():
                assert isinstance(reply, TrainedOnClasses)
                assert reply.present.nonzero().flatten().tolist() == HELD[client]
                value = reply.tensors[key]
                positions = [list(range(n)) for n in value.shape]
                if key.startswith("classifier"):
                    value, positions[0] = value[HELD[client]], HELD[client]
                sent.append((value, positions, 1.0))
            torch.testing.assert_close(now.after[key], mean_by_loops(old, sent), rtol=1e-6, atol=1e-7)
        assert torch.equal(now.after["classifier.weight"][3], now.before["classifier.weight"][3])
        assert not torch.equal(now.after["classifier.weight"][2, :3], now.before["classifier.weight"][2, :3])
        # client 1 alone has class 2, and only half of the inputs
        assert torch.equal(now.after["classifier.weight"][2, 3:], now.before["classifier.weight"][2, 3:])


def test_narrow_clients_alone_leave_the_rest_of_the_model() -> None:
    f = skewed(HeteroFL(**CALM, participation=0.34))
    sizes = set()
    for _ in range(12):
        now = Round(f)
        (client,) = now.up
        reply = now.up[client]
        assert isinstance(reply, TrainedOnClasses)
        sizes.add(f.clients.profiles[client].architecture)
        for key, old in now.before.items():
            block = tuple(slice(0, n) for n in reply.tensors[key].shape)
            rows = HELD[client] if key.startswith("classifier") else slice(None)
            mine = now.after[key][block][rows]
            assert torch.equal(mine, reply.tensors[key][rows])
            outside = torch.ones(old.shape, dtype=torch.bool)
            outside[block] = False
            assert torch.equal(now.after[key][outside], old[outside])
    assert len(sizes) == 2


def test_masked_logits_are_zero_and_not_minus_infinity() -> None:
    model = nn.Linear(2, 3)
    x, y = torch.randn(5, 2), torch.tensor([0, 2, 2, 0, 2])
    present = torch.tensor([True, False, True])
    logits = model(x)
    expected = torch.stack(
        [torch.log(logits[i, 0].exp() + 1 + logits[i, 2].exp()) - logits[i, y[i]] for i in range(5)]
    ).mean()
    loss = masked_cross_entropy(model, Batch(x, y), 0, present=present)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    assert model.weight.grad[1].eq(0).all()
    everything = masked_cross_entropy(model, Batch(x, y), 0, present=torch.ones(3, dtype=torch.bool))  # type: ignore[arg-type]
    torch.testing.assert_close(everything, functional.cross_entropy(logits, y))


def test_without_the_mask_all_rows_count() -> None:
    f = skewed(HeteroFL(**CALM, mask=False))
    now = Round(f)
    for reply in now.up.values():
        assert isinstance(reply, TrainedOnClasses)
        assert reply.present.all()
    sent = [(r.tensors["classifier.bias"], [range(4)], 1.0) for r in now.up.values() if isinstance(r, TrainedOnClasses)]
    torch.testing.assert_close(now.after["classifier.bias"], mean_by_loops(now.before["classifier.bias"], sent))


def test_clients_count_by_their_samples_where_asked() -> None:
    f = skewed(HeteroFL(**CALM, weights="samples", mask=False))
    now = Round(f)
    samples = {client: f.clients.profiles[client].samples for client in f.clients}
    assert len(set(samples.values())) == 3
    sent = [
        (reply.tensors["stem.1.bias"], [range(len(reply.tensors["stem.1.bias"]))], float(samples[client]))
        for client, reply in now.up.items()
        if isinstance(reply, TrainedOnClasses)
    ]
    torch.testing.assert_close(now.after["stem.1.bias"], mean_by_loops(now.before["stem.1.bias"], sent))


def test_each_rate_apart() -> None:
    f = skewed(HeteroFL(**CALM, aggregation="group"), rounds=1)
    keys = f.server.state.weights
    assert keys["slim6x1:classifier.weight"].shape == (4, 6)
    assert keys["slim3x1:classifier.weight"].shape == (4, 3)


def test_models_that_are_no_slices_of_the_largest() -> None:
    with pytest.raises(ModelError, match=r"client 1 \(cnn\) should be a part .* client 0 \(mlp\): .*resnet18@0.5"):
        federation(HeteroFL(), models=["mlp", "cnn"], dataset=tiny_dataset(shape=(1, 6, 6)))


@pytest.mark.parametrize("models", [[slim(6), slim(3)], ["resnet10-narrow@0.5", "resnet10-narrow@0.25"]])
def test_different_widths_are_an_error_where_whole_tensors_are_averaged(models: list[object]) -> None:
    with pytest.raises(ModelError, match=r"clients 0 .* and 1 .* differ in the shape of stem.*heterofl"):
        federation(FedAvg(), models=models, dataset=tiny_dataset(shape=(1, 6, 6)))


@pytest.mark.parametrize("norm", ["", "-group", "-static"])
def test_a_factor_before_normalisation_changes_nothing(norm: str) -> None:
    """Why there is no Scaler: its factor 1 / rate on every convolution's output leaves loss and gradients alone."""
    torch.manual_seed(0)
    model = resolve(f"resnet10-narrow{norm}@0.5")((1, 16, 16), 3, 0)
    batch = Batch(torch.randn(8, 1, 16, 16), torch.arange(8) % 3)
    start = {key: tensor.clone() for key, tensor in model.tensors().items()}
    fit(model, cross_entropy, [batch] * 2, lr=0.01)
    plain = {key: tensor.clone() for key, tensor in model.tensors(buffers=False).items()}
    model.load(start)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: output / 0.5)
    fit(model, cross_entropy, [batch] * 2, lr=0.01)
    for key, tensor in model.tensors(buffers=False).items():
        torch.testing.assert_close(tensor, plain[key], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("buffers", list(BufferPolicy))
def test_every_policy_for_statistics(buffers: BufferPolicy) -> None:
    f = skewed(HeteroFL(**CALM, buffers=buffers), rounds=2)
    travel = {key for key in f.server.state.weights if "running" in key}
    assert bool(travel) == (buffers is BufferPolicy.AGGREGATE)


def bare(hidden: int) -> Builder:
    """Two linear layers with nothing between that normalises."""

    def build(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
        stem = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), hidden), nn.ReLU())
        return SplitModel({"stem": stem, "classifier": nn.Linear(hidden, classes)})

    build.__qualname__ = f"bare{hidden}"
    return build


@pytest.mark.parametrize("kind", [HeteroFL, FedRolex, ScaleFL])
def test_widths_that_nothing_normalises_are_refused(kind: type[Method]) -> None:
    """Where the Scaler that is left out would change the training."""
    with pytest.raises(ModelError, match=r"client 1 \(bare3\) is narrower .* nothing in it normalises: .*Scaler"):
        federation(kind(), models=[bare(6), bare(3)])
    federation(kind(), models=[bare(6)])
    federation(kind.configure({"aggregation": "group"}), models=[bare(6), bare(3)])
