"""What a hostile coordinator gets from nodes that run any of the methods: see :mod:`hostile_coordinator`."""

from __future__ import annotations

from pathlib import Path

import pytest
from every_method import BETWEEN_PARTIES
from hostile_coordinator import attack


@pytest.mark.parametrize("name", BETWEEN_PARTIES)
def test_no_heading_of_any_handler_spares_what_leaves_the_vendors_noise(name: str, tmp_path: Path) -> None:
    found = attack(name, tmp_path)
    assert not found.faults, "\n".join(found.faults)
    assert found.tries > 15
