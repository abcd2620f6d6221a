"""examples/fedin_statistics.py: new statistics change models that have running ones, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import interfuse
from interfuse.data import load
from interfuse.references import load_file

pytestmark = pytest.mark.usefixtures("no_report")

EXAMPLE = Path(__file__).parents[2] / "examples" / "fedin_statistics.py"


def test_what_new_statistics_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for entry, model in (("batch", "resnet10-narrow@0.25"), ("group", "resnet10-narrow-group@0.25")):
        interfuse.run(
            "fedavg", models=[model], clients=2, rounds=1, beside=(), settings={"local_steps": 5, "batch_size": 8},
            out=tmp_path / "runs" / entry / "seed-0", progress=interfuse.Silent(),
        )  # fmt: skip
    script = load_file(EXAMPLE)
    script.main(tmp_path, [], images=128)
    found = json.loads((tmp_path / "statistics" / "statistics.json").read_text())
    assert found["group"]["running"] == pytest.approx(found["group"]["anew"])
    assert found["batch"]["running"] != pytest.approx(found["batch"]["anew"])
    assert "group" in capsys.readouterr().out

    # the same by hand: the one batch of 128 goes through each layer in training mode, with a momentum of 1
    run = interfuse.load_run(tmp_path / "runs" / "batch" / "seed-0")
    data, model = load("digits"), run.model(0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    chosen = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))[:128]
    with torch.no_grad():
        model.train()
        model(data.normalise(data.x_train[chosen]))
        model.eval()
        right = model(data.normalise(data.x_test)).argmax(1) == data.y_test
    assert found["batch"]["anew"] == pytest.approx([float(right.float().mean())])
