"""LG-FedAvg: the base blocks are Local's, the modular block FedAvg's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuts import COUNTS, UNEVEN, cut1, cut2
from worlds import (
    Recorder,
    depth1,
    depth2,
    federation,
    in_steps,
    largest_difference,
    linear_head,
    live_model,
    plain_sgd,
    resident,
    same_bits,
    server_copy,
    weights_of,
    wide,
)

from interfuse.errors import ConfigError, ModelError
from interfuse.evaluation import evaluate
from interfuse.messages import Weights
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.lg_fedavg import LGFedAvg

HEAD = {"classifier.weight", "classifier.bias"}


def test_one_client_is_local_sgd() -> None:
    f = federation(LGFedAvg(local_steps=3, batch_size=8, lr=0.1, momentum=0), models=[wide], clients=1)
    model = server_copy(f.setup, f.setup.architectures[0], weights_of(f, 0, "base") | f.server.state.modular)
    plain = plain_sgd(model, in_steps(f.setup, 0, 9, 8), 0.1)
    for _ in range(3):
        f.run_round()
    assert same_bits(plain, {**live_model(f, 0).tensors("base"), **f.server.state.modular})


@pytest.mark.parametrize("rule", ["samples", "uniform"])
def test_bases_stay_and_heads_are_averaged(rule: Any) -> None:
    method = LGFedAvg(local_steps=3, batch_size=6, lr=0.1, momentum=0, weights=rule)
    f = federation(method, models=["logistic", linear_head], shares=UNEVEN, wrap=Recorder)
    assert set(f.server.state.modular) == HEAD
    models = [server_copy(f.setup, a, weights_of(f, c, "base")) for c, a in enumerate(f.setup.architectures)]
    counts = COUNTS if rule == "samples" else [1, 1, 1]
    for round in range(3):
        for client, model in enumerate(models):
            model.load(f.server.state.modular)
            plain_sgd(model, in_steps(f.setup, client, 9, 6)[3 * round : 3 * round + 3], 0.1)
        f.run_round()
        mean = {
            k: sum(n * m.tensors()[k].double() for n, m in zip(counts, models, strict=True)) / sum(counts) for k in HEAD
        }
        assert largest_difference(mean, f.server.state.modular) < 1e-6
        for client, model in enumerate(models):
            assert same_bits(model.tensors("base"), live_model(f, client).tensors("base"))


def test_only_the_head_travels_and_clients_are_evaluated_with_the_mean() -> None:
    f = federation(LGFedAvg(local_steps=2, batch_size=4, lr=0.1), models=["logistic", linear_head], wrap=Recorder)
    f.run_round()
    totals = f.exchange.ledger.totals()
    assert totals.uplink.raw == totals.downlink.raw == 3 * 4 * (8 * 3 + 3)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    evaluate(f, full=True)
    assert {key for _, _, m in recorder.up + recorder.down if isinstance(m, Weights) for key in m.tensors} == HEAD
    with f.evaluating():
        for client in f.clients:
            assert same_bits(f.server.state.modular, dict(resident(f, client).model.tensors("modular")))


def test_a_head_is_averaged_over_those_who_hold_it() -> None:
    f = federation(LGFedAvg(local_steps=2, batch_size=4), models=[wide, depth1, depth2], wrap=Recorder, rounds=1)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    sent = {c: m.tensors for r, c, m in recorder.up if isinstance(m, Weights)}
    key = "classifier.weight"
    assert torch.allclose(f.server.state.modular[key], (sent[1][key] + sent[2][key]) / 2, atol=1e-6)
    own = {key: t for key, t in f.server.state.modular.items() if key.startswith("modular")}
    assert same_bits(own, {key: sent[0][key] for key in own})


def test_those_left_out_of_a_round_keep_their_base_blocks() -> None:
    f = federation(LGFedAvg(local_steps=1, participation=0.4), models=["logistic"], wrap=Recorder)
    for _ in range(4):
        before = [weights_of(f, client, "base") for client in f.clients]
        f.run_round()
        recorder = f.engine
        assert isinstance(recorder, Recorder)
        (drawn,) = {client for request, client, _ in recorder.up if request.round == f.round}
        unchanged = [same_bits(b, weights_of(f, c, "base")) for c, b in enumerate(before)]
        assert unchanged == [client != drawn for client in f.clients]


def test_models_without_a_common_head_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"(?s)client 0 \(wide\): modular.* client 1 \(depth1\): classifier.*mlp-linear"
    ):
        federation(LGFedAvg(), models=[wide, depth1], clients=2)
    federation(LGFedAvg(), models=[wide, depth1], clients=3)
    federation(LGFedAvg(), models=[wide], clients=1)


def test_models_cut_at_different_stages_are_refused() -> None:
    with pytest.raises(ModelError, match=r"second.* shared by client 0 \(cut1\), but client 1 \(cut2\) .*same stage"):
        federation(LGFedAvg(), models=[cut1, cut2])
    with pytest.raises(ModelError, match=r"second.* shared by client 1 \(cut1\), but client 0 \(cut2\) .*same stage"):
        federation(LGFedAvg(), models=[cut2, cut1])


def test_it_may_begin_with_rounds_of_fedavg() -> None:
    """Two rounds are FedAvg's, bit for bit; whoever sat out has its base block too, and from then on keeps its own."""
    world: dict[str, Any] = {"models": ["logistic"], "clients": 4, "wrap": Recorder}
    options: dict[str, Any] = {"local_steps": 2, "batch_size": 4, "lr": 0.1, "participation": 0.5, "weights": "uniform"}
    lg = federation(LGFedAvg(**options, momentum=0, whole_rounds=2), **world)
    avg = federation(FedAvg(**options), **world)
    assert evaluate(lg, full=False).own == evaluate(avg, full=False).own
    for _ in range(2):
        lg.run_round()
        avg.run_round()
        assert evaluate(lg, full=False).own == evaluate(avg, full=False).own
        shared = lg.server.state.modular | lg.server.state.base
        assert same_bits(shared, {key: avg.server.state.weights[key] for key in shared})
    assert not lg.server.state.base
    whole = {key: t for key, t in avg.server.state.weights.items() if key not in HEAD}
    assert all(same_bits(resident(lg, client).state.base, whole) for client in lg.clients)
    lg.run_round()
    recorder = lg.engine
    assert isinstance(recorder, Recorder)
    sent = [set(m.tensors) for request, _, m in recorder.up if isinstance(m, Weights) and request.round == 3]
    assert sent == [HEAD, HEAD]
    assert sum(same_bits(resident(lg, client).state.base, whole) for client in lg.clients) == 2
    head = lg.server.state.modular
    with lg.evaluating():
        for client in lg.clients:
            base = resident(lg, client).state.base
            assert same_bits(live_model(lg, client).tensors(), {**base, **head})


def test_no_client_has_whole_rounds_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"client 0: whole_rounds = 1: all clients must have the same, 0"):
        federation(LGFedAvg(), models=["logistic"], overrides={0: {"whole_rounds": 1}})
