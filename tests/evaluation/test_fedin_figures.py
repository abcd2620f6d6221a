"""examples/fedin_clusters.py and examples/reconstruction.py on tiny runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import interfuse
from interfuse.data import load
from interfuse.references import load_file

pytestmark = pytest.mark.usefixtures("no_report")

EXAMPLES = Path(__file__).parents[2] / "examples"
DEPTHS = ["resnet10-narrow@0.25", "resnet14-narrow@0.25", "resnet18-narrow@0.25"]


def trained(path: Path, models: list[str]) -> None:
    interfuse.run(
        "fedavg", models=models, clients=len(models), rounds=1, beside=(),
        settings={"local_steps": 1, "batch_size": 8}, out=path, progress=interfuse.Silent(),
    )  # fmt: skip


@pytest.mark.parametrize("installed", [False, True])
def test_clusters_of_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    elif importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    for entry, models in (("mixed", DEPTHS), ("equal", DEPTHS[:1] * 3), ("one", DEPTHS[:1])):
        trained(tmp_path / "runs" / entry / "seed-0", models)
    script = load_file(EXAMPLES / "fedin_clusters.py")
    script.main(tmp_path, ["mixed", "one"], label=1, most=12)
    found = json.loads((tmp_path / "clusters" / "clusters.json").read_text())
    assert list(found) == ["mixed"]  # one architecture has nothing to be compared with
    assert found["mixed"]["models"] == DEPTHS
    assert found["mixed"]["separation"] > 0
    assert (tmp_path / "clusters" / "mixed.png").stat().st_size > 1000


def test_separation_in_plain_numbers() -> None:
    script = load_file(EXAMPLES / "fedin_clusters.py")
    images = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert script.separation([images, images]) == 0
    assert script.separation([images, images + torch.tensor([10.0, 0.0])]) == pytest.approx(2)


def test_principal_components_keep_distances_in_a_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    script = load_file(EXAMPLES / "fedin_clusters.py")
    flat = torch.cat([torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 5)], 1)
    places, how = script.in_the_plane(flat)
    assert how == "principal components"
    torch.testing.assert_close(torch.pdist(places), torch.pdist(flat))


@pytest.mark.parametrize("models", [DEPTHS[:1], ["mlp"]], ids=["fedin", "ifl"])
def test_images_are_rebuilt_better_without_noise(tmp_path: Path, models: list[str]) -> None:
    trained(tmp_path, models)
    script = load_file(EXAMPLES / "reconstruction.py")
    script.main(tmp_path, steps=40, levels=(0.0, 3.0))
    found = json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())
    assert list(found) == ["0", "3"]
    assert found["0"]["steps"][-1] == 40
    assert found["0"]["decibels"][-1] > found["3"]["decibels"][-1]
    assert found["0"]["decoder"] > found["3"]["decoder"]
    model, dataset = interfuse.load_run(tmp_path).model(0).eval(), load("digits")
    right = model(dataset.normalise(dataset.x_test)).argmax(1) == dataset.y_test
    assert found["0"]["accuracy"] == pytest.approx(float(right.double().mean()))
    assert 0 <= found["3"]["accuracy"] <= 1
    for picture in ("curves", "images"):
        assert (tmp_path / "reconstruction" / f"{picture}.png").stat().st_size > 1000


def test_signal_to_noise_in_plain_numbers() -> None:
    script = load_file(EXAMPLES / "reconstruction.py")
    truth = torch.tensor([[0.0, 2.0]])
    assert script.signal_to_noise(truth + 0.2, truth) == pytest.approx(20, abs=1e-4)


def test_the_decoder_inverts_a_linear_map() -> None:
    script = load_file(EXAMPLES / "reconstruction.py")
    images = torch.randn(400, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    rotation, _ = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(1)))
    mixed = images.flatten(1) @ rotation + 5
    near = script.decoded(mixed[8:], images[8:], mixed[:8])
    torch.testing.assert_close(near, images[:8], rtol=0, atol=0.1)  # the penalty takes a hundredth off
