"""A smoke run of benchmarks/serving_fuzz.py: hostile requests are answered in words of the service's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from interfuse.serve import Service, from_folders, running

FILE = Path(__file__).parents[2] / "benchmarks" / "serving_fuzz.py"


def test_hostile_requests_are_answered_by_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("serving_fuzz", FILE)
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, fuzz)
    spec.loader.exec_module(fuzz)
    base, _ = fuzz.blocks(tmp_path)
    found = fuzz.Found()
    with running(Service(from_folders([tmp_path / "base", tmp_path / "modular"]))) as address:
        fuzz.attack(address, fuzz.Mutations(7, base.manifest.fusion.key), 400, found)
    assert found.wrong == []
    assert sum(found.statuses.values()) + found.closed == 400
    assert len(found.codes) > 8
