"""Dockerfile and compose.yaml as far as they can be checked without Docker: what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from interfuse.cli import app

ROOT = Path(__file__).parents[2]


def test_what_the_image_copies_exists() -> None:
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            *sources, _ = line.split()[1:]
            assert all((ROOT / source).exists() for source in sources), line


def test_the_commands_of_the_containers_are_those_of_interfuse() -> None:
    text = (ROOT / "compose.yaml").read_text()
    commands = re.findall(r"command: (.+?)(?: \})?$", text, re.M) + re.findall(r"interfuse (keys .+)", text)
    commands = [words.split() for words in commands if not words.startswith("-") and words != ">-"]
    known = get_command(app).commands  # type: ignore[attr-defined]
    assert {words[0] for words in commands} >= {"coordinate", "node", "keys"}
    for name, *rest in [words for words in commands if words]:
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options
    for file in re.findall(r"/federation/([\w.]+)", text):
        assert (ROOT / "examples" / "federation" / file).exists()
