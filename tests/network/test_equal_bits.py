"""A run between separate processes over mutual TLS gives the bits of the local engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from parties import assert_equal_to_local, parties

MODELS = {
    "ifl": ["mlp", "logistic"],
    "fedavg": ["logistic"],
    "scaffold": ["logistic"],
    "splitfed-v1": ["logistic"],
}


@pytest.mark.parametrize("method", MODELS)
def test_a_network_gives_the_bits_of_the_local_engine(method: str, tmp_path: Path) -> None:
    with parties(tmp_path) as four:
        config = four.prepare({"method": method, "settings": {"batch_size": 16}}, MODELS[method])
        nodes = four.all_nodes()
        coordinator = four.coordinate()
        assert coordinator.wait() == 0, four.everything()
        assert [node.wait(20) for node in nodes] == [0] * 4, four.everything()
        assert_equal_to_local(four, config)
