"""A round on Flower: interfuse's FedAvg and Flower's own, simulated and deployed on loopback; and a local run.

    python benchmarks/flower_rounds.py [--clients 4 40] [--deployed 4] [--rounds 3] [--out FILE]

The work is next to none (a logistic regression on 60 rows), so that what is left is the way of the messages. Seconds of
a round are a median: of the server's work and the calls as ``metrics.jsonl`` has them, and of the times between the
moments at which Flower's FedAvg begins to configure a round. Memory is the resident size of the largest process of
each kind, and how many there were at most at a time, looked at ten times a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import tomli_w

from driver import descendants
from flower_bits import recipe_of, rows_of
from interfuse.coordination.driver import between_parties
from interfuse.flower.writing import write_app
from interfuse.runs import RunConfig, execute
from interfuse.runs.folder import RunFolder
from on_flower import flower, write_vendor

KINDS = {
    "ServerApp": "flwr-serverapp", "simulation": "flwr-simulation", "SuperLink": "flower-superlink",
    "SuperNode": "flower-supernode", "ClientApp": "flwr-clientapp", "Ray actor": "ray::ClientAppActor",
    "node": "interfuse.cli node",
}  # fmt: skip
"""What the command line of each kind of process has in it."""
Memory = dict[str, tuple[int, float]]
"""By kind: how many processes at most at a time, and the largest of them in MiB."""

_SERVER = '''"""FedAvg, as Flower has it."""

import time

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg


class Timed(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        print(f"began {time.time()}", flush=True)
        return super().configure_train(server_round, arrays, config, grid)


app = ServerApp()


@app.main()
def main(grid, context):
    clients, rounds = context.run_config["clients"], context.run_config["rounds"]
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    arrays = ArrayRecord(torch.nn.Linear(16, 3).state_dict())
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds, train_config=ConfigRecord({"lr": 0.01}))
    print(f"began {time.time()}", flush=True)
'''
_CLIENT = '''"""A logistic regression on rows that are drawn."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    model = torch.nn.Linear(16, 3)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = torch.randn(48, 16), torch.arange(48) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=message.content["config"]["lr"])
    for rows in torch.arange(48).split(8):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    arrays, metrics = ArrayRecord(model.state_dict()), MetricRecord({"num-examples": 48})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="*", default=[4], help="of simulations")
    parser.add_argument("--deployed", type=int, nargs="*", default=[4], help="clients with a SuperNode and a node each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [
        "| clients | what | seconds a round | most processes of each kind at a time, and MiB of the largest |",
        "|---|---|---|---|",
    ]

    def add(clients: int, what: str, seconds: list[float], memory: Memory) -> None:
        sizes = ", ".join(f"{count} {kind} of {size:.0f}" for kind, (count, size) in memory.items())
        lines.append(f"| {clients:,} | {what} | {statistics.median(seconds):.3g} | {sizes} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory(prefix="if-") as place:
        for simulated, numbers in ((True, given.clients), (False, given.deployed)):
            kind = "simulated" if simulated else "deployed"
            for clients in numbers:
                folder = Path(place) / f"{kind[0]}{clients}"
                folder.mkdir()
                add(clients, "local, 1 worker", *_local(folder / "l", clients, given.rounds))
                add(clients, f"FedAvg of Flower, {kind}", *_theirs(folder / "t", clients, given.rounds, simulated))
                add(clients, f"`fedavg` on Flower, {kind}", *_ours(folder / "o", clients, given.rounds, simulated))
    if given.out is not None:
        numbers = {name: " ".join(map(str, getattr(given, name))) for name in ("clients", "deployed")}
        asked = f"--clients {numbers['clients']} --deployed {numbers['deployed']} --rounds {given.rounds}"
        command = f"`python benchmarks/flower_rounds.py {asked}`"
        given.out.write_text(f"# A round on Flower\n\n{command}\n\n" + "\n".join(lines) + "\n")


def _config(folder: Path, clients: int, rounds: int) -> RunConfig:
    folder.mkdir()
    config = recipe_of("fedavg", rows_of(folder, "all", 0, 60 * clients), rounds=rounds, commit=rounds)
    return between_parties(config.model_copy(update={"clients": clients}), clients)


def _local(folder: Path, clients: int, rounds: int) -> tuple[list[float], Memory]:
    config = _config(folder, clients, rounds)
    execute(config, folder / "run")
    return _seconds(folder / "run"), {}


def _ours(folder: Path, clients: int, rounds: int, simulated: bool) -> tuple[list[float], Memory]:
    config = _config(folder, clients, rounds)
    write_app(config, folder / "app", folder / "run", None)
    with flower(folder, simulated=clients * simulated) as made, _watched() as memory:
        for number in range(0 if simulated else clients):
            name = f"n{number}"
            vendor = write_vendor(folder, name, rows_of(folder, name, number, 60), "logistic", ["fedavg"])
            made.supernode(name, made.node(name, vendor))
        _, said = made.run(folder / "app")
    if RunFolder(folder / "run").summary() is None:
        raise SystemExit(said)
    return _seconds(folder / "run"), memory


def _theirs(folder: Path, clients: int, rounds: int, simulated: bool) -> tuple[list[float], Memory]:
    package = folder / "app" / "theirs"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("server_app", _SERVER), ("client_app", _CLIENT)):
        (package / f"{name}.py").write_text(text)
    flwr = {
        "publisher": "interfuse",
        "components": {"serverapp": "theirs.server_app:app", "clientapp": "theirs.client_app:app"},
        "config": {"clients": clients, "rounds": rounds},
    }
    project = {"name": "theirs", "version": "1.0.0", "description": "", "license": "Apache-2.0", "dependencies": []}
    values = {"project": project, "tool": {"flwr": {"app": flwr}}}
    (folder / "app" / "pyproject.toml").write_text(tomli_w.dumps(values))
    with flower(folder, simulated=clients * simulated) as made, _watched() as memory:
        for number in range(0 if simulated else clients):
            made.supernode(f"n{number}", None)
        _, said = made.run(folder / "app")
    began = [float(line.split("began ")[1].split()[0]) for line in said.splitlines() if "began " in line]
    if len(began) <= rounds:
        raise SystemExit(said)
    return [after - before for before, after in pairwise(began)][1:], memory


def _seconds(run: Path) -> list[float]:
    """Of every round but the first, which waits for what is built once."""
    rows = [row for row in RunFolder(run).metrics() if row.round > 1]
    return [float(row.seconds["server"] or 0) + float(row.seconds["calls"] or 0) for row in rows]


@contextmanager
def _watched() -> Iterator[Memory]:
    """Number and memory of each kind of process of Flower and ours while the block lasts."""
    found: Memory = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            now: dict[str, list[float]] = {}
            for process in descendants(os.getpid()):
                status = Path(f"/proc/{process}/status")
                try:
                    words = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    lines = status.read_text()
                except OSError:
                    continue  # it has just ended
                kind = next((kind for kind, part in KINDS.items() if part in words), None)
                if kind is not None and "VmRSS:" in lines:
                    now.setdefault(kind, []).append(int(lines.split("VmRSS:")[1].split()[0]) / 1024)
            for kind, sizes in now.items():
                count, largest = found.get(kind, (0, 0.0))
                found[kind] = max(count, len(sizes)), max(largest, *sizes)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
