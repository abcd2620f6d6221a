"""Ditto: beside the averaged model each client has its own, which stays near it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.averaging import AveragingModels, Global
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import NonNegative
from interfuse.server import Server
from interfuse.training import proximal, total


class Own(State):
    """A client's own model; before its first round there is none."""

    personal: NamedTensors


@dataclass(frozen=True)
class Ditto(AveragingModels):
    """Fair and robust personalisation (Li et al., ICML 2021, arXiv:2012.04221), with PFLlib's defaults.

    A round is FedAvg's, and beside it each client trains a model of its own, which begins as the first one that the
    client received, on its loss plus (λ/2) ‖v − w̄‖², w̄ being what it received in this round. It answers with that. Both
    trainings of a round see the same batches, so the averaged model is FedAvg's, and with λ = 0 the own one is a
    lone client's. The work is twice FedAvg's.
    """

    origin = "PFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.005}

    lam: NonNegative = 0.1  # lambda: weight of the squared distance to the averaged model [interfuse]

    def start(self, server: Server[Global], clients: Clients) -> Global:
        self.check_buffers(clients, BufferPolicy.AGGREGATE)
        return super().start(server, clients)

    def new_client(self, client: Client[Own]) -> Own:
        return Own({})

    @on_client
    def train(self, client: Client[Own], received: Weights) -> Weights:
        place = client.order.saved()
        client.model.load(received.tensors)
        self.fit(client, client.loss)
        sent = {key: tensor.clone() for key, tensor in client.tensors(buffers=self.buffers).items()}
        client.order.restore(place)
        client.model.load(received.tensors | client.state.personal)
        near = partial(proximal, anchor=received.tensors, mu=self.lam)
        self.fit(client, total(client.loss, near), **self.how("personal"))
        client.state = Own({key: tensor.clone() for key, tensor in client.tensors().items()})
        return Weights(sent)

    @on_client
    def deploy(self, client: Client[Own], received: Weights) -> None:
        client.model.load(received.tensors | client.state.personal)
