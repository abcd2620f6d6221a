"""An artefact is read as it was written, or refused with what is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch
from small_artefacts import written
from torch import nn

from interfuse.artefacts import TensorForm, composed, load, mean_of
from interfuse.errors import ArtefactError, ConfigError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = written(tmp_path / "base")
    torch.manual_seed(0)  # as `written` made it
    expected, x = nn.Linear(3, 4), torch.randn(1500, 3)
    torch.testing.assert_close(found(x), expected(x).detach())
    assert found.manifest.owner.name == "ant"
    with pytest.raises(ConfigError, match="is there already"):
        written(tmp_path / "base")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}  # nothing half is left


def test_every_byte_counts(tmp_path: Path) -> None:
    """One bit of each part of each file; digests do not cover themselves, but what they say."""
    folder = written(tmp_path / "base").path
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArtefactError, match=r"base"):
                load(folder)
        for cut in (b"", whole[:-1], whole + b"\n"):
            file.write_bytes(cut)
            with pytest.raises(ArtefactError):
                load(folder)
        file.write_bytes(whole)
    load(folder)


def test_no_file_is_missing_or_more(tmp_path: Path) -> None:
    folder = written(tmp_path / "base").path
    (folder / "more.py").write_text("raise SystemExit")
    with pytest.raises(ArtefactError, match=r"other files than SHA256SUMS says: more\.py"):
        load(folder)
    (folder / "more.py").unlink()
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(ArtefactError):
            load(folder)
        file.mkdir()
        with pytest.raises(ArtefactError):
            load(folder)
        file.rmdir()
        file.write_bytes(whole)
    with pytest.raises(ArtefactError, match="is no artefact"):
        load(tmp_path / "nothing")
    with pytest.raises(ArtefactError, match="is no artefact"):
        load(folder / "manifest.json")


def resigned(folder: Path, change: Callable[[dict[str, object]], object], file: str = "manifest.json") -> Path:
    """The same artefact with another manifest and a fitting digest."""
    plain = json.loads((folder / file).read_text())
    change(plain)
    (folder / file).write_text(json.dumps(plain))
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.update(code="import os"), "code"),
        (lambda m: m.pop("origin"), "origin"),
        (lambda m: m.update(part="all"), "part"),
        (lambda m: m["inputs"]["x"].update(shape=[0]), "shape"),
        (lambda m: m["inputs"]["x"].update(dtype="object"), "dtype"),
        (lambda m: m["inputs"].update(y=m["inputs"]["x"]), "other inputs"),
        (lambda m: m["fusion"].update(round=-1), "round"),
        (lambda m: m.update(inputs=None, fusion=None), "other inputs"),
    ],
)
def test_a_manifest_that_says_what_is_not_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], object], said: str
) -> None:
    folder = resigned(written(tmp_path / "base").path, change)
    with pytest.raises(ArtefactError, match=said):
        load(folder)


def test_an_artefact_ends(tmp_path: Path) -> None:
    folder = written(tmp_path / "base", expires=date(2999, 1, 1)).path
    load(folder, today=date(2998, 12, 31))
    with pytest.raises(ArtefactError, match="expired on 2999-01-01: ask ant for a newer one"):
        load(folder, today=date(2999, 1, 1))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 4), r"expected float32 \[batch, 3\], found float32 \[2, 4\]"),
        (torch.zeros(2, 3, dtype=torch.float64), "found float64"),
        (torch.zeros(0, 3), "found"),
        (torch.zeros(()), "as many rows"),
        (torch.tensor([[1.0, float("nan"), 0]]), "not finite"),
        (torch.tensor([[1.0, float("inf"), 0]]), "not finite"),
        ({"y": torch.zeros(2, 3)}, "expected the inputs x, found y"),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(3, 3)}, "expected the inputs x"),
    ],
)
def test_samples_of_another_kind_are_refused(tmp_path: Path, x: torch.Tensor, said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        written(tmp_path / "base")(x)


def test_blocks_compose_where_their_fusion_layers_are_one(tmp_path: Path) -> None:
    base, modular = written(tmp_path / "base"), written(tmp_path / "modular", "modular")
    x = torch.randn(5, 3)
    assert torch.equal(composed(base, [modular], x), modular.program(base.program(x)))
    with pytest.raises(ArtefactError, match="is a modular block, where a base block is needed"):
        composed(modular, [modular], x)
    with pytest.raises(ArtefactError, match="no modular block is named"):
        composed(base, [], x)
    narrow = {"x": TensorForm(dtype="float32", shape=(5,))}
    for number, (field, value) in enumerate({"run": "q", "method": "fedavg", "round": 4, "features": narrow}.items()):
        other = written(tmp_path / str(number), "base", **{field: value})
        with pytest.raises(ArtefactError, match=rf"{number} and .*modular: the blocks do not fit: {field} is"):
            composed(other, [modular], x)


def test_several_modular_blocks_answer_together(tmp_path: Path) -> None:
    base = written(tmp_path / "base")
    blocks = [written(tmp_path / f"m{seed}", "modular", seed) for seed in (1, 2, 3)]
    x = torch.randn(4, 3)
    single = torch.stack([composed(base, [block], x) for block in blocks])
    torch.testing.assert_close(composed(base, blocks, x), single.mean(0))
    torch.testing.assert_close(composed(base, blocks, x, "probabilities"), single.softmax(2).mean(0))
    other = written(tmp_path / "other", "modular", classes=("b", "a"))
    with pytest.raises(ArtefactError, match="number classes otherwise"):
        mean_of([blocks[0], other], torch.zeros(1, 4))
