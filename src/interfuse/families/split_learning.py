"""Split learning: what all methods have in common that cut a model between its client and the server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ConfigError, Notice
from interfuse.families.checks import check_batch
from interfuse.families.holdings import (
    HeldMean,
    WeightRule,
    averaged,
    held,
    initial_weights,
    nothing_in_common,
    one_a_round,
    part_of,
)
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import FeatureGradients, Features, Labels, Message, NamedTensors, State, Weights
from interfuse.method import NOTHING, Fraction
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import modular_cross_entropy, pull_back


class Global(State):
    """Averaged client parts (before the cut; none where they stay with the clients) and server parts (behind it)."""

    fronts: NamedTensors
    tails: NamedTensors


class Smashed(Message):
    """A minibatch at the cut, and its labels."""

    z: Features
    y: Labels


class CutGradient(Message):
    """∂loss/∂z."""

    gradient: FeatureGradients


@dataclass(frozen=True)
class Tail:
    """A model of the server behind the cut. Its optimizer goes under its name."""

    name: str
    model: SplitModel

    def weights(self) -> NamedTensors:
        """A copy of its tensors."""
        return {key: tensor.clone() for key, tensor in self.model.tensors("modular").items()}


@dataclass(frozen=True)
class SplitLearning(OwnTraining):
    """Base blocks are the clients' (fronts), modular blocks the server's (tails): the cut is the fusion layer.

    Means are over the clients that are drawn for a round; of one who is not nothing changes.
    """

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]
    weights: WeightRule = "samples"  # clients count by their samples, or uniform [SplitFed's paper]
    average_clients: bool = True  # False: client parts stay with their clients and never travel [SplitFed's paper]

    def keeps(self) -> frozenset[str]:
        return NOTHING if self.average_clients else frozenset({"base"})

    def start(self, server: Server[Global], clients: Clients) -> Global:
        fronts = initial_weights(server, clients, parts=["base"]) if self.average_clients else {}
        return Global(fronts, initial_weights(server, clients, parts=["modular"]))

    def hand_out_fronts(self, server: Server[Global], clients: Clients) -> None:
        """Put the mean of the client parts in place, where they are averaged."""
        if self.average_clients:
            clients.call(self.deploy, held(server.state.fronts, clients))

    def averaged_fronts(self, server: Server[Global], clients: Clients) -> NamedTensors:
        """The mean of the client parts after training."""
        if not self.average_clients:
            return {}
        mean = HeldMean(server.state.fronts, clients.profiles, self.weights)
        clients.call(self.send, each=lambda client, reply: mean.take(client, reply.tensors))
        return mean.result()

    def tail(self, server: Server[Global], name: str, profile: Profile) -> Tail:
        """A working copy of a client's server part."""
        model = server.scratch_model(name, profile.architecture)
        model.load(part_of(server.state.tails, profile))
        return Tail(name, model)

    def tail_of_each(self, server: Server[Global], clients: Clients) -> dict[ClientId, Tail]:
        """A working copy of the server part for each client."""
        return {client: self.tail(server, f"tail-{client}", profile) for client, profile in clients.profiles.items()}

    def averaged_tails(self, server: Server[Global], clients: Clients, tails: Mapping[ClientId, Tail]) -> NamedTensors:
        """The mean of the server parts after training."""
        trained = {client: tail.model.tensors("modular") for client, tail in tails.items()}
        return averaged(server.state.tails, trained, clients.profiles, self.weights)

    def one_tail(self, server: Server[Global], clients: Clients) -> Tail:
        """A working copy of the server part where there is one for all clients."""
        return self.tail(server, "tail", next(iter(clients.profiles.values())))

    def turns(self, server: Server[Global], clients: Clients) -> list[ClientId]:
        """An order of the clients, drawn for this round."""
        return [clients.ids[place] for place in torch.randperm(len(clients), generator=server.generator).tolist()]

    @on_client.continuing
    def send(self, client: Client) -> Weights:
        client.optimizers.clear()
        return Weights(client.tensors("base"))

    def alone(self) -> dict[str, Any]:
        return {"keep_optimizer": self.keep_optimizer and not self.average_clients}

    def deployed(self, server: Server[Global], clients: Clients) -> Mapping[ClientId, Weights]:
        return held(server.state.fronts | server.state.tails, clients)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return nothing_in_common(profiles) or one_a_round(profiles, self.participation)


@dataclass(frozen=True)
class EndToEnd(SplitLearning):
    """Split learning in which the loss reaches both sides: a step costs an exchange of (z, y) and ∂loss/∂z."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.keep_optimizer or self.average_clients):
            raise ConfigError(
                "keep_optimizer = False: a part that stays with its client keeps its optimizer; average_clients = True "
                "starts both anew"
            )

    def how(self, slots: str = "model") -> dict[str, Any]:
        return super().how() | {
            "keep_optimizer": slots
        }  # a round has many steps; what is averaged starts anew after it

    def steps_of(self, profile: Profile) -> int:
        return self._steps(profile.samples)

    def _steps(self, samples: int) -> int:
        return self.local_steps or (self.local_epochs or 0) * math.ceil(samples / self.batch_size)

    def calls_of_a_round(self, samples: int) -> Mapping[str, int]:
        return {"forward": self._steps(samples)}

    def step(self, server: Server[Global], clients: Clients, tails: Mapping[ClientId, Tail]) -> None:
        """A step of these clients and of the server parts behind them; none of a client where either has to leave its
        batch out."""
        sent = clients.call(self.forward)
        for client, smashed in sent.items():
            check_batch(client, smashed.y, clients.profiles[client].samples, least=0)
        served = {client: self.serve(server, tails[client], z) for client, z in sent.items() if len(z.y)}
        if answers := {client: gradient for client, gradient in served.items() if gradient is not None}:
            clients.call(self.backward, answers)

    def serve(self, server: Server[Global], tail: Tail, sent: Smashed) -> CutGradient | None:
        """A step of a server part; answers with the gradient of the cut before the step."""
        z = sent.z.detach().requires_grad_()
        batches = [Batch(z, sent.y.long())]
        server.fit(modular_cross_entropy, batches, network=tail.name, train="modular", **self.how(tail.name))
        return None if z.grad is None else CutGradient(z.grad)

    def rows_of_an_upload(self, samples: int) -> Mapping[str, int]:
        return {"forward": min(self.batch_size, samples)}

    @on_client.continuing
    def forward(self, client: Client) -> Smashed:
        batch = client.scratch["batch"] = client.front(client.batch(self.batch_size))
        return Smashed(batch.features, batch.y)

    @on_client.continuing
    def backward(self, client: Client, received: CutGradient) -> None:
        batch = client.scratch["batch"]
        loss = partial(pull_back, gradient=received.gradient)
        client.fit(loss, batches=[batch], train="base", **self.how("front"))
