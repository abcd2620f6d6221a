"""Lies here so that tests in every folder find the helper modules beside it; and what all of them share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# oracles are compared bit for bit with what runs on one thread
torch.set_num_threads(1)
# how long an example takes says nothing of the code on a machine that does other things too
hypothesis.settings.register_profile("steady", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("steady")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write no page and draw no plots, which takes ten times as long as a run of a test."""
    monkeypatch.setattr("interfuse.report.write", lambda folder: (folder / "report.html").touch())


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory where there is one: syncing thousands of files to a disk takes its time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
