"""examples/fedin_similarity.py on two runs: what it writes, and that equal models are alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import interfuse
from interfuse.references import load_file

pytestmark = pytest.mark.usefixtures("no_report")

EXAMPLE = Path(__file__).parents[2] / "examples" / "fedin_similarity.py"


def test_models_of_runs_are_compared_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depths = ["resnet10-narrow@0.25", "resnet14-narrow@0.25"]
    for entry, models in (("mixed", depths), ("equal", [depths[0], depths[0]]), ("single", depths[:1])):
        interfuse.run(
            "fedavg", models=models, clients=2, rounds=1, beside=(), settings={"local_steps": 1, "batch_size": 8},
            out=tmp_path / "runs" / entry / "seed-0", progress=interfuse.Silent(),
        )  # fmt: skip
    script = load_file(EXAMPLE)
    script.main(tmp_path, [], rows=40)
    found = json.loads((tmp_path / "similarity" / "similarity.json").read_text())
    assert list(found) == ["equal", "mixed"]
    said = capsys.readouterr().out
    assert "single: one architecture, nothing to compare" in said
    assert "equal: stem 1.00, layer1 1.00" in said
    assert found["mixed"]["models"] == depths
    assert list(found["mixed"]["similarity"]) == ["stem", "layer1", "layer2", "layer3", "layer4", "pool", "fc"]
    assert all(script.between_models(m) == pytest.approx(1, abs=1e-5) for m in found["equal"]["similarity"].values())
    for picture in ("equal", "mixed", "curves"):
        assert (tmp_path / "similarity" / f"{picture}.png").stat().st_size > 1000
    assert script.between_models(found["mixed"]["similarity"]["layer1"]) == pytest.approx(1, abs=1e-5)  # averaged
    assert script.between_models(found["mixed"]["similarity"]["fc"]) < 0.999
