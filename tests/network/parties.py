"""Federations of real processes on this machine: a coordinator, nodes with data and keys of their own."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from torch import Tensor
from worlds import in_packs, same_bits

from interfuse.cli import main
from interfuse.coordination import driver
from interfuse.engines.grpc.keys import make_keys
from interfuse.engines.processes import fork
from interfuse.result import Result
from interfuse.runs import RunConfig, execute, parse_config
from interfuse.runs.config import to_toml
from interfuse.runs.folder import RunFolder
from interfuse.wire import FileRecord

NAMES = ("ant", "bee", "cat", "dog")
CLASSES = 3


def rows(folder: Path, name: str, seed: int, count: int = 60, shape: tuple[int, ...] = (1, 4, 4)) -> Path:
    """An ``.npz`` of blobs, one a class: rows of one vendor, and the test rows that everybody has."""

    def drawn(noise: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(size) % CLASSES
        centres = np.random.default_rng(7).normal(size=(CLASSES, *shape))
        return (centres[y] + 0.5 * noise.normal(size=(size, *shape))).astype(np.float32), y

    x, y = drawn(np.random.default_rng(seed + 100), count)
    x_test, y_test = drawn(np.random.default_rng(99), 24)
    path = folder / f"{name}.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _command(
    arguments: Sequence[str], folder: Path, log: Path, largest_file: int | None, lie: Callable[[], None] | None
) -> None:
    """Be a process that carries out a command of interfuse, but for the report, which takes longer than a run."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    driver.report.write = lambda path: path  # type: ignore[assignment]
    if lie is not None:
        lie()
    sys.argv = ["interfuse", *arguments]
    main()


@dataclass
class Process:
    """A process of its own, forked where everything is imported already, and the file that holds what it says."""

    process: BaseProcess
    log: Path

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 60) -> int:
        """Its exit code; how long it takes says nothing on a machine that does other things too."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} seconds\n{self.text()}"
        return self.process.exitcode

    def kill(self) -> None:
        """Kill it as with -9."""
        self.process.kill()
        self.process.join(10)

    def says(self, text: str, seconds: float = 30) -> None:
        """Wait until it says so."""
        until(lambda: text in self.text() or not self.process.is_alive(), seconds, self.text)
        assert text in self.text(), self.text()


def until(condition: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} seconds\n{why()}"
        time.sleep(0.02)


@dataclass
class Parties:
    """A coordinator and some vendors in one folder; every process that was started ends with the test."""

    folder: Path
    names: Sequence[str] = NAMES
    secure: bool = True
    port: int = field(default_factory=free_port)
    processes: list[Process] = field(default_factory=list)

    def prepare(self, recipe: Mapping[str, Any], models: Sequence[str], **vendor: Mapping[str, Any]) -> RunConfig:
        """Keys, data, vendor files and the recipe. ``vendor`` are tables of every vendor's file that differ.

        Returns: the configuration with which a simulation gives the same.
        """
        if self.secure:
            make_keys(self.folder / "keys", self.names, ["127.0.0.1", "localhost"])
        data = [rows(self.folder, name, seed) for seed, name in enumerate(self.names)]
        for name, file, model in zip(self.names, data, self._dealt(models), strict=True):
            self.vendor(name, file, model, **vendor)
        values = {
            "clients": len(self.names), "models": list(models), "fusion_width": 8, "rounds": 3, "eval_every": 1,
            "beside": [], "execution": {"workers": 1, "commit_rounds": 1},
        } | dict(recipe)  # fmt: skip
        values["sampling"] = {"draws_from": "seed"} | dict(values.get("sampling", {}))  # as a simulation does
        config = parse_config(values | {"data": str(data[0])})
        (self.folder / "recipe.toml").write_text(to_toml(config))
        return parse_config(values | {"data": [str(file) for file in data]})

    def _dealt(self, models: Sequence[str]) -> list[str]:
        return [models[i % len(models)] for i in range(len(self.names))]

    def vendor(self, name: str, file: Path, model: str, **tables: Mapping[str, Any]) -> Path:
        """A vendor's file in a folder of its own. Tables replace keys of those here; ``top`` those outside tables."""
        values: dict[str, Any] = {
            "name": name, "coordinator": f"127.0.0.1:{self.port}",
            "model": {"build": model, "architecture": model, "public": True},
            "data": {"source": str(file), "test": str(file)},
            "allow": {
                "methods": ["ifl", "fedin", "fedavg", "scaffold", "splitfed-v1", "fedvtc", "fedkd", "ifl-bank"],
                "disclosures": [
                    "features", "labels", "parameters", "gradients", "statistics", "prototypes", "generators",
                ],
                "evaluation": "shared", "draws_from": "seed",
            },
        }  # fmt: skip
        if self.secure:
            keys = self.folder / "keys" / name
            values["keys"] = {
                "key": str(keys / f"{name}.key"), "certificate": str(keys / f"{name}.crt"),
                "authority": str(keys / "ca.crt"),
            }  # fmt: skip
        for table, changes in tables.items():
            if table == "top":
                values |= dict(changes)
            else:
                values[table] = values.get(table, {}) | dict(changes)
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "vendor.toml").write_text(tomli_w.dumps(values))
        return folder / "vendor.toml"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(
        self, *command: str, log: str, largest_file: int | None = None, lie: Callable[[], None] | None = None
    ) -> Process:
        """Start a command of interfuse.

        Args:
            lie: What makes the process another than an honest one, called in it.
            largest_file: Bytes that the process can write to a file: a disk that is full beyond it.
        """
        path = self.folder / f"{log}.log"
        path.touch()
        process = fork(_command, command, self.folder, path, largest_file, lie, name=log)
        self.processes.append(Process(process, path))
        return self.processes[-1]

    def coordinate(
        self, *options: str, largest_file: int | None = None, lie: Callable[[], None] | None = None
    ) -> Process:
        """Start the coordinator of the recipe."""
        keys = ["--keys", "keys/coordinator"] if self.secure else ["--insecure"]
        return self.start(
            "coordinate", "recipe.toml", "--nodes", str(len(self.names)), "--listen", f"127.0.0.1:{self.port}",
            "--out", "run", *keys, *options, log="coordinator", largest_file=largest_file, lie=lie,
        )  # fmt: skip

    def node(
        self, name: str, *options: str, largest_file: int | None = None, lie: Callable[[], None] | None = None
    ) -> Process:
        """Start a node."""
        insecure = [] if self.secure else ["--insecure"]
        return self.start(
            "node", f"{name}/vendor.toml", *insecure, *options, log=name, largest_file=largest_file, lie=lie
        )

    def all_nodes(self) -> list[Process]:
        """Start all nodes."""
        return [self.node(name) for name in self.names]

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The structured log of a node, or of the coordinator."""
        path = self.run / "coordinator.jsonl" if name is None else self.folder / name / "state" / "node.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rounds_done(self) -> int:
        path = self.run / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def everything(self) -> str:
        """All logs, for the text of a failed assertion."""
        return "\n".join(f"--- {p.log.name}\n{p.text()}" for p in self.processes)


@contextmanager
def parties(folder: Path, names: Sequence[str] = NAMES, *, secure: bool = True) -> Iterator[Parties]:
    """Some parties, whose processes all end with the block."""
    made = Parties(folder, names, secure)
    try:
        yield made
    finally:
        for process in made.processes:
            if process.process.is_alive():
                process.kill()


TIMES = ("seconds", "seconds_by_phase", "virtual_seconds")


def timeless(value: Any) -> Any:
    """Without what may differ between two equal runs: seconds, which are virtual ones in a simulation only."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def states(run: Path, nodes: Mapping[str, Path]) -> dict[str, Tensor]:
    """All that server and clients own at the last commit of a run.

    Args:
        nodes: The state folders of nodes by the name of their client's file; their files are found by the digests in
            the coordinator's receipts. Empty for a local run.
    """
    folder = RunFolder(run)
    commit = folder.last_commit()
    assert commit is not None
    found = in_packs(folder.commits, commit.saved.packs)
    for name, state in nodes.items():
        if (receipt := found.pop(f"{name}:sha256", None)) is not None:
            digest = bytes(receipt.tolist()).hex()
            path = next(state.glob(f"*/{digest}.safetensors"))
            found |= in_packs(path.parent, [FileRecord(path.name, path.stat().st_size, digest)])
    return found


SAME = (
    "global_accuracy", "own_accuracy", "composition_matrix", "best", "uplink_bytes", "downlink_bytes",
    "evaluation_bytes", "bytes_by_kind", "gradient_steps",
)  # fmt: skip
"""What a run between parties has in its summary as a local one has it."""


def assert_equal_to_local(found: Parties, config: RunConfig) -> None:
    """Equal bits of all states, equal lines of the ledger, equal metrics and summary."""
    local = found.folder / "local"
    execute(config, local)
    folders = {f"client-{client:05d}": found.folder / name / "state" for client, name in enumerate(found.names)}
    assert same_bits(states(found.run, folders), states(local, {}))
    lines, whole = ((path / "ledger.jsonl").read_bytes().splitlines() for path in (found.run, local))
    drawn = whole[len(lines) :]  # pictures, in the end, of simulations alone
    assert lines == whole[: len(lines)]
    assert all(b'"heading":"evaluation"' in line for line in drawn)
    assert not drawn or b'"handler":"draw"' in drawn[-1]
    rows, expected = ([row.values() for row in RunFolder(path).metrics()] for path in (found.run, local))
    assert timeless(rows) == timeless(expected)
    summary, wanted = (Result(path).summary.values() for path in (found.run, local))
    same = [key for key in SAME if not (drawn and key == "evaluation_bytes")]
    assert {key: timeless(summary[key]) for key in same} == {key: timeless(wanted[key]) for key in same}
