"""Code that a run names belongs to its configuration, by the digest of its file."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from interfuse.errors import RunError
from interfuse.references import source_digest, source_of
from interfuse.result import Result
from interfuse.runs import RunConfig, execute, parse_config, resume
from interfuse.runs.config import changed_in, changed_sources, sources_of

CODE = """
from dataclasses import dataclass
from torch import nn
import interfuse
from interfuse import IID, load
from interfuse.methods.fedavg import FedAvg

@dataclass(frozen=True)
class Mine(FedAvg):
    pass

def build(sample_shape, classes, width):
    return interfuse.pair(nn.Sequential(nn.Flatten(), nn.Linear(64, width)), nn.Linear(width, classes))

def rows():
    return load("digits")

def accuracy(scores, labels):
    return 0.5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "named.py").write_text(CODE)
    for name in ("method", "model", "data"):
        (tmp_path / f"{name}_file.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def config(folder: Path) -> RunConfig:
    return parse_config({
        "method": f"{folder / 'method_file.py'}:Mine", "models": [f"{folder / 'model_file.py'}:build", "mlp"],
        "data": f"{folder / 'data_file.py'}:rows", "partition": {"name": "named:IID"}, "clients": 2, "rounds": 1,
        "fusion_width": 4, "beside": [], "execution": {"workers": 1}, "settings": {"local_steps": 1},
    })  # fmt: skip


def test_names_of_code_and_of_other_things(folder: Path) -> None:
    assert source_of("named:IID") == "named"
    assert source_of("mine.py") == "mine.py"
    assert source_of(f"{folder}/x.py:Mine") == f"{folder}/x.py"
    for name in ("ifl", "cuda:1", "in-memory:Mine", "no_such_module:x", "rows.npz", "a b:c", "torch.nope:x"):
        assert source_of(name) is None
    assert source_digest("named") == source_digest(str(folder / "named.py")) != ""
    assert source_digest(str(folder / "gone.py")) == ""


def test_every_edited_file_is_refused_by_name_and_what_is_put_back_is_not(folder: Path) -> None:
    path = folder / "run"
    execute(config(folder), path)
    written = Result(path).config
    files = {str(folder / f"{name}_file.py") for name in ("method", "model", "data")}
    assert written.sources.keys() == files | {"named"}
    assert changed_in(path, config(folder)) == []
    for source in written.sources:
        file = folder / "named.py" if source == "named" else Path(source)
        file.write_text(f"{CODE}\n# edited\n")
        assert changed_sources(written) == [source]
        assert [source in line for line in changed_in(path, config(folder))] == [True]
        with pytest.raises(
            RunError, match=r"changed since .*run began.*put back what was there, or begin a new run"
        ) as e:
            resume(path, rounds=2)
        assert str(e.value).startswith(source)
        with pytest.warns(UserWarning, match="changed since .* began: its models are built by what is there now"):
            Result(path).model(0)
        file.write_text(CODE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Result(path).model(0)
    assert resume(path, rounds=2).rounds == 2


def test_a_folder_with_a_model_belongs_to_a_configuration_as_code_does(folder: Path) -> None:
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"12"), ("README.md", b"mine")):
        (folder / name).write_bytes(content)
    named = parse_config({"method": "fedit", "models": [f"hf:{folder}?answers=1,2"], "data": "digits", "beside": []})
    begun = named.model_copy(update={"sources": sources_of(named)})
    assert begun.sources.keys() == {str(folder)}
    (folder / "README.md").write_text("yours")
    assert changed_sources(begun) == []
    (folder / "model.safetensors").write_bytes(b"21")
    assert changed_sources(begun) == [str(folder)]
    assert source_of("hf:some/name?revision=main") is None
