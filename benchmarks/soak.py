"""A coordinator and four nodes for some minutes, while strangers do all at once what `attacks.py` has.

Idle and half-open connections, silent streams of a revoked key, resets, pings, and a known key that joins again and
again. The run must end with the bits of a simulation, which nobody attacks; descriptors, memory and logs of the
coordinator must not grow with time.

    python benchmarks/soak.py [--minutes 30] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from torch import Tensor

import attacks
from attacks import Address
from interfuse.engines.grpc import make_keys
from interfuse.engines.processes import fork
from interfuse.runs import execute, parse_config
from interfuse.runs.folder import RunFolder
from interfuse.wire import FileRecord, Packs
from network import free_port

NODES = ("ant", "bee", "cat", "dog")
CALIBRATION = 150
"""Rounds of a quiet run, to know how many take so many minutes."""


@dataclass(frozen=True)
class Sample:
    """What a process takes at a moment."""

    seconds: float
    descriptors: int
    memory: float
    log: int
    rounds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.out or Path(place)
        quiet = _run(folder / "quiet", CALIBRATION, [])
        rate = CALIBRATION / quiet[-1].seconds
        rounds = max(20, int(given.minutes * 60 * rate))
        print(f"quiet: {rate:.1f} rounds a second; {rounds} rounds under attack", flush=True)
        _run(folder / "attacked", rounds, [idle, half_open, silent, reset, ping, joining])
        print(f"equal bits: {_equal(folder / 'attacked', rounds)}")


# --- what strangers do, again and again


def idle(address: Address, keys: Path) -> int:
    return attacks.idle(address, 1300, 8.0)


def half_open(address: Address, keys: Path) -> int:
    return attacks.half_open(address, 100, 8.0)


def silent(address: Address, keys: Path) -> int:
    return attacks.silent(address, attacks.files_of(keys, "revoked"), 40, 8.0)


def reset(address: Address, keys: Path) -> int:
    return _rested(attacks.rapid_reset(address, attacks.files_of(keys, "flood"), 5000))


def ping(address: Address, keys: Path) -> int:
    return _rested(attacks.ping_flood(address, attacks.files_of(keys, "flood"), 5000))


def joining(address: Address, keys: Path) -> int:
    return _rested(attacks.joins(address, attacks.files_of(keys, "flood"), attacks.hello("flood"), 10))


def _rested(done: int) -> int:
    """Leave the processors, which the parties share with their attackers here, to them for a moment."""
    time.sleep(2)
    return done


Attack = Callable[[Address, Path], int]


def _attack(work: Attack, port: int, keys: Path, counts: Path) -> None:
    """Do it until the process is ended, and count."""
    done = 0
    while True:
        done += work(("127.0.0.1", port), keys)
        counts.write_text(str(done))


# --- the parties


def _run(folder: Path, rounds: int, strangers: list[Attack]) -> list[Sample]:
    """Carry a run out, and look at the coordinator meanwhile."""
    folder.mkdir(parents=True)
    port, keys = free_port(), folder / "keys"
    make_keys(keys, [*NODES, "revoked", "flood"], ["127.0.0.1"])
    known = keys / "coordinator"
    (known / "nodes" / "revoked.crt").rename(known / "revoked" / "revoked.crt")
    _files(folder, port, rounds)
    coordinator = _started(
        folder, "coordinate", "recipe.toml", "--nodes", str(len(NODES)), "--listen", f"127.0.0.1:{port}", "--keys",
        str(known), "--out", "run", "--quiet", "--classes", "3",
    )  # fmt: skip
    attackers: list[BaseProcess] = []
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for work in strangers:
            counts = folder / f"{work.__name__}.count"
            attackers.append(fork(_attack, work, port, keys, counts, name=work.__name__))
        time.sleep(3 if strangers else 0)
        nodes = [_started(folder, "node", f"{name}.toml", "--quiet") for name in NODES]
        found = list(_watched(coordinator, folder, loud=bool(strangers)))
        codes = [process.wait(60) for process in (coordinator, *nodes)]
        if any(codes):
            raise SystemExit(f"exit codes {codes}; {folder} has the logs")
    finally:
        for attacker in attackers:
            attacker.kill()
        for process in (*nodes, coordinator):
            process.kill()
    for work in strangers:
        path = folder / f"{work.__name__}.count"
        print(f"{work.__name__}: {path.read_text() if path.exists() else 'not once to its end'}")
    return found


def _started(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    with open(folder / f"{command[0]}-{Path(command[1]).stem}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "interfuse.cli", *command], cwd=folder, stdout=log, stderr=log, env=os.environ
        )


def _files(folder: Path, port: int, rounds: int) -> None:
    (folder / "recipe.toml").write_text(tomli_w.dumps(_recipe(rounds)))
    for seed, name in enumerate(NODES):
        noise, y = np.random.default_rng(seed), np.arange(60) % 3
        x = noise.normal(y[:, None, None, None], 1.0, (60, 1, 4, 4)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
        place = folder / "keys" / name
        values = {
            "name": name, "coordinator": f"127.0.0.1:{port}", "state": f"state-{name}", "model": {"build": "logistic"},
            "data": {"source": f"{name}.npz"},
            "allow": {
                "methods": ["ifl"], "disclosures": ["features", "labels"], "evaluation": "own", "draws_from": "seed",
            },
            "keys": {
                "key": str(place / f"{name}.key"), "certificate": str(place / f"{name}.crt"),
                "authority": str(place / "ca.crt"),
            },
        }  # fmt: skip
        (folder / f"{name}.toml").write_text(tomli_w.dumps(values))


def _recipe(rounds: int) -> dict[str, Any]:
    return {
        "method": "ifl", "rounds": rounds, "fusion_width": 8, "evaluation": "own", "eval_every": rounds, "beside": [],
        "models": ["logistic"], "clients": len(NODES), "settings": {"local_steps": 1, "batch_size": 8},
        "sampling": {"draws_from": "seed"},
    }  # fmt: skip


def _watched(coordinator: subprocess.Popen[bytes], folder: Path, *, loud: bool) -> Iterator[Sample]:
    """Samples of the coordinator, every few seconds, from its first round on."""
    began, told = 0.0, 0.0
    log, lines = folder / "run" / "coordinator.jsonl", folder / "run" / "metrics.jsonl"
    while coordinator.poll() is None:
        time.sleep(0.5)
        rounds = lines.read_bytes().count(b"\n") if lines.exists() else 0
        began = began or (time.monotonic() if rounds else 0.0)
        try:
            pages = int(Path(f"/proc/{coordinator.pid}/statm").read_text().split()[1])
            descriptors = len(list(Path(f"/proc/{coordinator.pid}/fd").iterdir()))
        except OSError:
            break  # it has just ended
        if began:
            seconds = time.monotonic() - began
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            found = Sample(seconds, descriptors, memory, log.stat().st_size, rounds)
            yield found
            if loud and seconds >= told:
                told += 30
                print(
                    f"{seconds:6.0f} s  round {rounds:6}  {descriptors:5} descriptors  {memory:6.1f} MiB  "
                    f"log {found.log:7} bytes",
                    flush=True,
                )


# --- the bits


def _equal(folder: Path, rounds: int) -> bool:
    """Whether all that clients own is what they own after a simulation."""
    config = parse_config(_recipe(rounds) | {"data": [str(folder / f"{name}.npz") for name in NODES]})
    execute(config, folder / "simulated")
    simulated, attacked = (_owned(folder / name) for name in ("simulated", "run"))
    for client, name in enumerate(NODES):
        digest = bytes(attacked.pop(f"client-{client:05d}:sha256").tolist()).hex()
        path = next((folder / f"state-{name}").glob(f"*/{digest}.safetensors"))
        attacked |= _read(path.parent, [FileRecord(path.name, path.stat().st_size, digest)])
    wanted = {key: tensor for key, tensor in simulated.items() if key.startswith("client-")}
    mine = {key: tensor for key, tensor in attacked.items() if key.startswith("client-")}
    return wanted.keys() == mine.keys() and all(
        wanted[key].numpy().tobytes() == mine[key].numpy().tobytes() for key in wanted
    )


def _owned(run: Path) -> dict[str, Tensor]:
    folder = RunFolder(run)
    commit = folder.last_commit()
    if commit is None:
        raise SystemExit(f"{run} has no commit")
    return _read(folder.commits, commit.saved.packs)


def _read(folder: Path, records: Iterable[FileRecord]) -> dict[str, Tensor]:
    packs = Packs()
    for record in records:
        record.check(folder)
        packs.add(folder, record)
    return {f"{name}:{key}": t for name, part in packs.parts.items() for key, t in part.tensors().items()}


if __name__ == "__main__":
    main()
