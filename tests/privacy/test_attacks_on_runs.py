"""examples/attacks.py on tiny runs, and what a result lets one draw."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from worlds import Recorder, same_bits

import interfuse
from interfuse.data import load
from interfuse.engines import InProcess
from interfuse.errors import ConfigError, ModelError
from interfuse.families.priors import Prior
from interfuse.federation import Federation
from interfuse.references import load_file
from interfuse.result import Result
from interfuse.runs.loop import assemble

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "attacks.py"

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, with few rows."""
    found = load_file(EXAMPLE)
    monkeypatch.setattr(found, "MOST", 40)
    monkeypatch.setattr(found, "SEARCHED", 20)
    monkeypatch.setattr(found, "DRAWN", 5)
    monkeypatch.setattr(found, "STEPS", 3)
    return found


def run(path: Path, method: str, data: str | list[str] = "digits", **settings: Any) -> Result:
    return interfuse.run(
        method, data=data, partition=interfuse.Dirichlet(0.5), models=["mlp-linear"], fusion_width=8, clients=2,
        rounds=1, beside=[], settings={"local_steps": 1} | settings, out=path, progress=interfuse.Silent(),
    )  # fmt: skip


@pytest.mark.parametrize(("smallest", "copied"), [(1, True), (10, False)])
def test_centroids_of_one_image_are_found_to_be_that_image(
    script: ModuleType, tmp_path: Path, smallest: int, copied: bool
) -> None:
    result = run(tmp_path / "run", "ifl-bank-centroids", centroids=20, smallest_cluster=smallest)
    script.main(tmp_path / "run", 10)
    found = json.loads((tmp_path / "run/attacks/attacks.json").read_text())
    assert (found["verbatim training rows, share"]["value"] > 0) is copied
    drawn, y = result.draw(0, range(10), 10)
    rows = {sample.numpy().tobytes() for sample in load("digits").drawable}
    once, _ = script.distinct((drawn, y))
    by_hand = sum(sample.numpy().tobytes() in rows for sample in once) / len(once)
    assert found["verbatim training rows, share"]["value"] == pytest.approx(by_hand)
    assert found["verbatim training rows, share"]["rows"] == len(once) < len(drawn)


def test_decoders_are_attacked_as_they_were_sent(script: ModuleType, tmp_path: Path) -> None:
    """Those that are trained again fill the very bank that the run had."""
    result = run(tmp_path / "run", "ifl-bank", decoder_steps=3, bank_rows=4)
    script.main(tmp_path / "run", 40)
    found = json.loads((tmp_path / "run/attacks/attacks.json").read_text())
    assert "membership by search in each client's decoder, AUC" in found
    assert "membership by 5 draws of each client's decoder, AUC" in found
    setup = assemble(result.config)
    recorder = Recorder(InProcess(setup))
    Federation(setup, recorder).start()
    sent = {client: reply for request, client, reply in recorder.up if request.handler == "train_decoder"}
    again = script.sent_decoders(setup)
    assert list(again) == list(sent) == [0, 1]
    assert all(same_bits(again[client].decoder, reply.decoder) for client, reply in sent.items())


@pytest.mark.parametrize("share_vtc", [True, False])
def test_generators_are_attacked_where_they_travel(script: ModuleType, tmp_path: Path, share_vtc: bool) -> None:
    run(tmp_path / "run", "fedvtc", share_vtc=share_vtc, channels=4, generator_steps=2, latents=0)
    script.main(tmp_path / "run", 2)
    found = json.loads((tmp_path / "run/attacks/attacks.json").read_text())
    assert all(0 <= one["value"] <= 1 for name, one in found.items() if name.endswith("AUC"))
    assert ("membership by search, AUC" in found) is share_vtc
    assert any(name.startswith("client 1: ") for name in found) is not share_vtc
    assert "membership by class means, with client 0's extractor, AUC" in found
    text = (tmp_path / "run/attacks/attacks.md").read_text()
    assert text.count("\n| ") == 2 + len(found)


def test_values_without_bounds_have_the_span_of_the_data_and_several_data_sets_are_refused(
    script: ModuleType, tmp_path: Path
) -> None:
    """Digits from 0 to 1 in place of 0 to 255."""
    digits = load("digits")
    x, x_test = (np.asarray(part, np.float32) / 255 for part in (digits.drawable, digits.x_test))
    np.savez(tmp_path / "unit.npz", x_train=x, y_train=digits.y_train, x_test=x_test, y_test=digits.y_test)
    unit = str(tmp_path / "unit.npz")
    settings = {"channels": 4, "generator_steps": 2, "latents": 0}
    run(tmp_path / "run", "fedvtc", data=unit, **settings)
    found = script.attack(tmp_path / "run", 2)
    psnr = {name: one.value for name, one in found.items() if name.startswith("PSNR")}
    assert len(psnr) == 4
    assert all(abs(value) < 30 for value in psnr.values()), "255 in the place of 1 is 48 dB more"
    run(tmp_path / "both", "fedvtc", data=["digits", unit], **settings)
    with pytest.raises(ConfigError, match="clients have several data sets"):
        script.attack(tmp_path / "both", 2)


def test_a_result_draws_and_says_what_it_was_given(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "fedvtc", channels=4, generator_steps=2, latents=0)
    drawn, y = result.draw(1, [3, 5], 4)
    assert (drawn.dtype, tuple(drawn.shape)) == (torch.uint8, (8, 1, 8, 8))
    assert y.tolist() == [3] * 4 + [5] * 4
    again, _ = result.draw(1, [3, 5], 4)
    assert torch.equal(drawn, again)
    prior = result.deployed(0)
    assert isinstance(prior, Prior)
    assert prior.y.tolist() == list(range(10))
    with pytest.raises(ModelError, match="no class 10: classes are 0 to 9"):
        result.draw(0, [10], 1)
    with pytest.raises(ModelError, match="no client 2"):
        result.draw(2, [0], 1)
    local = run(tmp_path / "local", "local")
    assert local.deployed(0) is None
    assert len(local.draw(0, [1], 2)[0]) == 0


def test_members_and_others_have_as_many_rows_of_each_class(script: ModuleType) -> None:
    train = torch.arange(100.0)[:, None], torch.tensor([0] * 90 + [1] * 9 + [2])
    test = torch.arange(100.0, 160.0)[:, None], torch.tensor([0] * 30 + [1] * 20 + [3] * 10)
    (members, y), (others, of) = script.alike(train, test, 36)
    assert y.bincount().tolist() == of.bincount().tolist() == [12, 9]
    assert len(members.unique()) == len(others.unique()) == 21
    assert members.max() < 100 <= others.min()
    assert (train[1][members.flatten().long()] == y).all()
