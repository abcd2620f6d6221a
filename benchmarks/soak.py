"""A coordinator and four nodes for minutes, while strangers do all at once what `attacks.py` has, and a vendor lies.

Idle and half-open connections, silent streams of a revoked key, resets, pings, a known key that joins again and again,
and a fifth node whose first answer is no number: it is sent away, and from then on tries to come back, with frames that
are none, under names of others, with facts that cannot be. Beside them a node of its own is asked by a hostile
coordinator for whatever there is. The run must end with the bits of the same run without strangers; descriptors, memory
and logs must not grow with time.

    python benchmarks/soak.py [--minutes 30] [--rounds N] [--out FOLDER]

Without --rounds a run of some rounds is tried first, to know how many take so many minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

import attacks
import liar
from attacks import Address
from interfuse.engines.grpc import make_keys
from interfuse.engines.processes import fork
from interfuse.runs.folder import RunFolder
from interfuse.wire import Packs
from network import free_port

NODES, LIAR = ("ant", "bee", "cat", "dog"), "eel"
CALIBRATION = 40
"""Rounds of a run under attack, to know how many take so many minutes."""
PAUSE = 0.5
"""Seconds of a pass through the base block under attack: a round takes its time whatever else the machine does."""
MODEL = """
import os, time
from torch import nn
from interfuse.models import SplitModel

class Paused(nn.Linear):
    def forward(self, x):
        time.sleep(float(os.environ.get("SOAK_PAUSE", 0)))
        return super().forward(x)

def build(sample_shape, classes, width):
    base = nn.Sequential(nn.Flatten(), Paused(16, width), nn.ReLU())
    return SplitModel({"base": base, "modular": nn.Linear(width, classes)})
"""


@dataclass(frozen=True)
class Sample:
    """What a process takes at a moment."""

    seconds: float
    descriptors: int
    memory: float
    node: float
    log: int
    rounds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, help="of the run under attack, however long they take")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.out or Path(place)
        everything: list[Attack] = [idle, half_open, silent, reset, ping, joining, hostile_calls]
        if (rounds := given.rounds) is None:
            tried = _run(folder / "tried", CALIBRATION, everything)
            rate = CALIBRATION / tried[-1].seconds
            rounds = max(20, int(given.minutes * 60 * rate))
            print(f"{rate:.1f} rounds a second under attack; {rounds} rounds", flush=True)
        found = _run(folder / "attacked", rounds, everything)
        under_way = [one for one in found if one.rounds <= rounds]
        print(f"{rounds} rounds in {under_way[-1].seconds / 60:.1f} minutes")
        print(growth(under_way), flush=True)
        print(f"after the last round, with the report: {max(one.memory for one in found):.1f} MiB", flush=True)
        _run(folder / "quiet", rounds, [])
        print(f"equal bits: {_digests(folder / 'attacked') == _digests(folder / 'quiet')}")


def growth(found: Sequence[Sample]) -> str:
    """What was taken at most in each tenth of the time of the rounds."""
    lines = ["tenth   descriptors   coordinator, MiB   a node, MiB   log, bytes a minute"]
    end = found[-1].seconds
    for tenth in range(10):
        part = [one for one in found if tenth * end <= 10 * one.seconds <= (tenth + 1) * end]
        grown = 60 * (part[-1].log - part[0].log) / max(part[-1].seconds - part[0].seconds, 1e-9)
        lines.append(
            f"{tenth + 1:5} {max(one.descriptors for one in part):13} {max(one.memory for one in part):18.1f} "
            f"{max(one.node for one in part):13.1f} {grown:20.0f}"
        )
    return "\n".join(lines)


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


def hostile_calls(address: Address, keys: Path) -> int:
    return liar.ask(keys.parent / "asked", 2000)


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


def _run(folder: Path, rounds: int, strangers: Sequence[Attack]) -> list[Sample]:
    """Carry a run out, and look at the coordinator meanwhile."""
    folder.mkdir(parents=True)
    port, keys = free_port(), folder / "keys"
    make_keys(keys, [*NODES, LIAR, "revoked", "flood"], ["127.0.0.1"])
    known = keys / "coordinator"
    (known / "nodes" / "revoked.crt").rename(known / "revoked" / "revoked.crt")
    _files(folder, port, rounds)
    pause = PAUSE if strangers else 0.0
    coordinator = _started(
        folder, "coordinate", "recipe.toml", "--nodes", str(len(NODES) + 1), "--minimum", str(len(NODES)),
        "--listen", f"127.0.0.1:{port}", "--keys", str(known), "--out", "run", "--quiet", "--classes", "3",
    )  # fmt: skip
    attackers: list[BaseProcess] = []
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for work in strangers:
            counts = folder / f"{work.__name__}.count"
            attackers.append(fork(_attack, work, port, keys, counts, name=work.__name__))
        time.sleep(3 if strangers else 0)
        nodes = [_started(folder, "node", f"{name}.toml", "--quiet", pause=pause) for name in NODES]
        attackers.append(fork(liar.lie, folder / f"{LIAR}.toml", folder / "liar.count", name="liar"))
        found = list(_watched(coordinator, nodes[0], folder, loud=bool(strangers)))
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


def _started(folder: Path, *command: str, pause: float = 0.0) -> subprocess.Popen[bytes]:
    with open(folder / f"{command[0]}-{Path(command[1]).stem}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "interfuse.cli", *command], cwd=folder, stdout=log, stderr=log,
            env=os.environ | {"SOAK_PAUSE": str(pause)},
        )  # fmt: skip


def _files(folder: Path, port: int, rounds: int) -> None:
    (folder / "model.py").write_text(MODEL)
    (folder / "recipe.toml").write_text(tomli_w.dumps(_recipe(rounds)))
    for seed, name in enumerate((*NODES, LIAR)):
        noise, y = np.random.default_rng(seed), np.arange(60) % 3
        x = noise.normal(y[:, None, None, None], 1.0, (60, 1, 4, 4)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
        place = folder / "keys" / name
        values = {
            "name": name, "coordinator": f"127.0.0.1:{port}", "state": f"state-{name}",
            "model": {"build": "model.py:build"},
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
        "models": ["logistic"], "settings": {"local_steps": 1, "batch_size": 8},
        "sampling": {"draws_from": "seed"},
    }  # fmt: skip


def _watched(
    coordinator: subprocess.Popen[bytes], node: subprocess.Popen[bytes], folder: Path, *, loud: bool
) -> Iterator[Sample]:
    """Samples of the coordinator and a node, every few seconds, from its first round on."""
    began, told = 0.0, 0.0
    log, lines = folder / "run" / "coordinator.jsonl", folder / "run" / "metrics.jsonl"
    while coordinator.poll() is None:
        time.sleep(0.5)
        rounds = lines.read_bytes().count(b"\n") if lines.exists() else 0
        began = began or (time.monotonic() if rounds else 0.0)
        try:
            memory, taken = _memory(coordinator.pid), _memory(node.pid)
            descriptors = len(list(Path(f"/proc/{coordinator.pid}/fd").iterdir()))
        except OSError:
            break  # it has just ended
        if began:
            seconds = time.monotonic() - began
            found = Sample(seconds, descriptors, memory, taken, log.stat().st_size, rounds)
            yield found
            if loud and seconds >= told:
                told += 30
                print(
                    f"{seconds:6.0f} s  round {rounds:6}  {descriptors:5} descriptors  {memory:6.1f} MiB, "
                    f"a node {taken:6.1f}  log {found.log:7} bytes",
                    flush=True,
                )


def _memory(pid: int) -> float:
    """MiB that a process takes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- the bits


def _digests(folder: Path) -> dict[str, bytes]:
    """Of all that clients own at the end, as their nodes saved it."""
    run = RunFolder(folder / "run")
    commit = run.last_commit()
    if commit is None:
        raise SystemExit(f"{folder} has no commit")
    packs = Packs()
    for record in commit.saved.packs:
        record.check(run.commits)
        packs.add(run.commits, record)
    owned = {name: part.tensors() for name, part in packs.parts.items() if name.startswith("client-")}
    found = {name: bytes(tensors["sha256"].tolist()) for name, tensors in owned.items()}
    if len(found) < len(NODES):
        raise SystemExit(f"{folder} has states of {len(found)} clients")
    return {name: digest for name, digest in found.items() if name != f"client-{len(NODES):05d}"}


if __name__ == "__main__":
    main()
