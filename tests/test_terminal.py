"""Signals, a standard output that is full, terminals that know ASCII alone: no traceback, and the right word."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import pytest

from interfuse.cli.app import _resumable, app
from interfuse.cli.terminal import INTERRUPTED, TERMINATED, carried_out
from interfuse.engines.processes import fork

Command = Callable[[], None]


def _child(command: Command, out: Path, encoding: str, full: bool) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open("/dev/full" if full else out, "ab", buffering=0) as file, open(out, "ab", buffering=0) as errors:
        os.dup2(file.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.BufferedWriter(io.FileIO(fd, "w")), encoding=encoding) for fd in (1, 2)
    )
    code = carried_out(command)
    sys.stderr.flush()
    os._exit(code)


def run(
    command: Command, folder: Path, *signals: int, encoding: str = "utf-8", full: bool = False
) -> tuple[int | None, str]:
    """Exit code and all output of a command in a process of its own, which is sent signals once it says `ready`."""
    out = folder / "out"
    out.touch()
    process = fork(_child, command, out, encoding, full, name="command")
    for one in signals:
        while process.is_alive() and "ready" not in out.read_text(errors="replace"):
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, one)
        time.sleep(0.05)
    process.join(60)
    return process.exitcode, out.read_text(errors="replace")


def _begun() -> None:
    print("ready", flush=True)
    time.sleep(60)


def _cleaning_up() -> None:
    try:
        _begun()
    finally:
        time.sleep(0.3)
        print("cleaned up", flush=True)


def _run_of(folder: Path) -> None:
    (folder / "config.toml").touch()
    with _resumable(folder):
        _begun()


def test_two_quick_interruptions_are_one(tmp_path: Path) -> None:
    code, said = run(_cleaning_up, tmp_path, signal.SIGINT, signal.SIGINT, signal.SIGINT)
    assert code == INTERRUPTED
    assert "cleaned up" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_both_signals_say_how_a_run_goes_on(number: int, wanted: int, tmp_path: Path) -> None:
    code, said = run(partial(_as_a_command, tmp_path), tmp_path, number)
    assert code == wanted
    assert f"interrupted; to go on: interfuse resume {tmp_path}" in said
    assert "Traceback" not in said


def _as_a_command(folder: Path) -> None:
    try:
        _run_of(folder)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)


@pytest.mark.parametrize("words", [["methods"], ["models"], ["datasets"], ["--help"], ["methods", "ifl"]])
def test_every_listing_on_a_full_disk_and_on_an_ascii_terminal(words: list[str], tmp_path: Path) -> None:
    code, said = run(partial(app, words), tmp_path, full=True)
    assert (code, said.count("error: cannot write to the standard output: No space left on device")) == (2, 1), said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    (tmp_path / "ascii").mkdir()
    code, said = run(partial(app, words), tmp_path / "ascii", encoding="ascii")
    assert code == 0, said
    assert said.isascii()
    assert len(said) > 100


def test_letters_that_ascii_lacks_are_written_out(tmp_path: Path) -> None:
    code, said = run(lambda: print("95.0 ± 0.5 — client’s … × ☃"), tmp_path, encoding="ascii")
    assert (code, said) == (0, "95.0 +- 0.5 - client's ... x ?\n")


def _on_another_full_disk() -> None:
    print("as it should be")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_not_taken_for_the_output(tmp_path: Path) -> None:
    """Writing to a file that is open raises an error without a name."""
    code, said = run(_on_another_full_disk, tmp_path)
    assert code not in (0, None)
    assert "standard output" not in said
