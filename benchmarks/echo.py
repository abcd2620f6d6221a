"""Two exchanges a round that do nothing: what moving messages costs. The method, and the same calls as a bare loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float32
from torch import Tensor

from driver import Channel, Cohort, options, serve
from interfuse import Client, Clients, Disclosure, Message, Method, Server, on_client
from interfuse.engines import local
from interfuse.federation import Federation
from interfuse.method import Fraction
from interfuse.runs import Given, parse_config
from interfuse.runs.loop import assemble


class Numbers(Message):
    """What travels."""

    values: Annotated[Float32[Tensor, "n"], Disclosure.STATISTICS]


@dataclass(frozen=True)
class Echo(Method):
    """Clients answer twice a round with what they were sent."""

    numbers: int = 1024  # values of a message, each way
    participation: Fraction = 1.0  # fraction of the clients drawn for a round

    def round(self, server: Server, clients: Clients) -> None:
        chosen, message = clients.sample(self.participation), Numbers(torch.ones(self.numbers))
        for _ in range(2):
            chosen.call(self.answer, message)

    @on_client
    def answer(self, client: Client, message: Numbers) -> Numbers:
        return message


def ours(given: dict[str, Any], channel: Channel) -> None:
    config = parse_config(
        {
            "method": "local", "data": given["data"], "clients": given["clients"], "models": ["logistic"],
            "fusion_width": 4, "validation": 0, "test": 0,
        },
        "benchmark",
    )  # fmt: skip
    method = Echo(given["numbers"], given["sampled"] / given["clients"])
    setup = assemble(config.model_copy(update={"beside": ()}), Given(method=method))
    federation = Federation(setup, local(setup, given["workers"]))
    federation.start()

    def run_round(cohort: Cohort) -> None:
        federation.run_round()
        federation.exchange.ledger.drain()

    serve(run_round, lambda path: {}, channel)
    federation.engine.close()


def bare(given: dict[str, Any], channel: Channel) -> None:
    torch.set_num_threads(1)
    counted = 0

    def answer(values: Tensor) -> Tensor:
        return values

    def run_round(cohort: Cohort) -> None:
        nonlocal counted
        message = torch.ones(given["numbers"])
        for _ in range(2):
            replies = {}
            for client in range(given["sampled"]):
                counted += message.numel() * message.element_size()
                replies[client] = answer(message.clone()).clone()
                counted += replies[client].numel() * replies[client].element_size()

    def several(cohort: Cohort) -> float:
        """Seconds of a round: one is too short to be timed."""
        began = time.perf_counter()
        for _ in range(100):
            run_round(cohort)
        return (time.perf_counter() - began) / 100

    channel.ready()
    while (cohort := channel.next_round(lambda path: {})) is not None:
        channel.answer({"seconds": several(cohort)})


def main() -> None:
    channel, given = Channel(), options()
    (bare if given["bare"] else ours)(given, channel)


if __name__ == "__main__":
    main()
