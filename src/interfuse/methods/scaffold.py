"""SCAFFOLD: control variates on both sides correct the drift of clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import Notice
from interfuse.handler import on_client
from interfuse.message import Disclosure, Message, NamedTensors, Parameters, State
from interfuse.method import NOTHING, Count, Fraction, Method, Steps
from interfuse.methods.local import Local
from interfuse.parameters import (
    Weights,
    averaged,
    by_architecture,
    held,
    initial_weights,
    nothing_in_common,
    part_of,
)
from interfuse.server import Server
from interfuse.training import Combine, Gradients, LearningRate, Rate, cross_entropy


class Global(State):
    """The server's model w and control variate c, which covers the trainable tensors."""

    weights: NamedTensors
    control: NamedTensors


class Own(State):
    """A client's control variate c_k."""

    control: NamedTensors


class ModelAndControl(Message):
    """w and c down, y and c_k⁺ − c_k up."""

    weights: Parameters
    control: Parameters


def corrected(server: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Combine:
    """The rule g(y) − c_k + c."""

    def combine(gradients: Mapping[str, Gradients], parameters: Mapping[str, Tensor]) -> Gradients:
        return {key: g + (server[key] - own[key]) for key, g in gradients["local"].items()}

    return combine


@dataclass(frozen=True)
class SCAFFOLD(Method):
    """Stochastic controlled averaging (Karimireddy et al., ICML 2020), option II, with plain SGD as its theory assumes.

    Layer-wise as FedAvg: the server's control variate of a key counts all clients that hold the key.
    """

    discloses = frozenset({Disclosure.PARAMETERS})

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    local_epochs: Steps = 1  # E: epochs of a client in a round
    local_steps: Steps = 0  # steps instead of local_epochs, where above 0
    batch_size: Count = 32  # B: samples of a step
    lr: LearningRate = 0.01  # eta_l: learning rate of clients
    server_lr: Rate = 1.0  # eta_g: learning rate of the server

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def start(self, server: Server[Global], clients: Clients) -> Global:
        weights = initial_weights(server, clients)
        trainable = initial_weights(server, clients, BufferPolicy.LOCAL)
        return Global(weights, {key: torch.zeros_like(tensor) for key, tensor in trainable.items()})

    def new_client(self, client: Client[Own]) -> Own:
        return Own({key: torch.zeros_like(p) for key, p in client.model.parameters_of().items()})

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        replies = chosen.call(
            self.train,
            by_architecture(chosen, lambda p: ModelAndControl(part_of(old.weights, p), part_of(old.control, p))),
        )
        mean = averaged(old.weights, {c: r.weights for c, r in replies.items()}, chosen.profiles, "uniform")
        # the server's rate is for what is trained; of statistics the mean itself is taken
        weights = mean | {
            key: w + self.server_lr * (mean[key] - w) for key, w in old.weights.items() if key in old.control
        }
        control = dict(old.control)
        for key in control:
            holders = sum(key in profile.keys for profile in clients.profiles.values())
            for reply in replies.values():
                if key in reply.control:
                    control[key] = control[key] + reply.control[key] / holders
        server.state = Global(weights, control)

    @on_client
    def train(self, client: Client[Own], received: ModelAndControl) -> ModelAndControl:
        client.model.load(received.weights)
        own = client.state.control
        done = client.fit(
            {"local": cross_entropy}, combine=corrected(received.control, own), lr=self.lr, batch_size=self.batch_size,
            steps=self.local_steps or None, epochs=None if self.local_steps else self.local_epochs,
        )  # fmt: skip
        trained = client.tensors()
        change = {key: torch.zeros_like(c) for key, c in received.control.items()}
        if done.steps:
            rate = done.learning_rate_sum
            change = {key: (received.weights[key] - trained[key]) / rate - c for key, c in received.control.items()}
        client.state = Own({key: own[key] + change[key] for key in own})
        return ModelAndControl(trained, change)

    def prepare_evaluation(self, server: Server[Global], clients: Clients) -> None:
        clients.call(self.receive, held(server.state.weights, clients))

    @on_client
    def receive(self, client: Client[Own], received: Weights) -> None:
        client.model.load(received.tensors)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return nothing_in_common(profiles)

    def alone(self) -> Method:
        return Local(
            local_steps=self.local_steps, local_epochs=0 if self.local_steps else self.local_epochs,
            batch_size=self.batch_size, lr=self.lr, keep_optimizer=False,
            participation=self.participation,
        )  # fmt: skip
