"""Equal bits on Ray: eight methods on one node and on two, with one to three workers, and while something is killed.

Several nodes are several raylets on this machine (``ray.cluster_utils``). A cell is what a run left behind, as a
digest: all tensors of the last and the best commit, the ledger, metrics and summary, without seconds. Needs the extra
``ray``::

    python benchmarks/ray_bits.py                   # all; about ten minutes on two cores
    python benchmarks/ray_bits.py --methods ifl --out bits.md
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# before Ray is imported: loopback alone, and nothing of it on the standard output
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
os.environ |= {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

from interfuse.engines import Room
from interfuse.engines.ray import Joining, OnRay
from interfuse.runs import Silent, execute, parse_config, resume
from interfuse.runs.folder import RunFolder
from interfuse.setup import Setup
from interfuse.wire import Packs

COMMON: Mapping[str, Any] = {
    "data": "digits", "clients": 5, "models": ["mlp", "logistic"], "fusion_width": 16, "rounds": 6, "eval_every": 2,
    "beside": [], "seed": 3,
}  # fmt: skip
FUSED = {"local_steps": 3, "batch_size": 16}
CASES: Mapping[str, Mapping[str, Any]] = {
    "ifl": {"settings": FUSED | {"optimizer": "adam"}},
    "fedavg": {"models": ["cnn-bn"], "settings": FUSED | {"participation": 0.6, "buffers": "local"}},
    "scaffold": {"models": ["mlp"], "settings": FUSED | {"participation": 0.6}},
    "splitfed-v1": {"models": ["mlp"], "settings": {"local_steps": 2, "batch_size": 16, "optimizer": "adam"}},
    "fedin": {"models": ["resnet10", "resnet14"], "rounds": 3, "clients": 3, "settings": {"local_steps": 1}},
    "fedproto": {"settings": FUSED},
    "fedbuff": {"models": ["mlp"], "settings": {"local_steps": 3}, "devices": {"slow": 0.5}},
    "fedmosaic": {  # given backbones, public data
        "data": "easy-vqa-domains", "public": "easy-vqa-public", "clients": 3, "rounds": 2, "eval_every": 1,
        "models": ["vqa-s-random", "vqa-g-random"], "test": "source", "validation": 0.0,
        "read": {"tasks": ["hue/colour", "bgr/colour", "hue/colour"], "rows": "8", "test_rows": "8"},
        "partition": {"name": "natural", "drawn": False},
        "settings": {"rank": 2, "local_steps": 2, "align_samples": 16, "probe": "vqa-s-random"},
    },
}  # fmt: skip
WORKERS = (1, 2, 3)
HEAD_CPUS, NODE_CPUS = 3, 3


Strike = Callable[[OnRay], None]


class Striking(OnRay):
    """An engine that does something at a call, once."""

    def __init__(self, setup: Setup, workers: int | None, room: Room, at: int, strike: Strike) -> None:
        self._left, self._strike, self.calls = at, strike, 0
        super().__init__(setup, workers, room, Joining(seconds=1800))  # at RAY_ADDRESS, or where it is connected to

    def _ask(self, worker: int, what: str, *arguments: Any) -> Any:
        reference = super()._ask(worker, what, *arguments)
        if what == "call":
            self.calls += 1
            if self.calls == self._left:
                self._strike(self)
        return reference


def nothing(engine: OnRay) -> None:
    """Nothing is killed."""


def kill_worker(engine: OnRay) -> None:
    """The process of the last worker is killed in its call."""
    os.kill(int(engine._actors[-1].place.split()[1]), signal.SIGKILL)


def kill_driver(engine: OnRay) -> None:
    """This process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def gone(cluster: Any, node: Any, engine: OnRay) -> None:
    """A node ends with all its processes."""
    cluster.remove_node(node, allow_graceful=False)


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(
    name: str, workers: int, out: Path, strike: Callable[[OnRay], None] | None, at: int = 0
) -> tuple[str, int, str]:
    """The digest of a run, its calls of workers, and what was said of a loss. ``strike``: None: on the local engine."""
    config = parse_config(
        dict(COMMON) | {"method": name} | dict(CASES[name]) | {"execution": {"workers": workers, "commit_rounds": 2}}
    )
    made: list[Striking] = []

    def hosted(setup: Setup, count: int | None, room: Room) -> OnRay:
        assert strike is not None
        made.append(Striking(setup, count, room, at, strike))
        return made[-1]

    told = Told()
    execute(config, out, progress=told, engine=None if strike is None else hosted)
    lost = [text for text in told.notes if "is lost" in text]
    return digest(out), sum(one.calls for one in made), "; ".join(lost)


def digest(path: Path) -> str:
    """Of all that a run left behind, but for seconds."""
    folder, found = RunFolder(path), hashlib.sha256()
    commit = folder.last_commit()
    assert commit is not None
    for saved in (commit.saved, commit.best and commit.best.saved):
        packs = Packs()
        for record in saved.packs if saved else ():
            record.check(folder.commits)
            packs.add(folder.commits, record)
        for name, part in sorted(packs.parts.items()):
            for key, tensor in sorted(part.tensors().items()):
                found.update(f"{name} {key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.contiguous().numpy().tobytes())
    found.update((path / "ledger.jsonl").read_bytes())
    for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        found.update(json.dumps(timeless(json.loads(line))).encode())
    found.update(json.dumps(timeless(json.loads((path / "summary.json").read_text(encoding="utf-8")))).encode())
    return found.hexdigest()


def timeless(value: Any) -> Any:
    """Without seconds, and where the folder is."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "seconds_by_phase", "run")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def driver_killed(name: str, out: Path, at: int, address: str) -> str:
    """The digest of a run whose driver was killed in a call, and that goes on with other workers."""
    command = [sys.executable, __file__, "--killed", name, "--out", str(out), "--at", str(at)]
    environment = os.environ | {"RAY_ADDRESS": address}
    ended = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, env=environment)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    resume(out, execution={"engine": "ray", "workers": 3, "ray_address": address})
    return digest(out)


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Digests as a table: what local with one worker has is named, and what is equal to it."""
    columns = list(next(iter(rows.values())))
    lines = ["| method | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, cells in rows.items():
        first, *others = cells.values()
        shown = [f"`{first[:8]}`", *("equal" if cell == first else f"**{cell[:8]}**" for cell in others)]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the program; 1 where bits differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(CASES), help="some of the eight")
    parser.add_argument("--out", type=Path, default=Path("ray-bits.md"), help="the table")
    parser.add_argument("--columns", default="", help="those whose names hold one of these words, beside local 1")
    parser.add_argument("--killed", help=argparse.SUPPRESS)
    parser.add_argument("--at", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.killed:
        run(chosen.killed, 2, chosen.out, kill_driver, chosen.at)
        return 0
    import ray
    from ray.cluster_utils import Cluster

    names, words = chosen.methods.split(","), chosen.columns.split(",")
    rows: dict[str, dict[str, str]] = {name: {} for name in names}
    said: list[str] = []

    def wanted(column: str) -> bool:
        return any(word in column for word in words)

    def note(name: str, column: str, found: str, lost: str = "") -> None:
        rows[name][column] = found
        equal = found == next(iter(rows[name].values()))
        print(f"{name:12} {column:24} {'equal' if equal else 'DIFFERS'} {lost}", flush=True)
        said.extend([lost] if lost else [])

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as after:
        place = Path(folder)
        for name in names:
            for workers in (one for one in WORKERS if one == 1 or wanted(f"local {one}")):
                note(name, f"local {workers}", run(name, workers, place / f"{name}-local-{workers}", None)[0])
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": HEAD_CPUS, "include_dashboard": False})
        after.callback(cluster.shutdown)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        after.callback(ray.shutdown)
        for name in names:
            for workers in (one for one in WORKERS if wanted(f"one node {one}")):
                note(name, f"one node {workers}", run(name, workers, place / f"{name}-one-{workers}", nothing)[0])
        second = cluster.add_node(num_cpus=NODE_CPUS)
        cluster.wait_for_nodes()
        for name in names:
            calls = 12
            for workers in (one for one in WORKERS if wanted(f"two nodes {one}")):
                found, calls, _ = run(name, workers, place / f"{name}-two-{workers}", nothing)
                note(name, f"two nodes {workers}", found)
            if wanted("worker killed"):
                found, _, lost = run(name, 3, place / f"{name}-worker", kill_worker, calls // 2)
                note(name, "worker killed", found, lost or "NOBODY WAS LOST")
            if wanted("driver killed, resumed"):
                found = driver_killed(name, place / f"{name}-driver", calls // 3, cluster.address)
                note(name, "driver killed, resumed", found)
        for name in filter(lambda name: wanted("node killed"), names):
            found, _, lost = run(name, 2, place / f"{name}-node", partial(gone, cluster, second), 5)
            note(name, "node killed", found, lost or "NOBODY WAS LOST")
            if name != names[-1]:
                second = cluster.add_node(num_cpus=NODE_CPUS)
                cluster.wait_for_nodes()
    text = table(rows)
    told = "\n".join(f"- {line}" for line in dict.fromkeys(said))
    chosen.out.write_text(f"{text}\n\n{told}\n", encoding="utf-8")
    print(text)
    return 0 if all(len({*cells.values()}) == 1 for cells in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
