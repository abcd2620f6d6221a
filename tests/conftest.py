"""Lies here so that tests in every folder find the helper modules beside it; and what all of them share."""

from __future__ import annotations

import os
import shutil
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


MEMORY = Path("/dev/shm")
"""Where files are in memory, on Linux: thousands of files that are synced to a disk take their time."""


def pytest_configure(config: pytest.Config) -> None:
    if config.option.basetemp is None and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(autouse=True, scope="session")
def _waits_for_no_disk() -> Iterator[None]:
    """Nobody cuts the power here. What is synced, and when, is seen by tests that put something in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write no page and draw no plots, which takes ten times as long as a run of a test."""
    monkeypatch.setattr("interfuse.report.write", lambda folder: (folder / "report.html").touch())


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder with a short path, in memory where there is one."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)
