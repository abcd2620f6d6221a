"""Every command and every table that a document, a recipe or an example shows is one that this version takes."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer

from interfuse import comparison, recipes
from interfuse.cli import comparing
from interfuse.coordination import dry_run
from interfuse.engines.parties.vendor import Vendor, read_vendor
from interfuse.runs import parse_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),  # which speaks of other versions
    *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md"),
    *(ROOT / "benchmarks").rglob("*.md"),
]  # fmt: skip
SOURCES = [
    *DOCUMENTS, *(ROOT / "recipes").glob("*.toml"), *(ROOT / "examples").glob("*.py"), ROOT / "compose.yaml",
    *(ROOT / "scripts").glob("*.sh"),
]  # fmt: skip
commands = importlib.import_module("interfuse.cli.app")  # the package has the Typer of that name
TOP = typer.main.get_command(commands.app)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def shell(path: Path) -> Iterator[str]:
    """Commands of interfuse in a file: lines of shell, spans of code with an argument, first lines of comments."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)) if path.suffix == ".md" else text
    yield from re.findall(r"^[# ]*(interfuse [a-z].*)$", found, re.MULTILINE)
    yield from re.findall(r"`(interfuse [a-z]+ [^`]+)`", text)
    yield from (f"interfuse {line}" for line in re.findall(r"command: ((?:node|coordinate) [^}\n]+)", text))


COMMANDS = {
    f"{path.relative_to(ROOT)}: {line}": line
    for path in SOURCES
    for line in shell(path)
    if "$" not in line  # of a script: it runs as a whole
}


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The name of a command and its values, as the command line reads them; nothing is carried out."""
    line = re.sub(r"\bN\b", "1", line.partition(" (or ")[0].rstrip(" }."))
    name, *words = shlex.split(line.replace(" ... ", " ifl "), comments=True)[1:]
    command = TOP.commands[name]  # type: ignore[attr-defined]
    if words and all(word.startswith("--") for word in words):  # a mention of options
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(words) <= known, f"{name}: {words}"
        return name, {"what": "RECIPE"}
    context = command.make_context(name, words, parent=click.Context(TOP))
    return name, context.params


def test_commands_were_found_in_every_kind_of_file() -> None:
    places = {name.partition(":")[0] for name in COMMANDS}
    needed = (
        "README.md",
        "CONTRIBUTING.md",
        "docs/vendors.md",
        "docs/operators.md",
        "recipes/demo.toml",
        "compose.yaml",
    )
    assert {*needed, "examples/fedprox.py"} <= places
    assert len(COMMANDS) > 60
    assert {parsed(line)[0] for line in COMMANDS.values()} > {"run", "compare", "node", "coordinate", "keys", "predict"}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_a_command_of_a_document_is_taken(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where work would begin: options, methods, recipes, settings and their values."""
    name, values = parsed(line)
    monkeypatch.chdir(ROOT if "examples/" in line else tmp_path)
    for file in ("mine.py", "recipe.toml", "config.toml"):
        if file in line:
            contributing = blocks(ROOT / "CONTRIBUTING.md", "python")
            (tmp_path / file).write_text("\n".join(contributing) if file == "mine.py" else 'method = "ifl"\n')
    begun: list[object] = []

    class BegunError(Exception):
        pass

    def begin(*given: object, **named: object) -> None:
        begun.append(given)
        raise BegunError

    monkeypatch.setattr(commands.api, "carry_out", begin)
    monkeypatch.setattr(commands.api, "run_seed", begin)
    monkeypatch.setattr(comparing.comparison, "resolve", begin)
    if name in ("run", "compare") and values["what"] not in ("RECIPE", ["RECIPE"], ("RECIPE",)):
        with pytest.raises(BegunError):
            TOP.commands[name].callback(**values)  # type: ignore[attr-defined]
        assert begun


def test_targets_of_make_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"^make ([a-z]+)|`make ([a-z]+)", text, re.MULTILINE):
            assert set(filter(None, target)) <= targets, path


def test_nothing_is_installed_under_a_name_that_an_index_may_not_have() -> None:
    files = [*SOURCES, *(ROOT / "src").rglob("*.py"), ROOT / "Dockerfile"]
    for path in files:
        for words in re.findall(r"pip install ([^`\n]+)", path.read_text(encoding="utf-8")):
            assert "interfuse" not in re.split("#|&&", words)[0], f"{path}: pip install {words}"


TABLES = {f"{path.name} {n}": text for path in DOCUMENTS for n, text in enumerate(blocks(path, "toml"))}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_a_document_is_taken(name: str, tmp_path: Path) -> None:
    values = tomllib.loads(TABLES[name])
    if values.keys() & {"comparison", "entry"}:
        comparison.parse(values, "shown", name, tmp_path)
    elif values.keys() & {"model", "allow", "limits"}:
        Vendor.model_validate(values | {"folder": tmp_path})
    else:
        parse_config(values, name)


def test_the_recipes_that_are_named_exist() -> None:
    for name in COMMANDS.values():
        for recipe in re.findall(r"interfuse compare ((?:ifl|fedin)-[a-z0-9-]+)", name):
            assert recipes.find(recipe) is not None or recipe in commands.listings.method_names(), recipe


def test_the_tests_that_hold_the_promises_exist() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 15
    for file, function in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{file}::{function}"


MODEL = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)
"""


def test_the_file_of_the_page_for_vendors_passes_its_own_trial(tmp_path: Path) -> None:
    """Word for word, with a model and images as it names them; and with every line that it offers as a comment."""
    from PIL import Image

    (tmp_path / "model.py").write_text(MODEL)
    noise = np.random.default_rng(0)
    for animal in ("cat", "dog", "owl"):
        (tmp_path / "images" / animal).mkdir(parents=True)
        for number in range(8):
            pixels = noise.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / animal / f"{number}.png")
    (text,) = blocks(ROOT / "docs" / "vendors.md", "toml")
    (tmp_path / "vendor.toml").write_text(text)
    vendor = read_vendor(tmp_path / "vendor.toml")
    files = dry_run(vendor, parse_config({"method": vendor.allow.methods[0]}), tmp_path / "out", lambda text: None)
    assert [file.name for file in files][:2] == ["000-hello.json", "001-accept.json"]
    assert not (tmp_path / "state").exists()
    whole = re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert whole.count("\n# ") == 0
    Vendor.model_validate(tomllib.loads(whole) | {"folder": tmp_path})
