"""What a method says of its clients reaches whoever follows the run, its summary, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import GIVEN, config_of

from interfuse.report import diagnose
from interfuse.runs import Silent, execute
from interfuse.runs.loop import resume

ALONE = ["logistic", "mlp"]


class Listener(Silent):
    """Remembers what is noted."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


@pytest.mark.parametrize(
    ("method", "settings", "apart"),
    [
        ("fedavg", {}, "a tensor in common"),
        ("fedavg", {"aggregation": "group"}, "one architecture"),
        ("scaffold", {}, "a tensor in common"),
        ("splitfed-v1", {}, "a tensor in common"),
        ("splitfed-local", {}, "a tensor in common"),
    ],
)
def test_clients_without_anything_in_common(method: str, settings: Any, apart: str, tmp_path: Path) -> None:
    listener = Listener()
    config = config_of(method, models=ALONE, clients=2, rounds=1, settings=settings)
    summary = execute(config, tmp_path / "run", given=GIVEN, progress=listener)
    (heard,) = listener.heard
    assert f"No two clients have {apart}" in heard
    assert "Try: Give clients one architecture" in heard
    assert summary.notice is not None
    assert f"{summary.notice.text} Try: {summary.notice.remedy}" == heard
    first = diagnose(summary, [])[0]
    assert (first.text, first.remedy) == (summary.notice.text, summary.notice.remedy)
    resume(tmp_path / "run", given=GIVEN, progress=listener)
    assert listener.heard == [heard]


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "splitfed-v1", "ifl", "local"])
def test_nothing_is_said_where_there_is_nothing_to_say(method: str, tmp_path: Path) -> None:
    models = ALONE if method in ("ifl", "local") else ["logistic"]
    listener = Listener()
    config = config_of(method, models=models, clients=2, rounds=1)
    summary = execute(config, tmp_path / "run", given=GIVEN, progress=listener)
    assert listener.heard == []
    assert summary.notice is None
