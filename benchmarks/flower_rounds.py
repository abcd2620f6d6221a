"""A round on Flower: interfuse's FedAvg and Flower's own, simulated and deployed on loopback; and a local run.

    python benchmarks/flower_rounds.py [--clients 4] [--rounds 3] [--out docs/results/flower-rounds.md]

The work is next to none (a logistic regression on 60 rows), so that what is left is the way of the messages. Seconds of
a round are a median: of the server's work and the calls as ``metrics.jsonl`` has them, and of the times between the
moments at which Flower's FedAvg begins to configure a round. Memory is the largest resident size of each kind of
process, looked at ten times a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import tomli_w

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
Memory = dict[str, float]

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
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = ["| what | seconds a round | largest process of each kind, MiB |", "|---|---|---|"]

    def add(what: str, seconds: list[float], memory: Memory) -> None:
        sizes = ", ".join(f"{kind} {size:.0f}" for kind, size in memory.items())
        lines.append(f"| {what} | {statistics.median(seconds):.3g} | {sizes} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory(prefix="if-") as place:
        folder = Path(place)
        add("local, 1 worker", *_local(folder / "l", given.clients, given.rounds))
        for simulated in (True, False):
            kind = "simulated" if simulated else "deployed"
            add(f"FedAvg of Flower, {kind}", *_theirs(folder / kind[0], given.clients, given.rounds, simulated))
            add(f"`fedavg` on Flower, {kind}", *_ours(folder / f"o{kind[0]}", given.clients, given.rounds, simulated))
    if given.out is not None:
        command = f"`python benchmarks/flower_rounds.py --clients {given.clients} --rounds {given.rounds}`"
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
    """The largest resident size of each kind of process of Flower and ours, in MiB, while the block lasts."""
    found: Memory = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    words = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    lines = status.read_text()
                except OSError:
                    continue  # it has just ended
                kind = next((kind for kind, part in KINDS.items() if part in words), None)
                if kind is not None and "VmRSS:" in lines:
                    size = int(lines.split("VmRSS:")[1].split()[0]) / 1024
                    found[kind] = max(size, found.get(kind, 0.0))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
