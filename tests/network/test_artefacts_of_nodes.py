"""What nodes trained, as artefacts: from their own folders alone, and as the run's report has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from parties import parties

from interfuse import artefacts
from interfuse.cli.serving import export
from interfuse.data import load
from interfuse.engines.parties.leaving import trained
from interfuse.engines.parties.vendor import Vendor, read_vendor
from interfuse.errors import ArtefactError, RunError


def test_blocks_of_nodes_compose_as_in_the_report(tmp_path: Path) -> None:
    with parties(tmp_path, secure=False) as made:
        made.prepare({"method": "ifl", "settings": {"local_steps": 2, "batch_size": 4}}, ["mlp", "cnn"])
        nodes, coordinator = made.all_nodes(), made.coordinate()
        assert coordinator.wait() == 0, made.everything()
        assert [node.wait() for node in nodes] == [0] * len(nodes), made.everything()
        names = made.names
        told = json.loads((made.run / "summary.json").read_text())["composition_matrix"]
        shutil.rmtree(made.run)  # what is the coordinator's
    for name in names:
        export(tmp_path / name / "vendor.toml", tmp_path / "artefacts", about="a trial")
    data = load(str(tmp_path / f"{names[0]}.npz"))
    for name in names:
        shutil.rmtree(tmp_path / name)
        (tmp_path / f"{name}.npz").unlink()
    at = {
        (name, part): artefacts.load(tmp_path / "artefacts" / f"{name}-{part}")
        for name in names
        for part in ("base", "modular")
    }
    for i, base in enumerate(names):
        for k, modular in enumerate(names):
            scores = artefacts.composed(at[base, "base"], [at[modular, "modular"]], data.x_test)
            right = (scores.argmax(1) == data.y_test).double().mean()
            assert float(right) == pytest.approx(told[i][k], abs=1e-12)
    found = at[names[1], "modular"].manifest
    assert (found.owner.name, found.owner.about, found.origin.client) == (names[1], "a trial", 1)
    assert found.fusion is not None
    assert (found.fusion.round, found.fusion.method, len(found.fusion.run)) == (3, "ifl", 16)


def vendor_of(folder: Path, method: str = "ifl", rounds: int = 2) -> Vendor:
    """A vendor whose node took part in a run with itself and another."""
    with parties(folder, secure=False) as made:
        settings = {"local_steps": 1, "batch_size": 4}
        made.prepare({"method": method, "rounds": rounds, "settings": settings}, ["mlp"])
        nodes, coordinator = made.all_nodes(), made.coordinate()
        assert coordinator.wait() == 0, made.everything()
        assert [node.wait() for node in nodes] == [0] * len(nodes), made.everything()
        return read_vendor(folder / made.names[0] / "vendor.toml")


def test_what_a_node_does_not_have_is_said(tmp_path: Path) -> None:
    vendor = vendor_of(tmp_path)
    assert trained(vendor).round == 2
    (run,) = [path.parent for path in vendor.state_folder.glob("*/run.json")]
    assert trained(vendor, run.name, 2).run == run.name
    with pytest.raises(RunError, match=r"has no state after round 7, but after .*2"):
        trained(vendor, round=7)
    with pytest.raises(RunError, match="has no run 'another'"):
        trained(vendor, "another")
    shutil.copytree(run, run.with_name("twin"))
    with pytest.raises(RunError, match="has several runs: .*twin"):
        trained(vendor)
    shutil.rmtree(run.with_name("twin"))
    (state,) = [file for file in run.glob("*.safetensors") if file.stem in (run / "states.json").read_text()][:1]
    whole = state.read_bytes()
    for damaged in (whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b""):
        state.write_bytes(damaged)
        with pytest.raises(RunError):
            trained(vendor, round=json.loads((run / "states.json").read_text())["rounds"][state.stem])
    state.write_bytes(whole)
    for file in ("states.json", "run.json"):
        content = (run / file).read_bytes()
        (run / file).write_text("{")
        with pytest.raises(RunError, match=f"{file} cannot be read"):
            trained(vendor)
        (run / file).write_bytes(content)
    shutil.rmtree(run)
    with pytest.raises(RunError, match="took part in none"):
        trained(vendor)


def test_what_the_coordinator_hands_out_is_not_with_nodes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="with fedavg clients answer with what the coordinator hands out"):
        trained(vendor_of(tmp_path, "fedavg", rounds=1))


def test_no_block_goes_with_one_of_another_run(tmp_path: Path) -> None:
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        vendor = vendor_of(tmp_path / place, rounds=1)
        for part in ("base", "modular"):
            made = artefacts.make(trained(vendor), part, artefacts.Owner())
            artefacts.write(tmp_path / f"{place}-{part}", *made)
    base, modular = artefacts.load(tmp_path / "one-base"), artefacts.load(tmp_path / "other-modular")
    (form,) = base.manifest.takes.values()
    with pytest.raises(ArtefactError, match="do not fit: run is"):
        artefacts.composed(base, [modular], torch.zeros(1, *form.shape))
