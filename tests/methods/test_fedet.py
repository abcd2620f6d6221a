"""Fed-ET: what the clients agree on, FedAvg in groups without the server's training, one head for all groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import (
    Recorder,
    federation,
    largest_difference,
    linear_head,
    same_bits,
    shares_of,
    tiny_dataset,
    wide,
)

from interfuse.errors import ModelError
from interfuse.evaluation import evaluate
from interfuse.messages import Weights
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedet import FedET, PublicRows, consensus

UNEVEN = shares_of(range(0, 9), range(9, 26), range(26, 60))
OPTIONS: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "lr": 0.05}
WORLD: dict[str, Any] = {"models": ["logistic", linear_head], "shares": UNEVEN}


@given(st.integers(0, 300), st.integers(1, 5))
def test_consensus_in_plain_numbers(seed: int, clients: int) -> None:
    scores = torch.randn(clients, 6, 4, generator=torch.Generator().manual_seed(seed))
    answer, dissent = consensus(scores)
    for row in range(6):
        rows = scores[:, row].double()
        weights = ((rows - rows.mean(1, keepdim=True)) ** 2).mean(1)
        weights = weights / weights.sum()
        expected = int((weights[:, None] * rows).sum(0).argmax())
        others = [k for k in range(clients) if int(rows[k].argmax()) != expected]
        assert int(answer[row]) == expected
        mixed = torch.zeros(4, dtype=torch.float64)
        for k in others:
            mixed += weights[k] / sum(weights[j] for j in others) * rows[k]
        assert torch.allclose(dissent[row].double(), mixed, atol=1e-5)


def test_one_client_or_equal_clients_have_no_dissent() -> None:
    scores = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    for same in (scores, scores.expand(4, 5, 3)):
        answer, dissent = consensus(same)
        assert torch.equal(answer, scores[0].argmax(1))
        assert not dissent.any()


def test_clients_without_an_opinion_are_no_nan() -> None:
    answer, dissent = consensus(torch.zeros(3, 4, 2))
    assert answer.tolist() == [0] * 4
    assert not dissent.any()


def test_without_the_servers_training_it_is_fedavg_in_groups_with_one_mean_head() -> None:
    et = federation(FedET(**OPTIONS, server_steps=0), **WORLD, wrap=Recorder)
    avg = federation(FedAvg(**OPTIONS, aggregation="group"), **WORLD)
    et.run_round()
    avg.run_round()
    assert isinstance(et.engine, Recorder)
    sent = {c: m.tensors for r, c, m in et.engine.up if isinstance(m, Weights) and r.round == 1}
    for key, tensor in et.server.state.weights.items():
        name = key.rpartition(":")[2]
        if name.startswith("classifier"):
            mean = sum(len(UNEVEN[c].train) * t[name].double() for c, t in sent.items()) / 60
            assert torch.allclose(tensor.double(), mean, atol=1e-6)
        else:
            assert torch.equal(tensor, avg.server.state.weights[key])


def test_all_groups_and_the_server_have_one_head() -> None:
    f = federation(FedET(**OPTIONS), **WORLD, rounds=2)
    head = f.server.network("large").tensors("modular")
    found = {key: t for key, t in f.server.state.weights.items() if "classifier" in key}
    assert len(found) == 4
    assert all(torch.equal(t, head[key.rpartition(":")[2]]) for key, t in found.items())
    assert f.server.architectures["large"] == "linear_head"  # the larger one


def test_the_server_learns_what_the_clients_agree_on() -> None:
    f = federation(FedET(**{**OPTIONS, "local_steps": 40, "lr": 0.2}, server_lr=0.1), **WORLD, rounds=6)
    data, large = f.setup.dataset, f.server.network("large")
    with large.evaluating():
        right = large(data.normalise(data.x_test)).argmax(1) == data.y_test
    assert float(right.float().mean()) > 0.9
    assert min(evaluate(f, full=True).common) > 0.9


def test_the_public_set_is_what_clients_give_once_without_labels() -> None:
    f = federation(FedET(**OPTIONS, public_rows=12), **WORLD, rounds=2, wrap=Recorder)
    assert isinstance(f.engine, Recorder)
    given = [(r.heading, c, m) for r, c, m in f.engine.up if isinstance(m, PublicRows)]
    assert [(heading, c, len(m.x)) for heading, c, m in given] == [("start", 0, 9), ("start", 1, 12), ("start", 2, 12)]
    for _, client, message in given:
        own = f.setup.dataset.x_train[torch.from_numpy(UNEVEN[client].train)]
        assert all(any(torch.equal(row, mine) for mine in own) for row in message.x)
        assert len(message.x.unique(dim=0)) == len(message.x)
    assert torch.equal(f.server.state.public, torch.cat([m.x for _, _, m in given]))


@pytest.mark.parametrize("diversity", [0.0, 5.0])
def test_dissent_matters_where_it_has_weight(diversity: float) -> None:
    world: dict[str, Any] = {**WORLD, "dataset": tiny_dataset(seed=4)}
    base, other = (federation(FedET(**OPTIONS, diversity=d), **world, rounds=1) for d in (0.0, diversity))
    same = same_bits(base.server.network("large").tensors(), other.server.network("large").tensors())
    assert same == (diversity == 0)


def test_one_group_begins_as_fedavg() -> None:
    world: dict[str, Any] = {"models": [wide], "shares": UNEVEN, "rounds": 1}
    et, avg = (federation(kind, **world) for kind in (FedET(**OPTIONS), FedAvg(**OPTIONS)))
    bases = ({k.rpartition(":")[2]: t for k, t in f.server.state.weights.items() if "base" in k} for f in (et, avg))
    assert largest_difference(*bases) == 0


def test_heads_must_be_alike() -> None:
    with pytest.raises(ModelError, match="modular blocks differ"):
        federation(FedET(), models=["logistic", wide])


def test_logits_and_log_probabilities_have_one_consensus() -> None:
    """They differ by one number a row, so variances over the classes do not, however confident a client is."""
    logits = torch.randn(4, 50, 6, dtype=torch.float64) * torch.tensor([0.1, 1.0, 10.0, 100.0])[:, None, None]
    torch.testing.assert_close(logits.var(2), logits.log_softmax(2).var(2))
    (answer, dissent), (same, other) = consensus(logits), consensus(logits.log_softmax(2))
    assert torch.equal(answer, same)
    torch.testing.assert_close(dissent.softmax(1), other.softmax(1))
