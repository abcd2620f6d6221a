"""FedAvg: average parameters, key by key over the clients that hold them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from interfuse.aggregation import BufferPolicy, use_batch_statistics
from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.handler import on_client
from interfuse.message import Disclosure, NamedTensors, State
from interfuse.method import BUFFERS, NOTHING, Count, Fraction, Method, NonNegative, Steps
from interfuse.methods.local import Local
from interfuse.parameters import WeightRule, Weights, averaged, held, initial_weights
from interfuse.server import Server
from interfuse.training import LearningRate, Optimizer, OptimizerName, cross_entropy


class Global(State):
    """The server's model: every tensor that some client holds."""

    weights: NamedTensors


@dataclass(frozen=True)
class FedAvg(Method):
    """Federated averaging (McMahan et al., AISTATS 2017), layer-wise where clients hold different depths of one model.

    With one architecture this is the published method. With nested depths every tensor is averaged over the clients
    that hold its key (FedIN, arXiv:2304.00759, eq. 19).
    """

    discloses = frozenset({Disclosure.PARAMETERS})

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    local_epochs: Steps = 1  # E: epochs of a client in a round
    local_steps: Steps = 0  # steps instead of local_epochs, where above 0
    batch_size: Count = 32  # B: samples of a step
    lr: LearningRate = 0.01  # learning rate
    optimizer: OptimizerName = "sgd"  # sgd, adam or adamw; starts anew each round
    momentum: NonNegative = 0.0  # of sgd
    weights: WeightRule = "samples"  # clients count by their samples, or uniform
    buffers: BufferPolicy = BufferPolicy.AGGREGATE  # aggregate, local, batch-statistics or recalibrate

    def keeps(self) -> frozenset[str]:
        return frozenset({BUFFERS}) if self.buffers is BufferPolicy.LOCAL else NOTHING

    def start(self, server: Server[Global], clients: Clients) -> Global:
        return Global(initial_weights(server, clients, self.buffers))

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        replies = chosen.call(self.train, held(server.state.weights, chosen))
        sent = {client: reply.tensors for client, reply in replies.items()}
        server.state = Global(averaged(server.state.weights, sent, chosen.profiles, self.weights))

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        client.fit(
            cross_entropy, lr=self.lr, batch_size=self.batch_size, optimizer=Optimizer(self.optimizer, self.momentum),
            steps=self.local_steps or None, epochs=None if self.local_steps else self.local_epochs,
        )  # fmt: skip
        return Weights(client.tensors(buffers=self.buffers))

    def prepare_evaluation(self, server: Server[Global], clients: Clients) -> None:
        clients.call(self.receive, held(server.state.weights, clients))

    @on_client
    def receive(self, client: Client, received: Weights) -> None:
        client.model.load(received.tensors)
        if self.buffers is BufferPolicy.RECALIBRATE:
            client.recalibrate(self.batch_size)

    def predict(self, client: Client, x: Tensor) -> Tensor:
        with use_batch_statistics(client.model) if self.buffers is BufferPolicy.BATCH_STATISTICS else nullcontext():
            return super().predict(client, x)

    def alone(self) -> Method:
        return Local(
            local_steps=self.local_steps, local_epochs=0 if self.local_steps else self.local_epochs,
            batch_size=self.batch_size, lr=self.lr, optimizer=self.optimizer, keep_optimizer=False,
            participation=self.participation, momentum=self.momentum,
        )  # fmt: skip
