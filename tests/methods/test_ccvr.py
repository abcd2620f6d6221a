"""CCVR: training is FedAvg's or Local's, bit for bit; only the head that answers is another, and knows all classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import skewed
from worlds import (
    Recorder,
    everything_owned,
    federation,
    linear_head,
    live_model,
    resident,
    same_bits,
    shares_of,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.errors import ModelError
from interfuse.evaluation import evaluate
from interfuse.families.moments import ClassMoments
from interfuse.federation import Federation
from interfuse.methods.ccvr import CCVR
from interfuse.methods.ccvr_local import CCVRLocal
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.local import Local

OPTIONS: dict[str, Any] = {"local_steps": 3, "batch_size": 6, "lr": 0.1}
STRONG: dict[str, Any] = {"calibration_epochs": 5, "calibration_lr": 0.1}


def finished(method: Any, rounds: int = 3, **world: Any) -> Federation:
    """After so many rounds, of which the last is the run's last."""
    return federation(method, rounds=rounds, last=rounds, **world)


def moments(f: Federation) -> list[ClassMoments]:
    assert isinstance(f.engine, Recorder)
    return [message for _, _, message in f.engine.up if isinstance(message, ClassMoments)]


def test_the_server_keeps_fedavgs_model_and_clients_answer_with_another_head() -> None:
    world = skewed() | {"models": ["logistic"]}
    ccvr = finished(CCVR(**OPTIONS, **STRONG), **world, wrap=Recorder)
    avg = finished(FedAvg(**OPTIONS), **world)
    assert same_bits(ccvr.server.state.weights, avg.server.state.weights)
    heads = ccvr.server.state.heads
    assert set(heads) == {"classifier.weight", "classifier.bias"}
    with ccvr.evaluating():
        for client in ccvr.clients:
            answers = live_model(ccvr, client).tensors()
            assert same_bits({key: t for key, t in answers.items() if key in heads}, heads)
            rest = {key: t for key, t in answers.items() if key not in heads}
            assert same_bits(rest, {key: avg.server.state.weights[key] for key in rest})
    assert len(moments(ccvr)) == 3  # once, in all rounds
    ccvr.run_round()
    avg.run_round()
    assert same_bits(ccvr.server.state.weights, avg.server.state.weights)
    assert not ccvr.server.state.heads


def test_a_client_of_one_class_answers_as_local_does_but_for_its_head() -> None:
    world = skewed()  # unlike base blocks; client 1 has class 1 alone
    own = finished(CCVRLocal(**OPTIONS, **STRONG), **world, wrap=Recorder)
    alone = finished(Local(**OPTIONS), **world)
    for client in own.clients:
        trained = resident(own, client).state.trained
        assert same_bits(weights_of(own, client, "base"), weights_of(alone, client, "base"))
        assert same_bits(trained, weights_of(alone, client, "modular"))
        assert not torch.equal(trained["classifier.weight"], weights_of(own, client)["classifier.weight"])
    assert len(moments(own)) == 3
    with own.evaluating():
        rows = own.setup.dataset.x_test
        answers = live_model(own, 1)(own.setup.dataset.normalise(rows)).argmax(1).unique().tolist()
    assert 3 not in answers  # nobody has it
    own.run_round()
    alone.run_round()
    for client in own.clients:
        assert same_bits(weights_of(own, client), weights_of(alone, client))


@pytest.mark.parametrize("kind", [CCVR, CCVRLocal])
def test_heads_learn_classes_that_their_clients_never_saw(kind: Any) -> None:
    """One class a client: by themselves two of three are never right about the others."""
    data = tiny_dataset(rows=90, shape=(4,))
    rows = [torch.nonzero(data.y_train == c).flatten().tolist() for c in range(3)]
    world: dict[str, Any] = {"dataset": data, "shares": shares_of(*rows), "models": ["logistic"]}
    options: dict[str, Any] = {"local_steps": 20, "batch_size": 8, "lr": 0.05}
    f = finished(kind(**options, calibration_epochs=10, calibration_lr=0.1), **world)
    plain = finished(Local(**options), **world)
    with f.evaluating():
        seen = torch.stack([live_model(f, c)(data.normalise(data.x_test)).argmax(1) for c in f.clients])
    assert all(set(own.tolist()) == {0, 1, 2} for own in seen)
    assert sum(evaluate(plain, full=True).common) < sum(evaluate(f, full=True).common)


def test_bytes_are_a_mean_a_covariance_a_count_and_a_label_for_each_class() -> None:
    for covariance, floats in (("full", 8 + 64 + 1), ("diagonal", 8 + 8 + 1)):
        f = finished(CCVRLocal(**OPTIONS, covariance=covariance), rounds=1, **skewed(), wrap=Recorder)  # type: ignore[arg-type]
        assert f.exchange.ledger.totals().uplink.raw == 5 * (4 * floats + 1)  # five classes over all clients
        assert f.exchange.ledger.totals().downlink.raw == 3 * 3 * 200 * (4 * 8 + 1)


def test_heads_that_differ_are_refused_for_a_common_one_and_each_architecture_may_be_by_itself() -> None:
    with pytest.raises(ModelError, match="modular blocks differ"):
        federation(CCVR(), models=["logistic", wide])
    f = finished(CCVR(**OPTIONS, aggregation="group"), models=["logistic", wide, linear_head], clients=4, rounds=1)
    assert {key.partition(":")[0] for key in f.server.state.heads} == {"logistic", "wide", "linear_head"}
    own = finished(CCVRLocal(**OPTIONS), models=["logistic", wide], rounds=1)
    assert all(tensor.isfinite().all() for tensor in everything_owned(own).values() if tensor.is_floating_point())
