"""examples/fedin_memory.py on the quick try of Table 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from interfuse.references import load_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "fedin_memory.py"


def test_memory_by_method(capsys: pytest.CaptureFixture[str]) -> None:
    script = load_file(EXAMPLE)
    found = dict(script.main("fedin-table2", "smoke"))
    assert list(found) == ["fedavg", "scaffold", "moon", "heterofl", "fedrolex", "fedin"]
    avg, scaffold, moon, fedin = (found[name] for name in ("fedavg", "scaffold", "moon", "fedin"))
    parameters = avg.received - avg.kept  # the message is the model without its statistics; these stay with clients
    assert avg.kept < 0.2 * avg.model
    assert scaffold.received == pytest.approx(2 * avg.received, rel=0.01)
    assert scaffold.kept - avg.kept == pytest.approx(avg.received, rel=0.02)
    assert moon.kept - avg.kept == pytest.approx(avg.model, rel=0.05)
    assert fedin.kept == avg.kept
    assert fedin.received > avg.received
    assert avg.training > 2 * parameters  # gradients, and both moments of Adam
    assert all(each.peak > avg.peak for each in (scaffold, moon, fedin))
    assert capsys.readouterr().out.count("\n") == 2 + len(found)


def test_arguments() -> None:
    script = load_file(EXAMPLE)
    assert script.arguments([]) == ("fedin-table2", None)
    assert script.arguments(["fedin-table1", "--small"]) == ("fedin-table1", "small")
