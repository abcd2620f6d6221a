"""Compare short runs of two source trees bit by bit; same_bits.sh checks one of them out and calls this.

One child process for each tree carries out the runs of the table below and writes what it found. It uses what both
trees have: ``run``, ``resume``, ``load_run``, settings by name, and the files of a run folder as data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import interfuse
from interfuse.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    models: tuple[str, ...]
    settings: Mapping[str, Any]
    older: Mapping[str, Any] | None = None  # settings for a tree that refuses the others: one was renamed since
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of interfuse.run


UNLIKE = ("cnn-bn", "mlp", "mixed", "logistic")
ONE_HEAD = ("cnn-bn", "mlp-linear", "mixed-linear", "deep-linear")
DEPTHS = ("resnet10-narrow", "resnet18-narrow")
WIDTHS = ("resnet10-narrow", "resnet10-narrow@0.5")

# Either local_steps or local_epochs, never both: what both together mean is not the same in all trees.
RUNS: dict[str, Run] = {
    "ifl": Run(UNLIKE, {"local_steps": 4}),
    "ifl-late-answers": Run(UNLIKE, {"local_steps": 3, "joins_at": 2}),
    "fedin": Run(DEPTHS, {"local_steps": 4}),
    "scaffold": Run(("cnn-bn",), {"local_steps": 4}),
    "fednova": Run(("cnn-bn",), {"local_epochs": 1, "momentum": 0.9}, options={"client": {1: {"lr": 0.02}}}),
    "splitfed-v1": Run(("cnn-bn",), {"local_steps": 4}),
    "fedgen": Run(ONE_HEAD, {"local_steps": 4, "regularised_steps": 3, "generator_steps": 8}),
    "heterofl": Run(WIDTHS, {"local_steps": 4, "buffers": "batch-statistics"}),
    "fedbuff": Run(("cnn",), {"local_epochs": 1, "replies": 2}, options={"devices": "stragglers"}),
    "fedproto": Run(UNLIKE, {"local_epochs": 1}),
    "inco": Run(DEPTHS, {"local_steps": 4, "mu": 0.1}),
    "fedet": Run(ONE_HEAD, {"local_epochs": 1, "server_steps": 8}),
}
COMMON: dict[str, Any] = {
    "data": "digits", "clients": 5, "fusion_width": 32, "rounds": 4, "eval_every": 2, "beside": (), "commit_rounds": 1
}  # fmt: skip
KILLED_IN = 3  # the round; the last commit is that of the one before
VARIANTS = ("1 worker", "2 workers", "resumed")
KINDS = ("tensors", "models", "metrics", "ledger", "ledger of evaluation")
RENAMED = {"receive": "deploy", "hits": "count", "Hits": "Counted"}  # handlers and messages, by their older names
TREES = ("COMMIT", "working tree")

Flat = dict[str, Any]  # from the name of a value to the value


def carry_out_all(methods: Iterable[str], folder: Path) -> None:
    """All runs of this process's tree, and what they left, in ``found.json``."""
    source = Path(os.environ["PYTHONPATH"]).resolve()
    assert Path(interfuse.__file__).resolve().is_relative_to(source), f"{interfuse.__file__} is not in {source}"
    interfuse.report.write = lambda folder: folder  # a report takes longer than the run
    found: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for method, variant in product(found, VARIANTS):
        path = folder / method / variant.replace(" ", "-")
        try:
            carry_out(method, variant, path)
            found[method][variant] = evidence(path)
        except Exception as error:  # the other runs go on
            found[method][variant] = {"error": f"{type(error).__name__}: {error}"}
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


class KillingItself(interfuse.Silent):
    """Ends the process in the middle of the run, between the round and its commit."""

    def advance(self, row: Any) -> None:
        if (row["round"] if isinstance(row, dict) else row.round) == KILLED_IN:  # older trees have dictionaries
            os.kill(os.getpid(), signal.SIGKILL)


def carry_out(method: str, variant: str, path: Path) -> None:
    """One run, to its end."""
    if variant != "resumed":
        begin(method, path, workers=int(variant[0]), progress=interfuse.Silent())
        return
    child = os.fork()
    if child == 0:
        try:
            begin(method, path, workers=1, progress=KillingItself())
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"it should have been killed in round {KILLED_IN}, and ended before or after")
    interfuse.resume(path, progress=interfuse.Silent())


def begin(method: str, path: Path, **options: Any) -> None:
    """A run from the table, in a new folder."""
    run = RUNS[method]
    options |= COMMON | {"models": run.models, "partition": interfuse.Dirichlet(0.5), "out": path, **run.options}
    if "client_settings" in signature(interfuse.run).parameters and "client" in options:  # its name in older trees
        options["client_settings"] = options.pop("client")
    try:
        interfuse.run(method, settings=run.settings, **options)
    except ConfigError:
        if run.older is None:
            raise
        interfuse.run(method, settings=run.older, **options)


def evidence(path: Path) -> dict[str, Flat]:
    """What a finished run left, for each of ``KINDS``."""
    result = interfuse.load_run(path)
    models = {
        f"client {client} {key}": digest(tensor.dtype, list(tensor.shape), tensor.contiguous().numpy().tobytes())
        for client in range(COMMON["clients"])
        for key, tensor in result.model(client).state_dict().items()
    }
    found = {"tensors": committed(path / "commits"), "models": models}
    moved = rows_of(path / "ledger.jsonl")
    measuring = [row for row in moved if row["heading"] == "evaluation"]
    lines = {
        "metrics": rows_of(path / "metrics.jsonl"),
        "ledger": [row for row in moved if row["heading"] != "evaluation"],
    }
    found |= {name: dict(flat(rows, "line")) for name, rows in (lines | {"ledger of evaluation": measuring}).items()}
    if empty := [kind for kind in KINDS if not found[kind]]:
        raise RuntimeError(f"{path} has no {empty[0]}")
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, as far as two runs that are equal have them in common."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if row.get("accuracy", {}).get("evaluated") == []:  # all clients: older runs do not say so
            del row["accuracy"]["evaluated"]
    return [{key: renamed(key, value) for key, value in row.items() if key != "seconds"} for row in rows]


def renamed(key: str, value: Any) -> Any:
    return RENAMED.get(value, value) if key in ("handler", "kind") else value


def committed(commits: Path) -> Flat:
    """Digests of the tensors of the last commit, by client or server and key.

    File names count for nothing but the client's number, so that one key of the server can have several tensors.
    """
    manifests = sorted(commits.rglob("*.json"), key=lambda path: (len(path.name), path.name))
    manifest = json.loads(manifests[-1].read_text(encoding="utf-8"))
    named = [v for k, v in flat(manifest) if str(v).endswith(".safetensors") and not k.startswith("best")]
    found: dict[str, list[str]] = {}
    newest: dict[str, bytes] = {}
    for name in named:
        content = (commits / name).read_bytes()
        parts = {key: data for key, _, _, data in inside(content)}
        # a pack has a file in each of its tensors, and the last pack counts; before there were packs, a file was a part
        newest |= parts if set(parts) and all(map(PART.match, parts)) else {name: content}
    for name, content in newest.items():
        number = re.search(r"client\D*(\d+)", name)
        owner = f"client {int(number[1])}" if number else "server"
        for key, dtype, shape, data in inside(content):
            found.setdefault(canonical(f"{owner} {key}"), []).append(digest(dtype, shape, data))
    return {name: " ".join(sorted(values)) for name, values in found.items()}


PART = re.compile(r"(client-\d+|server(-.*)?)$")
"""The name of a part in a pack."""


def inside(content: bytes) -> Iterator[tuple[str, str, list[int], bytes]]:
    """The tensors of a safetensors file: name, type, shape, data. The format: length of the header, header, data."""
    start = 8 + int.from_bytes(content[:8], "little")
    for key, entry in json.loads(content[8:start]).items():
        if key != "__metadata__":
            first, last = (start + offset for offset in entry["data_offsets"])
            yield key, entry["dtype"], entry["shape"], content[first:last]


OWNED = (
    (r"(client \d+) networks/model/", r"\1 model/"),
    (r"(client \d+) optimizers/", r"\1 optimizer/"),
    (r"(client \d+) order/place", r"\1 order"),
    (r"(client \d+) begun", r"\1 created"),
    (r"server (state|optimizers|networks/[^/]+)/", "server "),
)
"""How one owned tensor is named since all of a party's stand together, and how it was named before."""


def canonical(name: str) -> str:
    for new, old in OWNED:
        name = re.sub(f"^{new}", old, name)
    return name


def digest(dtype: object, shape: list[int], data: bytes) -> str:
    return hashlib.sha256(f"{dtype} {shape} ".encode() + data).hexdigest()


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The innermost values, each with the way to it."""
    if not (value and isinstance(value, dict | list)):
        yield name, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value, 1):
        yield from flat(inner, f"{name} {key}".lstrip())


def compared(a: Mapping[str, Flat], b: Mapping[str, Flat], names: tuple[str, ...] = TREES) -> dict[str, str]:
    """Of each kind the first difference of two runs; nothing where they are equal."""
    if errors := [f"{name}: {side['error']}" for name, side in zip(names, (a, b), strict=True) if "error" in side]:
        return {"runs": "; ".join(errors)}
    found = {kind: difference(a[kind], b[kind], names) for kind in KINDS}
    before, after = (sorted(" ".join(side["tensors"].values()).split()) for side in (a, b))
    if before == after and a["tensors"].keys() != b["tensors"].keys():
        print(f"  the same tensors have other names: {found['tensors']}")
        found["tensors"] = ""
    return found


def difference(a: Flat, b: Flat, names: tuple[str, ...]) -> str:
    """The first difference, with both values."""
    keys = [key for key in a | b if key not in a or key not in b or a[key] != b[key]]
    if not keys:
        return ""
    values = [f"{side.get(keys[0], 'nothing')!s:.24} ({name})" for name, side in zip(names, (a, b), strict=True)]
    return f"{keys[0]}: {', '.join(values)}; {len(keys)} of {len(a | b)} differ"


def told(found: Mapping[str, str]) -> str:
    words = {kind: "FAILED" if kind == "runs" else "DIFFER" for kind in found}
    return ", ".join(f"{kind} {words[kind]} [{text}]" if text else f"{kind} equal" for kind, text in found.items())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path, help="scratch folder, with the other tree in tree/")
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args()
    methods = given.methods or list(RUNS)
    if unknown := set(methods) - set(RUNS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    if given.child:
        carry_out_all(methods, given.work)
        return 0
    children, folders = [], [given.work / "old", given.work / "new"]
    for folder, tree in zip(folders, (given.work / "tree", Path(__file__).parents[1]), strict=True):
        folder.mkdir()
        environment = os.environ | {"PYTHONPATH": str((tree / "src").resolve()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--child", str(folder), *methods]
        children.append(subprocess.Popen(command, env=environment))
    if any([child.wait() for child in children]):
        return 1
    old, new = (json.loads((folder / "found.json").read_text(encoding="utf-8")) for folder in folders)
    report: dict[str, dict[str, dict[str, str]]] = {}
    for method in methods:
        rows = {variant: compared(old[method][variant], new[method][variant]) for variant in VARIANTS}
        for variant, row in rows.items():
            print(f"{method} {variant}: {told(row)}")
        one, *others = VARIANTS
        within = {
            f"{tree}, {other}": compared(found[method][one], found[method][other], (one, other))
            for (tree, found), other in product(zip(TREES, (old, new), strict=True), others)
        }
        unequal = [
            f"{name}: {'not to be compared' if 'runs' in row else told(row)}"
            for name, row in within.items()
            if any(row.values())
        ]
        print(f"{method} within each tree: {'; '.join(unequal) or ' == '.join(VARIANTS)}", flush=True)
        report[method] = rows | within
    if given.json:
        given.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    same = not any(text for rows in report.values() for row in rows.values() for text in row.values())
    print("everything is equal" if same else "there are differences")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
