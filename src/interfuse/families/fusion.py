"""The fusion layer shared: clients send what their base blocks make of a minibatch, modular blocks learn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients, Replies
from interfuse.data import Batch
from interfuse.errors import Notice
from interfuse.families.checks import check_batch
from interfuse.families.holdings import one_a_round
from interfuse.handler import on_client
from interfuse.messages import Features, Message, Rows, State, Targets
from interfuse.method import Count, Fraction, Method, Steps
from interfuse.training import LearningRate, Objective, OptimizerName


class FusionOutputs(Message):
    """One minibatch of a client at the fusion layer: z = base(x), and its targets."""

    z: Features
    y: Annotated[Targets, Rows.UNORDERED]


class FusionPairs(Message):
    """The pairs (z, y) of all clients, in the order of clients, or a part of them."""

    pairs: tuple[FusionOutputs, ...]


class Late(State):
    """Pairs that wait for a later round."""

    pairs: FusionPairs


@dataclass(frozen=True)
class FusionTraining(Method):
    """Methods whose clients own a base and a modular block each, and train them apart."""

    origin = "IFL's paper"

    local_steps: Steps = 10  # tau: base-block steps between two exchanges
    batch_size: Count = 32  # B: samples of a step, and of an upload [interfuse]
    base_lr: LearningRate = 0.01  # eta_b: learning rate of the base block
    modular_lr: LearningRate = 0.01  # eta_m: learning rate of the modular block
    optimizer: OptimizerName = "sgd"  # sgd, adam or adamw
    keep_optimizer: bool = True  # the optimizer stays with its block; False starts it anew each round [interfuse]

    @on_client
    def train_modular(self, client: Client, fused: FusionPairs) -> None:
        """A step of the modular block on each pair, in their order."""
        self.fit_modular(client, batches_of(fused), client.modular_loss)

    def rows_of_a_step(self, samples: int) -> Mapping[str, int]:
        return {"base": min(self.batch_size, samples)}

    def fit_base(self, client: Client[Any]) -> None:
        """The base phase."""
        client.fit(client.loss, steps=self.local_steps, batch_size=self.batch_size, **self.how("base", self.base_lr))

    def fit_modular(self, client: Client[Any], batches: Sequence[Batch], loss: Objective) -> None:
        """The modular phase, a step for each batch of features."""
        client.fit(loss, batches=batches, **self.how("modular", self.modular_lr))

    def how(self, block: str, lr: LearningRate) -> dict[str, Any]:
        """Options of ``fit`` for a block."""
        kept = block if self.keep_optimizer else None
        return {"train": block, "lr": lr, "optimizer": self.optimizer, "keep_optimizer": kept}

    def alone(self) -> dict[str, Any]:
        return {"lr": self.base_lr, "modular_steps": "clients"}


@dataclass(frozen=True)
class SharingFusionOutputs(FusionTraining):
    """Methods whose clients share pairs (z, y) of the fusion layer.

    A round of IFL (Krouka and Bennis, arXiv:2509.22823) is :meth:`train_base` and then, on all pairs,
    :meth:`train_modular`.
    """

    @on_client
    def train_base(self, client: Client) -> FusionOutputs:
        """tau steps on the base block behind the frozen modular block; then the outputs of one more minibatch."""
        self.fit_base(client)
        batch = client.batch(self.batch_size)
        with client.model.evaluating():
            return FusionOutputs(client.model.base(batch.x), batch.y)

    def outputs(self, clients: Clients, deadline: float | None = None) -> Replies[FusionOutputs]:
        """What :meth:`train_base` of these clients brings.

        Raises:
            ClientError: as :func:`.check_batch`, or too few replied.
        """
        sent = clients.call(self.train_base, deadline=deadline)
        for client, pair in sent.items():
            self.check_pair(clients.profiles[client], pair)
        return sent

    def check_pair(self, client: Profile, pair: FusionOutputs) -> None:
        """Check that a pair is of a minibatch, which no client has of more rows than it has samples."""
        check_batch(client.id, pair.y, client.samples)

    def rows_of_an_upload(self, samples: int) -> Mapping[str, int]:
        return {"train_base": min(self.batch_size, samples)}


@dataclass(frozen=True)
class TrainingInRounds(FusionTraining):
    """Training in rounds in which a fraction of the clients takes part: only these train, send, and learn of all.

    The others do nothing and keep their blocks as they are. Steps of a modular block follow the clients of a round.
    """

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation, "its modular block learns from its own pair alone")


@dataclass(frozen=True)
class SharingInRounds(SharingFusionOutputs, TrainingInRounds):
    """Sharing pairs in such rounds."""


def batches_of(fused: FusionPairs) -> list[Batch]:
    """The pairs as batches of features."""
    return [Batch(pair.z, pair.y) for pair in fused.pairs]
