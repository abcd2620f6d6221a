"""FedAvg with Flower's simulation (Ray), a round at a time: the strategy waits for a request before it configures one.

With ``tuned`` a client takes one core, so as many train at once as there are; else Flower's own default of two.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from driver import Channel, keep, options

if __name__ == "__main__":
    keep()  # before threads start; Ray's actors notice only after a while that nobody is there

import torch

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

import workload  # as a whole: it reaches Ray's actors by its name
from workload import read_once, train_epoch, write_weights

MANY = 10**6


def client_app(given: dict[str, Any]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if given["tuned"]:
            torch.set_num_threads(1)
            torch.set_flush_denormal(True)
        problem = read_once(given["problem"], given["layout"])
        model = workload.MODELS[given["model"]]()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        model.to(memory_format=workload.LAYOUTS[given["layout"]])  # type: ignore[call-overload]
        client, epoch = (int(message.content["config"][key]) for key in ("client", "epoch"))
        train_epoch(model, problem.batches(client, epoch, given["batch_size"]), given["lr"], given["dtype"])
        metrics = MetricRecord({"num-examples": len(problem.rows[client])})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app


class Stepped(FedAvg):
    """FedAvg on the clients of a request. Any node may be any client: the message says which."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.channel, self.began = channel, 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        def result(path: Path) -> dict[str, Any]:
            write_weights(path, arrays.to_torch_state_dict())
            return {}

        while len(nodes := list(grid.get_node_ids())) < self.min_available_nodes:  # they register as it starts
            time.sleep(0.1)
        if server_round == 1:
            self.channel.ready()
        cohort = self.channel.next_round(result)
        if cohort is None:
            os._exit(0)  # the benchmark ends what Ray started
        self.began = time.perf_counter()
        return [
            Message(
                RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client, "epoch": epoch})}),
                dst_node_id=node, message_type=MessageType.TRAIN,
            )
            for node, (client, epoch) in zip(nodes, cohort, strict=False)
        ]  # fmt: skip

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        aggregated: tuple[ArrayRecord | None, MetricRecord | None] = super().aggregate_train(server_round, replies)
        if aggregated[0] is None:
            print("no client answered", file=sys.stderr)
            os._exit(1)
        self.channel.answer({"seconds": time.perf_counter() - self.began})
        return aggregated


def main() -> None:
    channel, given = Channel(), options()
    problem = read_once(given["problem"], given["layout"])
    strategy = Stepped(channel)
    strategy.min_available_nodes = len(problem.rows)
    server = ServerApp()

    @server.main()
    def rounds(grid: Grid, context: Context) -> None:
        strategy.start(grid, ArrayRecord(problem.initial()), num_rounds=MANY)

    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}} if given["tuned"] else None
    run_simulation(server, client_app(given), num_supernodes=len(problem.rows), backend_config=backend)


if __name__ == "__main__":
    main()
