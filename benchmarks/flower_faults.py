"""What is killed in a deployment on Flower, and what becomes of the run: its bits beside those of a quiet local one.

    python benchmarks/flower_faults.py [--out docs/results/flower-faults.md]

Two vendors with keys, on loopback. In the first run a SuperNode is killed after the first commit, and started again. In
the second a node. In the third the SuperLink with the ServerApp: everything of Flower is started anew, and the same
command goes on. Nobody has a time limit but Flower, which takes a minute to notice a SuperNode that is gone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

import tomli_w

from flower_bits import NAMES, Outcome, compared, recipe_of, rows_of
from interfuse.engines.grpc import make_keys
from interfuse.flower.writing import write_app
from interfuse.runs import parse_config
from interfuse.toml import read_toml
from on_flower import Flower, flower, write_vendor

METHOD, ROUNDS = "ifl", 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = ["| killed | attempts | what the coordinator's log says | equal bits | s |", "|---|---|---|---|---|"]
    for name, fault in (("a SuperNode", supernode), ("a node", node), ("SuperLink and ServerApp", superlink)):
        with tempfile.TemporaryDirectory(prefix="if-") as place:
            outcome, attempts, said = carried_out(Path(place), fault)
        equal = "yes" if outcome.equal and outcome.ledger else "**no**"
        lines.append(f"| {name} | {attempts} | {'; '.join(said)} | {equal} | {outcome.seconds:.0f} |")
        print(lines[-1], flush=True)
    if given.out is not None:
        about = f"`python benchmarks/flower_faults.py`: {METHOD}, {len(NAMES)} vendors with keys, {ROUNDS} rounds."
        given.out.write_text(f"# What is killed on Flower\n\n{about}\n\n" + "\n".join(lines) + "\n")


def supernode(made: Flower, folder: Path) -> None:
    made.end(f"supernode-{NAMES[0]}")
    made.supernode(NAMES[0], folder / f"{NAMES[0]}.sock")


def node(made: Flower, folder: Path) -> None:
    made.end(f"node-{NAMES[0]}")
    made.node(NAMES[0], folder / f"{NAMES[0]}.toml", secure=True)


def superlink(made: Flower, folder: Path) -> None:
    for name in ("superlink", *(f"supernode-{name}" for name in NAMES)):
        made.end(name)
    made.superlink()
    for name in NAMES:
        made.supernode(name, folder / f"{name}.sock")


def carried_out(folder: Path, fault: Callable[[Flower, Path], None]) -> tuple[Outcome, int, list[str]]:
    """A run with a fault after its first commit: its outcome, attempts, and what its coordinator said of it."""
    files = [rows_of(folder, party, seed, 60) for seed, party in enumerate(NAMES)]
    config = recipe_of(METHOD, files[0], rounds=ROUNDS, commit=1)
    make_keys(folder / "keys", NAMES, ["localhost"])
    write_app(config, folder / "app", folder / "run", folder / "keys" / "coordinator")
    began = time.monotonic()
    with flower(folder) as made:
        for number, (party, rows) in enumerate(zip(NAMES, files, strict=True)):
            vendor = write_vendor(folder, party, rows, ("mlp", "logistic")[number], [METHOD])
            keys = {"key": f"keys/{party}/{party}.key", "certificate": f"keys/{party}/{party}.crt"}
            known = {"keys": keys | {"authority": f"keys/{party}/ca.crt"}, "coordinator": "localhost:0"}
            vendor.write_text(tomli_w.dumps(read_toml(vendor) | known))
            made.supernode(party, made.node(party, vendor, secure=True))
        with made.running(folder / "app") as process:
            while process.poll() is None and not list((folder / "run" / "commits").glob("commit-*.json")):
                time.sleep(0.2)
            fault(made, folder)
            if fault is superlink:
                process.kill()
            said = process.communicate()[0].decode(errors="replace")
        if fault is superlink:
            _, said = made.run(folder / "app")
    whole = parse_config(config.model_dump() | {"data": [str(file) for file in files]})
    states = {f"client-{client:05d}": folder / f"state-{party}" for client, party in enumerate(NAMES)}
    outcome = compared(folder, whole, states, time.monotonic() - began, said)
    events = [json.loads(line) for line in (folder / "run" / "coordinator.jsonl").read_text().splitlines()]
    told = [
        shorten(f"{event['event']} {event.get('node', '')}: {event['reason']}", 150)
        for event in events
        if event["event"] in ("left", "goes back", "interrupted")
    ]
    return outcome, int(events[-1].get("attempts", 0)), list(dict.fromkeys(told))


if __name__ == "__main__":
    main()
