"""FedMRL: training and answers by PyTorch's own loop; what both heads read, what travels and what stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional
from worlds import (
    entries,
    federation,
    in_steps,
    largest_difference,
    live_model,
    resident,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.data import Batch
from interfuse.errors import ConfigError
from interfuse.evaluation import evaluate
from interfuse.families.memes import small_network
from interfuse.methods.fedmrl import FedMRL, fused, nested, projector
from interfuse.models import SplitModel, side_by_side


def server_meme(f: Any) -> SplitModel:
    made = small_network(f.method.meme, f.setup.dataset.shape, 3, f.method.width(f.server.dims))
    made.load(f.server.state.weights)
    return made


@pytest.mark.parametrize("models", [["logistic"], [wide, "mlp"]])
def test_two_rounds_and_the_answers_after_them_by_hand(models: Any) -> None:
    f = federation(FedMRL(local_steps=3, batch_size=8, lr=0.1, meme_width=3), models=models, clients=2)
    own = [copy.deepcopy(live_model(f, client)) for client in f.clients]
    between = [copy.deepcopy(resident(f, client).network("projector")) for client in f.clients]
    meme = server_meme(f)
    for round in range(2):
        memes = []
        for client, model in enumerate(own):
            mine = copy.deepcopy(meme)
            parameters = [p for network in (model, mine, between[client]) for p in network.parameters()]
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            for x, y in in_steps(f.setup, client, 3 * (round + 1), 8)[3 * round :]:
                z = between[client](torch.cat([mine.base(x), model.base(x)], 1))
                both = (model.modular(z), mine.modular(z[:, :3]))
                optimizer.zero_grad()
                torch.stack([functional.cross_entropy(scores, y) for scores in both]).sum().backward()
                optimizer.step()
            memes.append(mine.tensors())
        meme.load({key: (memes[0][key] + memes[1][key]) / 2 for key in memes[0]})
        f.run_round()
        assert largest_difference(meme.tensors(), f.server.state.weights) < 1e-5
        for client, model in enumerate(own):
            assert largest_difference(model.tensors(), weights_of(f, client)) < 1e-5
            # HtFLlib does not store it, so that each round begins with the first one
            kept = resident(f, client).network("projector").tensors()
            assert largest_difference(between[client].tensors(), kept) < 1e-5
    data, found = f.setup.dataset, evaluate(f, full=True).common
    for client, model in enumerate(own):
        x = data.normalise(data.x_test)
        with torch.no_grad():  # the newest meme, the mean of all
            answers = model.eval().modular(between[client](torch.cat([meme.eval().base(x), model.base(x)], 1)))
        assert found[client] == int((answers.argmax(1) == data.y_test).sum()) / len(data.y_test)


def test_as_wide_as_the_model_both_heads_read_one_vector() -> None:
    model, meme, own = wide((5,), 3, 8), wide((5,), 3, 8), projector(16, 8)
    eye = torch.eye(8)
    own.load({"projector.weight": torch.cat([torch.zeros(8, 8), eye], 1), "projector.bias": torch.zeros(8)})
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    torch.testing.assert_close(fused(model, meme, own, x), model.base(x))  # that of the model alone
    together = side_by_side({"model": model, "meme": meme, "projector": own})
    expected = functional.cross_entropy(model(x), y) + functional.cross_entropy(meme.modular(model.base(x)), y)
    torch.testing.assert_close(nested(together, Batch(x, y), 0, prefix=8), expected)


def test_evaluation_changes_no_statistics_and_uses_those_that_are_averaged() -> None:
    data = tiny_dataset(rows=50, shape=(1, 4, 4))
    f = federation(FedMRL(meme="cnn-bn", lr=0.05), models=["logistic"], dataset=data, rounds=2)
    before = {key: tensor.clone() for key, tensor in f.server.state.weights.items()}
    first, again = evaluate(f, full=True), evaluate(f, full=True)
    assert first == again
    with f.evaluating() as clients:
        for client in clients:
            inside = resident(f, client)
            f.method.predict(inside, torch.randn(7, 1, 4, 4))  # type: ignore[attr-defined]
            assert largest_difference(inside.network("meme").tensors(), before) == 0


def test_the_meme_is_a_quarter_as_wide_and_travels_alone() -> None:
    f = federation(FedMRL(local_steps=1), models=["logistic", wide], rounds=1)
    assert f.server.state.weights["classifier.weight"].shape == (3, 2)
    size = 4 * (5 * 2 + 2 + 2 * 3 + 3)
    assert [entry.raw for entry in entries(f) if entry.heading == "training"] == [size] * 6


def narrow(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return wide(sample_shape, classes, 3)


def test_widths_may_differ_but_none_may_be_less_than_what_the_meme_reads() -> None:
    federation(FedMRL(local_steps=1, meme_width=3), models=["logistic", narrow], rounds=1)
    with pytest.raises(ConfigError, match=r"client 1 \(narrow\): of 3 features .* cannot read 4; .*--set meme_width="):
        federation(FedMRL(local_steps=1, meme_width=4), models=["logistic", narrow])
    with pytest.raises(ConfigError, match=r"differ in width, .* --set meme_width=128"):
        federation(FedMRL(), models=["logistic", narrow])
