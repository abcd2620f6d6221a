"""A global head: one modular block, trained at the server on what clients send, that every client takes over.

Beside it, what blocks of different clients must have in common before features can go from one to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interfuse.client import ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ModelError, Notice
from interfuse.families.holdings import ONE_HEAD, one_a_round, one_of_each_architecture
from interfuse.families.own_training import OwnTraining
from interfuse.messages import NamedTensors, Weights
from interfuse.method import Count, Fraction, Steps
from interfuse.server import Server
from interfuse.training import LearningRate, Objective, modular_cross_entropy

_HEAD = "head"


@dataclass(frozen=True)
class GlobalHead(OwnTraining):
    """The part that methods with a global head have in common: clients keep their base blocks, the server the head.

    Who is not drawn for a round keeps its base block; the head learns from those who are, as in HtFLlib. All clients
    are evaluated with the newest head, as they will begin their next round.
    """

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]
    server_lr: LearningRate = 0.01  # learning rate of the global head
    server_epochs: Steps = 1  # epochs of the global head in a round
    server_batch_size: Count = 32  # rows of a step of the global head

    def keeps(self) -> frozenset[str]:
        return frozenset({"base"})

    def start(self, server: Server[Any], clients: Clients) -> None:
        check_common_head(server, clients)
        server.model(_HEAD, next(iter(clients.profiles.values())).architecture)

    def head(self, server: Server[Any]) -> Weights:
        """The global head, as it travels to the clients."""
        return Weights(server.network(_HEAD).tensors("modular"))

    def train_head(self, server: Server[Any], rows: Batch, objective: Objective = modular_cross_entropy) -> None:
        """Train the global head on rows of features with plain SGD, in an order drawn anew for each epoch."""
        batches = shuffled(rows, self.server_batch_size, self.server_epochs, server.generator)
        server.fit(objective, batches, network=_HEAD, train="modular", lr=self.server_lr)

    def deployed(self, server: Server[Any], clients: Clients) -> Weights:
        return self.head(server)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation, "the global head learns from one client at a time")


def check_common_head(server: Server[Any], clients: Clients) -> None:
    """Check that all modular blocks have the same tensors: keys and shapes, in order.

    Raises:
        ModelError: they differ; names a client for each kind of block, its tensors, and what to do.
    """
    owner: dict[tuple[tuple[str, tuple[int, ...]], ...], Profile] = {}
    for profile in one_of_each_architecture(clients):
        block = server.new_model(profile.architecture).tensors("modular")
        owner.setdefault(tuple((key, tuple(tensor.shape)) for key, tensor in block.items()), profile)
    if len(owner) > 1:
        found = "; ".join(
            f"client {profile.id} ({profile.architecture}) has " + ", ".join(f"{key} {shape}" for key, shape in block)
            for block, profile in owner.items()
        )
        raise ModelError(
            f"modular blocks differ: {found}. The server trains one head for all, so all clients need models with the "
            f"same modular block, for instance --models {ONE_HEAD}"
        )


def check_shared(tensors: NamedTensors, clients: Clients, block: str, remedy: str) -> None:
    """Check that some tensor of a block has two holders, where there are several clients.

    Raises:
        ModelError: none has; names the clients' tensors, and what to do.
    """
    profiles = clients.profiles.values()
    holders = Counter(key for profile in profiles for key in tensors if key in profile.keys)
    if len(profiles) > 1 and max(holders.values(), default=0) < 2:
        found = "; ".join(
            f"client {p.id} ({p.architecture}): {', '.join(key for key in tensors if key in p.keys)}" for p in profiles
        )
        raise ModelError(
            f"no two clients have a tensor of the {block} in common, so there is nothing to average: {found}. {remedy}"
        )


def check_same_cuts(clients: Clients, parts: Sequence[str]) -> None:
    """Check that all models have just these parts, and features of one shape between them.

    Raises:
        ModelError: naming a client with other parts, or two clients whose features differ.
    """
    first, *_ = different = one_of_each_architecture(clients)
    for profile in different:
        if tuple(profile.cuts) != tuple(parts):
            raise ModelError(
                f"client {profile.id} ({profile.architecture}) has the parts {', '.join(profile.cuts)}; needed are "
                f"{', '.join(parts)}: take models such as resnet10 and resnet18, or group the stages with regrouped"
            )
        for part in parts[:-1]:
            if profile.cuts[part] != first.cuts[part]:
                raise ModelError(
                    f"features behind the {part}: client {first.id} ({first.architecture}) has shape "
                    f"{first.cuts[part]}, client {profile.id} ({profile.architecture}) {profile.cuts[part]}; all must "
                    "agree. Give clients models of one width, or project features to a common shape"
                )


def shuffled(rows: Batch, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches of rows of features, in an order drawn anew for each epoch; the last of an epoch may be smaller."""
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(rows.y), generator=generator), batch_size):
            yield Batch(rows.features[index], rows.y[index])
