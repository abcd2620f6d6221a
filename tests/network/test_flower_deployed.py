"""One run on Flower's own servers: a SuperLink, two SuperNodes and their processes, with the bits of a local run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "flower_bits.py"


@pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="extra `flower` is not installed")
def test_a_round_on_a_superlink_has_the_bits_of_a_local_one() -> None:
    environment = os.environ | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}  # in place of a second
    command = [sys.executable, str(PROGRAM), "fedavg", "--quick"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert not ran.returncode, ran.stdout + ran.stderr
    assert "equal=True, ledger=True" in ran.stdout
