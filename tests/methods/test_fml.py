"""FML: a model and a meme that teach each other, by PyTorch's own loop; and the meme, which alone travels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional
from worlds import (
    Recorder,
    alone,
    entries,
    federation,
    in_epochs,
    in_steps,
    largest_difference,
    live_model,
    resident,
    same_bits,
    shares_of,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.data.inputs import Shape
from interfuse.errors import ClientError, ConfigError, MessageError, ModelError
from interfuse.families.memes import MemeWeights, small_network
from interfuse.families.mutual import divergence
from interfuse.messages.delivery import check
from interfuse.methods.fml import FML
from interfuse.models import SplitModel

UNEVEN = shares_of(range(0, 9), range(9, 26), range(26, 50))
IMAGES = {"dataset": tiny_dataset(rows=50, shape=(1, 4, 4)), "shares": UNEVEN}


@given(st.integers(0, 50), st.sampled_from([1, 3, 10]))
def test_a_divergence_is_that_of_torch_distributions_and_trains_the_student_alone(seed: int, classes: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(6, classes, generator=noise).requires_grad_() for _ in range(2))
    found = divergence(student, teacher, "batch")
    expected = kl_divergence(Categorical(logits=teacher), Categorical(logits=student)).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    assert divergence(student, teacher, "elements").item() == pytest.approx(expected.item() / classes, abs=1e-6)
    found.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    closed_form = (student.softmax(1) - teacher.softmax(1)) / 6
    assert torch.allclose(student.grad, closed_form.detach(), atol=1e-6)  # type: ignore[arg-type]


def test_equal_answers_are_no_loss() -> None:
    logits = torch.randn(5, 4)
    assert float(divergence(logits, logits, "batch")) == 0


@pytest.mark.parametrize("models", [["logistic", wide], ["cnn-bn"]])
def test_without_divergences_models_are_locals_and_the_meme_is_fedavgs(models: Any) -> None:
    """Bit for bit at the clients, since nothing of one network reaches the other."""
    options: dict[str, Any] = {"lr": 0.05, "batch_size": 9, "local_epochs": 2, "momentum": 0.9, "weights": "samples"}
    f = federation(FML(**options, alpha=1, beta=1, meme="logistic"), models=models, **IMAGES)
    method = f.method
    local = federation(alone(method), models=models, **IMAGES)
    meme = server_meme(f)
    for round in range(2):
        begun, trained = copy.deepcopy(meme), []
        for client, share in enumerate(UNEVEN):
            own = copy.deepcopy(begun)
            optimizer = torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.9)
            for x, y in in_epochs(f.setup, client, 2 * (round + 1), 9)[-2 * -(-len(share.train) // 9) :]:
                optimizer.zero_grad()
                functional.cross_entropy(own(x), y).backward()
                optimizer.step()
            trained.append({key: len(share.train) / 50 * t for key, t in own.state_dict().items()})
        meme.load_state_dict({key: torch.stack([one[key] for one in trained]).sum(0) for key in trained[0]})
        f.run_round()
        local.run_round()
        assert largest_difference(meme.tensors(), f.server.state.weights) < 1e-6
    for client in f.clients:
        assert same_bits(weights_of(f, client), weights_of(local, client))
    assert largest_difference(weights_of(federation(FML(**options), models=models, **IMAGES, rounds=2), 0),
                              weights_of(f, 0)) > 1e-4  # fmt: skip


def server_meme(f: Any) -> SplitModel:
    """The server's meme as a model."""
    made = small_network(f.method.meme, f.setup.dataset.shape, f.server.dims["classes"], f.method.width(f.server.dims))
    made.load(f.server.state.weights)
    return made


@pytest.mark.parametrize("over", ["batch", "elements"])
@pytest.mark.parametrize("models", [["logistic"], [wide, "mlp"]])
def test_two_rounds_by_hand(models: Any, over: Any) -> None:
    """Two networks, two optimizers, two losses whose teachers are numbers; the memes' mean counts clients alike."""
    method = FML(local_steps=3, batch_size=8, lr=0.1, momentum=0.5, alpha=0.3, beta=0.8, divergence=over)
    f = federation(method, models=models, clients=2)
    own = [copy.deepcopy(live_model(f, client)) for client in f.clients]
    meme = server_meme(f)
    for round in range(2):
        memes = []
        for client, model in enumerate(own):
            mine = copy.deepcopy(meme)
            both = [torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5) for network in (model, mine)]
            for x, y in in_steps(f.setup, client, 3 * (round + 1), 8)[3 * round :]:
                answers = [network.train()(x) for network in (model, mine)]
                fixed = [torch.tensor(answer.tolist()).softmax(1) for answer in answers]
                size = 8 if over == "batch" else 8 * 3
                for network, optimizer, answer, teacher, weight in zip(
                    (model, mine), both, answers, reversed(fixed), (0.3, 0.8), strict=True
                ):
                    network.zero_grad()
                    distance = (teacher * (teacher.log() - answer.log_softmax(1))).sum() / size
                    (weight * functional.cross_entropy(answer, y) + (1 - weight) * distance).backward()
                    optimizer.step()
            memes.append(mine.state_dict())
        meme.load_state_dict({key: (memes[0][key] + memes[1][key]) / 2 for key in memes[0]})
        f.run_round()
        assert largest_difference(meme.tensors(), f.server.state.weights) < 1e-5
        for client, model in enumerate(own):
            assert largest_difference(model.tensors(), weights_of(f, client)) < 1e-5


@pytest.mark.parametrize("buffers", ["aggregate", "local"])
def test_statistics_of_memes_are_means_or_stay_where_they_are(buffers: Any) -> None:
    f = federation(FML(meme="cnn-bn", buffers=buffers, lr=0.05), models=["logistic"], wrap=Recorder, **IMAGES)
    statistics = {key for key in f.server.state.weights if "running" in key}
    assert bool(statistics) == (buffers == "aggregate")
    f.run_round()
    assert isinstance(f.engine, Recorder)
    sent = [message.tensors for _, _, message in f.engine.up if isinstance(message, MemeWeights)]
    assert len(sent) == 3
    for key in statistics:
        mean = torch.stack([own[key] for own in sent]).mean(0)
        assert torch.allclose(f.server.state.weights[key], mean, atol=1e-6)  # neither 4/3 of it nor what it was
    if buffers == "local":
        kept = [resident(f, client).network("meme").tensors("buffers") for client in f.clients]
        assert all(largest_difference(kept[0], other) > 1e-3 for other in kept[1:])


def test_bytes_are_the_memes_alone_whatever_the_models() -> None:
    f = federation(FML(meme="mlp", meme_width=6), models=[wide, "logistic"], rounds=1)
    size = 4 * (5 * 512 + 512 + 512 * 6 + 6 + 6 * 256 + 256 + 256 * 3 + 3)
    assert [entry.raw for entry in entries(f) if entry.heading == "training"] == [size] * 6


class Changed(Recorder):
    """An engine whose client 1 sends something else."""

    change: Any = None

    def call(self, request: Any, messages: Any) -> Any:
        for answer in super().call(request, messages):
            if answer.client == 1 and isinstance(answer.reply, MemeWeights):
                tensors = dict(answer.reply.tensors)
                self.change(tensors)
                answer = type(answer)(answer.client, MemeWeights(tensors), 0.0)
            yield answer


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("classifier.bias"), r"client 1 sent what is not its meme: .*did not send 'classifier.bias'"),
        (lambda t: t.update(extra=torch.zeros(2)), r"client 1 sent what is not its meme: a client sent 'extra'"),
        (lambda t: t.update({"classifier.bias": torch.zeros(4)}), "client 1 sent what is not its meme: .*shape"),
    ],
)
def test_what_is_no_meme_is_refused_by_name(change: Any, complaint: str) -> None:
    f = federation(FML(meme="cnn-bn"), models=["logistic"], wrap=Changed, **IMAGES)
    assert isinstance(f.engine, Changed)
    f.engine.change, before = change, f.server.state
    with pytest.raises(ClientError, match=complaint):
        f.run_round()
    assert f.server.state is before


def test_a_variance_below_0_is_refused_as_of_a_model() -> None:
    with pytest.raises(MessageError, match="variances"):
        check(MemeWeights({"conv.running_var": torch.tensor([-1.0])}), {})


def test_a_meme_is_a_model_of_the_zoo_that_takes_the_samples() -> None:
    with pytest.raises(ConfigError, match=r"name a model of the zoo"):
        FML(meme="somebody.code:build")
    with pytest.raises(ConfigError, match="unknown model 'cn': did you mean 'cnn'"):
        FML(meme="cn")
    with pytest.raises(ModelError, match=r"meme = 'cnn': .*; take another meme, for instance --set meme=mlp"):
        federation(FML(meme="cnn"))
    assert "logistic.fc1.1.weight" in federation(FML()).server.state.weights  # rows of numbers
    assert "cnn.conv1.0.weight" in federation(FML(), **IMAGES).server.state.weights


def other_width(sample_shape: Shape, classes: int, width: int) -> SplitModel:
    return wide(sample_shape, classes, width + 3)  # type: ignore[arg-type]


def test_clients_need_no_fusion_width_in_common() -> None:
    with pytest.raises(ConfigError, match=r"differ in width, .* --set meme_width=128"):
        federation(FML(), models=[wide, other_width])
    f = federation(FML(meme_width=5), models=[wide, other_width], rounds=1)
    assert f.server.state.weights["classifier.weight"].shape == (3, 5)
