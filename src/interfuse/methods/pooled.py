"""Pooled: everybody's data in one place. The upper bound that federated learning does without."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.holdings import by_architecture
from interfuse.families.own_training import TrainingInTurns
from interfuse.handler import on_client
from interfuse.messages import Data, Disclosure, Labels, Message, State, Weights
from interfuse.method import NOTHING
from interfuse.server import Server
from interfuse.training import LearningRate, cross_entropy


class Samples(Message):
    """A client's whole training share, as stored."""

    x: Data
    y: Labels


class Pool(State):
    """The union of all shares, as stored."""

    x: Tensor
    y: Int64[Tensor, "rows"]


@dataclass(frozen=True)
class Pooled(TrainingInTurns):
    """One model of each architecture, trained on the union of all shares with as many steps as a client takes.

    Its uplink is what handing over the raw data costs, once. An epoch is that of an average client. Steps are those of
    a client that takes part: all models train in each round, however few clients the method beside it draws.
    """

    def rows_of_a_step(self, samples: int) -> Mapping[str, int]:
        return {}  # the server trains, on everybody's

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def start(self, server: Server[Pool], clients: Clients) -> Pool:
        shares = clients.call(self.hand_over).values()
        return Pool(torch.cat([s.x for s in shares]), torch.cat([s.y.long() for s in shares]))

    @on_client
    def hand_over(self, client: Client) -> Samples:
        share = client.data.raw()
        return Samples(share.features, share.y)

    def round(self, server: Server[Pool], clients: Clients) -> None:
        epoch = math.ceil(len(server.state.y) / len(clients) / self.batch_size)
        steps, turns = self.local_steps or (self.local_epochs or 0) * epoch, self.turns(len(clients))
        for architecture in dict.fromkeys(p.architecture for p in clients.profiles.values()):
            self.train(server, architecture, "base" if turns else "all", steps, self.lr)
            self.train(server, architecture, "modular", turns, self.modular_lr)

    def train(self, server: Server[Pool], architecture: str, part: str, steps: int, lr: LearningRate) -> None:
        rows = len(server.state.y)
        epochs = math.ceil(steps * self.batch_size / rows)
        order = [torch.randperm(rows, generator=server.generator) for _ in range(epochs)]
        drawn = torch.split(torch.cat(order)[: steps * self.batch_size], self.batch_size) if order else ()
        server.model(architecture, architecture)
        batches = (Batch(server.inputs(server.state.x[index]), server.state.y[index]) for index in drawn)
        how = self.how(f"{architecture}-{part}") | {"lr": lr}
        server.fit(cross_entropy, batches, network=architecture, train=part, **how)

    def retains(self) -> frozenset[Disclosure]:
        return frozenset({Disclosure.DATA, Disclosure.LABELS})

    def deployed(self, server: Server[Pool], clients: Clients) -> Mapping[ClientId, Weights]:
        def weights(profile: Profile) -> Weights:
            return Weights(server.model(profile.architecture, profile.architecture).tensors())

        return by_architecture(clients, weights)
