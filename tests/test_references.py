from __future__ import annotations

import sys
from pathlib import Path

import pytest

from interfuse.errors import ConfigError
from interfuse.references import is_reference, load_reference, whole_path

CODE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True)
class Thing:
    size: int = 3

    def grow(self) -> int:
        return self.size + 1

value = Thing()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_from_an_installed_package() -> None:
    assert load_reference("json:dumps") is __import__("json").dumps
    assert load_reference("collections:OrderedDict.fromkeys") is not None


def test_from_a_file_and_always_the_same_module(file: Path) -> None:
    thing = load_reference(f"{file}:Thing")
    assert isinstance(thing, type)
    assert thing().grow() == 4  # type: ignore[attr-defined]
    assert isinstance(load_reference(f"{file}:value"), thing)


def test_files_of_one_name_in_two_folders_are_two_modules(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text("value = 7")
    assert load_reference(f"{other}:value") == 7
    assert load_reference(f"{file}:value") != 7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("json", "no reference to code"),
        (":dumps", "no reference to code"),
        ("json:", "no reference to code"),
        ("no_such_package.module:x", "cannot import 'no_such_package.module'"),
        ("json:JSONDecodr", "did you mean 'JSONDecoder'"),
        ("nowhere/mine.py:x", "there is no file"),
        ("a/b:x", "neither the name of a module nor a path"),
    ],
)
def test_texts_that_name_nothing(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_reference(text)


def test_a_file_that_cannot_be_imported_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "broken_file.py"
    for text in ("import no_such_package", "def ("):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"cannot import .*broken_file\.py"):
            load_reference(f"{path}:x")
    assert not [name for name in sys.modules if name.startswith("broken_file")]
    path.write_text("x = 1")
    assert load_reference(f"{path}:x") == 1


def test_is_reference() -> None:
    assert is_reference("package.module:x")
    assert not is_reference("cnn")


def test_a_folder_of_a_transformers_model_gets_its_whole_path(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    assert whole_path("hf:small?answers=1,2", tmp_path) == f"hf:{tmp_path / 'small'}?answers=1,2"
    for name in ("hf:owner/model?revision=abc", "cnn", "mine:small", "small"):
        assert whole_path(name, tmp_path) == name
