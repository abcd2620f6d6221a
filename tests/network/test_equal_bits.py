"""A run between separate processes over mutual TLS gives the bits of the local engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from parties import assert_equal_to_local, parties

CASES: dict[str, tuple[list[str], int, dict[str, int]]] = {
    "ifl": (["mlp", "logistic"], 20, {}),
    "fedin": (["resnet10-narrow@0.25", "resnet14-narrow@0.25"], 2, {"local_epochs": 1}),
    "fedavg": (["logistic"], 3, {}),
    "scaffold": (["logistic"], 3, {}),
    "splitfed-v1": (["logistic"], 3, {}),
    "ifl-bank": (["mlp", "logistic"], 2, {"decoder_steps": 3, "bank_rows": 6}),
    "fedvtc": (["mlp", "logistic"], 2, {"generator_steps": 3, "channels": 4, "finetune_epochs": 1, "latents": 2}),
}
"""Models, rounds and settings by method."""


@pytest.mark.parametrize("method", CASES)
def test_a_network_gives_the_bits_of_the_local_engine(method: str, tmp_path: Path) -> None:
    models, rounds, settings = CASES[method]
    with parties(tmp_path) as four:
        recipe = {"method": method, "rounds": rounds, "settings": {"batch_size": 16} | settings}
        if method == "fedavg":  # what the contract says beside
            recipe |= {
                "sampling": {"order": "stored", "last_batch": "spread"},
                "normalise": "plain",
                "initial": "common",
            }
        if method == "scaffold":
            recipe |= {"tasks": {"arrival": "static", "memory": 5}}
        config = four.prepare(recipe, models, allow={"retention": method == "fedin"})  # features of a round
        nodes = four.all_nodes()
        coordinator = four.coordinate()
        assert coordinator.wait() == 0, four.everything()
        assert [node.wait() for node in nodes] == [0] * 4, four.everything()
        assert_equal_to_local(four, config)


def test_early_stopping_is_the_same_between_parties(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant", "bee"), secure=False) as two:
        stop = {"patience": 1, "min_delta": 1.0}  # no score rises by so much
        config = two.prepare({"method": "fedavg", "rounds": 9, "eval_every": 1, "stop": stop}, ["mlp"])
        nodes = two.all_nodes()
        assert two.coordinate().wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0] * 2, two.everything()
        assert two.rounds_done() == 1 + 3
        assert_equal_to_local(two, config)
