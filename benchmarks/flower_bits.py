"""Methods of different kinds in Flower's simulation, in a deployment on loopback, and locally: are all bits equal?

    python benchmarks/flower_bits.py [METHOD ...] [--out docs/results/flower-bits.md] [--quick]

Each method runs for some rounds with two clients whose models, where it allows that, differ. What is compared is all
that the server and the clients own at the last commit, byte by byte, and the ledger of everything that went over the
wire. Simulated clients have shares of one data set, deployed ones a file each, so there are two local runs beside.
With ``--quick`` there is the deployment alone, for one round that nobody evaluates: that is a test.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from interfuse.coordination.driver import between_parties
from interfuse.flower.writing import write_app
from interfuse.runs import RunConfig, execute, parse_config
from interfuse.runs.folder import RunFolder
from interfuse.wire import FileRecord, Packs
from on_flower import flower, write_vendor

NAMES = ("ant", "bee")
ROUNDS = 2
METHODS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "ifl": (("mlp", "logistic"), {"local_steps": 2, "batch_size": 8}),
    "fedavg": (("logistic",), {"batch_size": 8}),
    "scaffold": (("logistic",), {"batch_size": 8}),
    "splitfed-v1": (("mlp",), {"batch_size": 32}),
    "fedin": (("resnet10-narrow@0.25",), {"batch_size": 8}),
    "fedproto": (("mlp", "logistic"), {"batch_size": 8}),
    "fedbuff": (("logistic",), {"batch_size": 8}),
    "fedvtc": (("mlp", "logistic"), {"batch_size": 8, "channels": 4}),
}
"""Models and settings. FedVTC has a decoder and a generator beside the models."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run on Flower beside a local one."""

    tensors: int
    equal: bool
    ledger: bool
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    lines = [
        "| method | models | simulation: tensors, equal bits, equal ledger, s | deployment: the same |",
        "|---|---|---|---|",
    ]
    bad = []
    if given.quick:
        for name in given.methods:
            with tempfile.TemporaryDirectory(prefix="if-") as place:
                found = deployed(Path(place), name, rounds=1, evaluation="none")
            print(f"{name}: {found}")
            bad += [] if found.equal and found.ledger else [name]
        _judge(bad)
        return
    for name in given.methods:
        with tempfile.TemporaryDirectory(prefix="if-") as place:
            both = [simulated(Path(place), name), deployed(Path(place), name)]
        bad += [name for one in both if not (one.equal and one.ledger)]
        cells = [f"{one.tensors}, {_yes(one.equal)}, {_yes(one.ledger)}, {one.seconds:.0f}" for one in both]
        lines.append(f"| {name} | {', '.join(METHODS[name][0])} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if given.out is not None:
        command = f"python benchmarks/flower_bits.py {' '.join(given.methods)}"
        about = f"# Equal bits on Flower\n\n`{command}`: {len(NAMES)} clients, {ROUNDS} rounds.\n\n"
        given.out.write_text(about + "\n".join(lines) + "\n")
    _judge(bad)


def _judge(bad: list[str]) -> None:
    if bad:
        sys.exit(f"not equal: {', '.join(bad)}")


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"


def simulated(place: Path, name: str) -> Outcome:
    """A run in Flower's simulation, of clients that share one data set."""
    folder = place / "simulated"
    folder.mkdir()
    config = between_parties(recipe_of(name, rows_of(folder, "all", 0, 120)), len(NAMES))
    write_app(config, folder / "app", folder / "run", None)
    with flower(folder, simulated=len(NAMES)) as made:
        began = time.monotonic()
        _, said = made.run(folder / "app")
    states = {f"client-{client:05d}": folder / "run" / "nodes" / f"client-{client:05d}" for client in range(len(NAMES))}
    return compared(folder, config, states, time.monotonic() - began, said)


def deployed(place: Path, name: str, *, rounds: int = ROUNDS, evaluation: str = "shared") -> Outcome:
    """A run of SuperNodes, each with a node and rows of its own."""
    folder = place / "deployed"
    folder.mkdir()
    files = [rows_of(folder, party, seed, 60) for seed, party in enumerate(NAMES)]
    config, models = recipe_of(name, files[0], rounds=rounds, commit=rounds, evaluation=evaluation), METHODS[name][0]
    write_app(config, folder / "app", folder / "run", None)
    with flower(folder) as made:
        for number, (party, rows) in enumerate(zip(NAMES, files, strict=True)):
            vendor = write_vendor(folder, party, rows, models[number % len(models)], [name])
            made.supernode(party, made.node(party, vendor))
        began = time.monotonic()
        _, said = made.run(folder / "app")
    whole = parse_config(config.model_dump() | {"data": [str(file) for file in files]})
    states = {f"client-{client:05d}": folder / f"state-{party}" for client, party in enumerate(NAMES)}
    return compared(folder, whole, states, time.monotonic() - began, said)


def rows_of(folder: Path, name: str, seed: int, count: int) -> Path:
    """Blobs, one a class; everybody has the same test rows."""

    def drawn(noise: np.random.Generator, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        y = np.arange(size) % 3
        centres = np.random.default_rng(7).normal(size=(3, 1, 4, 4))
        return (centres[y] + 0.5 * noise.normal(size=(size, 1, 4, 4))).astype(np.float32), y

    (x, y), (x_test, y_test) = drawn(np.random.default_rng(seed + 100), count), drawn(np.random.default_rng(99), 24)
    np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return folder / f"{name}.npz"


def recipe_of(
    name: str, data: Path, *, rounds: int = ROUNDS, commit: int = ROUNDS, evaluation: str = "shared"
) -> RunConfig:
    """A recipe on a file, that is evaluated once."""
    models, settings = METHODS[name]
    return parse_config(
        {
            "method": name, "models": list(models), "settings": dict(settings), "data": str(data), "rounds": rounds,
            "clients": len(NAMES), "fusion_width": 8, "eval_every": rounds, "beside": [], "evaluation": evaluation,
            "classes": [] if evaluation == "shared" else ["0", "1", "2"],
            "sampling": {"draws_from": "seed"}, "execution": {"workers": 1, "commit_rounds": commit},
        }
    )  # fmt: skip


def compared(folder: Path, config: RunConfig, nodes: Mapping[str, Path], seconds: float, said: str) -> Outcome:
    """What a run in ``run`` left beside what the same configuration leaves locally.

    Args:
        nodes: The state folders of nodes by the names of their clients.
        said: What it said, for when it did not finish.
    """
    if RunFolder(folder / "run").summary() is None:
        logs = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in folder.glob("*.log"))
        raise SystemExit(f"the run did not finish\n{said[-5000:]}\n{logs}")
    execute(config, folder / "local")
    local, mine = _owned(folder / "local"), _owned(folder / "run")
    for name, state in nodes.items():
        if (receipt := mine.pop(f"{name}:sha256", None)) is not None:
            digest = bytes(receipt.tolist()).hex()
            path = next(state.glob(f"*/{digest}.safetensors"))
            mine |= _read(path.parent, [FileRecord(path.name, path.stat().st_size, digest)])
    same = local.keys() == mine.keys() and all(
        (tensor.dtype, tensor.shape, tensor.contiguous().view(-1).numpy().tobytes())
        == (mine[key].dtype, mine[key].shape, mine[key].contiguous().view(-1).numpy().tobytes())
        for key, tensor in local.items()
    )
    lines, whole = ((folder / run / "ledger.jsonl").read_bytes().splitlines() for run in ("run", "local"))
    return Outcome(len(local), same, lines == whole[: len(lines)], seconds)


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
