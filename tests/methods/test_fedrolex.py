from __future__ import annotations

import pytest
import torch
from slim import Round, flattening, mean_by_loops, received_for_evaluation, slim
from worlds import Recorder, federation, tiny_dataset

from interfuse.errors import ModelError
from interfuse.families.submodels import TrainedOnClasses
from interfuse.federation import Federation
from interfuse.messages import Weights
from interfuse.methods.fedrolex import FedRolex
from interfuse.methods.heterofl import HeteroFL


def rolled(n: int, m: int, round: int) -> list[int]:
    """What a client of m of n channels holds in a round, counted from 1."""
    return list(range(n)) if n == m else [(i - (round - 1)) % n for i in range(m)]


def mixed(rounds: int = 0, method: type[HeteroFL] = FedRolex) -> Federation:
    method_of = method(lr=0.05, local_epochs=1, weight_decay=0.0)
    return federation(method_of, models=[slim(6), slim(4), slim(1)], wrap=Recorder, rounds=rounds)


def test_rounds_by_hand() -> None:
    """Every tensor, biases and normalisation too, is a mean over this round's holders and nothing else."""
    f = mixed()
    for round in range(1, 9):
        now = Round(f)
        for key, old in now.before.items():
            sent = []
            for client, reply in now.up.items():
                got = now.down[client]
                assert isinstance(reply, TrainedOnClasses)
                assert isinstance(got, Weights)
                value = reply.tensors[key]
                window = [rolled(n, m, round) for n, m in zip(old.shape, value.shape, strict=True)]
                assert torch.equal(got.tensors[key], old[torch.meshgrid(*map(torch.tensor, window), indexing="ij")])
                sent.append((value, window, 1.0))
            torch.testing.assert_close(now.after[key], mean_by_loops(old, sent), rtol=1e-6, atol=1e-7)


def test_the_first_round_is_that_of_heterofl() -> None:
    one, other = mixed(rounds=1), mixed(rounds=1, method=HeteroFL)
    assert all(torch.equal(t, other.server.state.weights[key]) for key, t in one.server.state.weights.items())
    one.run_round()
    other.run_round()
    assert not torch.equal(one.server.state.weights["stem.2.bias"], other.server.state.weights["stem.2.bias"])


def test_evaluation_is_of_the_window_that_was_just_trained() -> None:
    f = mixed(rounds=3)
    sent = received_for_evaluation(f)
    bias = f.server.state.weights["stem.2.bias"]
    for client, width in enumerate((6, 4, 1)):
        assert torch.equal(sent[client].tensors["stem.2.bias"], bias[rolled(6, width, 3)])


def test_flattened_maps_cannot_roll() -> None:
    """Windows of channels and of what they become when they are flattened would not fit together."""
    f = federation(FedRolex(), models=[flattening(8), flattening(4)], dataset=tiny_dataset(shape=(1, 6, 6)), rounds=1)
    with pytest.raises(ModelError, match="inputs, which no layer gives"):
        f.run_round()
