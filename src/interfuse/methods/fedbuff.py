"""FedBuff: asynchronous federated averaging with a buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

from interfuse.aggregation import counted_mean, keys_plan
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import Notice
from interfuse.families.averaging import held, initial_weights, nothing_in_common
from interfuse.handler import on_client
from interfuse.messages import Message, NamedTensors, Parameters, Precision, State, Weights
from interfuse.method import NOTHING, Count, Method, NonNegative, Steps
from interfuse.methods.local import Local
from interfuse.server import Server
from interfuse.training import LearningRate, Optimizer, OptimizerName, cross_entropy


class Global(State):
    """The server's model: every tensor that some client holds."""

    weights: NamedTensors


class Change(Message):
    """What training changed: new tensors minus received ones, by key."""

    tensors: Annotated[Parameters, Precision.SPARSE]


@dataclass(frozen=True)
class FedBuff(Method):
    """Federated learning with buffered asynchronous aggregation (Nguyen et al., AISTATS 2022, algorithm 1).

    All clients are at work all the time, each on the model that was the newest when it began. After K changes the
    server adds their mean, each divided by (1 + staleness)^0.5, staleness being the number of the server's models that
    came in between. A round ends with a new model.
    """

    replies: Steps = 0  # K: size of the buffer; 0 is as many as there are clients
    server_lr: NonNegative = 1.0  # eta_g: what the mean change is multiplied by
    damping: NonNegative = 0.5  # a change is divided by (1 + staleness) to this power
    local_epochs: Steps = 1  # epochs of a client on one model
    local_steps: Steps = 0  # Q: steps instead of local_epochs, where above 0
    batch_size: Count = 32  # B: samples of a step
    lr: LearningRate = 0.01  # eta_l: learning rate of clients
    optimizer: OptimizerName = "sgd"  # sgd, adam or adamw; starts anew with each model
    momentum: NonNegative = 0.0  # of sgd

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def start(self, server: Server[Global], clients: Clients) -> Global:
        return Global(initial_weights(server, clients))

    def round(self, server: Server[Global], clients: Clients) -> None:
        weights, updates = server.state.weights, []
        stream = clients.stream(self.train, held(weights, clients).__getitem__)
        for arrival in islice(stream, self.replies or len(clients)):
            scale = self.server_lr / (1 + server.round - arrival.round) ** self.damping
            moved = {key: weights[key] + scale * change for key, change in arrival.reply.tensors.items()}
            updates.append((keys_plan(moved), moved, 1.0))
        server.state = Global(counted_mean(weights, updates))

    @on_client
    def train(self, client: Client, received: Weights) -> Change:
        client.model.load(received.tensors)
        client.fit(
            cross_entropy, lr=self.lr, batch_size=self.batch_size, optimizer=Optimizer(self.optimizer, self.momentum),
            steps=self.local_steps or None, epochs=None if self.local_steps else self.local_epochs,
        )  # fmt: skip
        return Change({key: tensor - received.tensors[key] for key, tensor in client.tensors().items()})

    def deployed(self, server: Server[Global], clients: Clients) -> Mapping[ClientId, Weights]:
        return held(server.state.weights, clients)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return nothing_in_common(profiles)

    def alone(self) -> Method:
        return Local(
            local_steps=self.local_steps, local_epochs=0 if self.local_steps else self.local_epochs,
            batch_size=self.batch_size, lr=self.lr, optimizer=self.optimizer, momentum=self.momentum,
            keep_optimizer=False,
        )  # fmt: skip
