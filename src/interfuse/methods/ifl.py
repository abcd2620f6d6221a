"""IFL: share fusion-layer outputs, never parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ConfigError
from interfuse.families.fusion import FusionOutputs, FusionPairs, FusionSharing, Mixtures, shuffled
from interfuse.handler import on_client
from interfuse.messages import Disclosure, State
from interfuse.method import Count, Fraction, Method, NonNegative, Steps
from interfuse.methods.local import Local
from interfuse.server import Server
from interfuse.training import LearningRate, Objective, OptimizerName

__all__ = ["IFL", "FusionOutputs", "FusionPairs"]


class Late(State):
    """Pairs that wait for a later round, where a method uses them late; otherwise none."""

    pairs: FusionPairs


def check_plain(method: IFL) -> None:
    """Check that a method that shares pairs in its own way is not asked to do so in one of IFL's.

    Raises:
        ConfigError: it is; says by which settings.
    """
    plain = {"participation": 1.0, "deadline": 0.0, "one_round_late": False, "pairs": "all", "downlink": "all"}
    if set_ := [name for name, value in plain.items() if getattr(method, name) != value]:
        raise ConfigError(f"{type(method).__name__} shares pairs in its own way; {', '.join(set_)}: only for ifl")


@dataclass(frozen=True)
class IFL(FusionSharing, Method):
    """Interoperable federated learning (Krouka and Bennis, arXiv:2509.22823).

    Every client owns a base block and a modular block; they agree on the width of the fusion layer between them. A
    round trains the base blocks alone, shares one minibatch of fusion-layer outputs of each client, and trains every
    modular block on all of them. Any base block then works with any modular block.
    """

    local_steps: Steps = 10  # tau: base-block steps between two exchanges
    batch_size: Count = 32  # B: samples of a step, and of an upload
    base_lr: LearningRate = 0.01  # eta_b: learning rate of the base block
    modular_lr: LearningRate = 0.01  # eta_m: learning rate of the modular block
    modular_update: Literal["sequential", "joint"] = "sequential"  # a step for each client's pair, or one on all
    optimizer: OptimizerName = "sgd"  # sgd (the paper's), adam or adamw
    keep_optimizer: bool = True  # blocks and optimizer both stay with the client; False starts anew each round
    pairs: Literal["all", "own", "shuffled"] = "all"  # controls: each client its own alone; labels of another row
    one_round_late: bool = False  # modular blocks learn from the pairs of the round before
    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    deadline: NonNegative = 0.0  # seconds, virtual in a simulation, that each half of a round waits; 0: for all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs == "own" and (self.downlink != "all" or self.one_round_late):
            ignored = "one_round_late" if self.downlink == "all" else f"downlink = {self.downlink!r}"
            raise ConfigError(f"pairs = 'own': each client gets its own pair alone, at once; leave {ignored} out")
        if self.downlink == "pairs" and self.downlink_rows < self.batch_size:
            raise ConfigError(
                f"downlink_rows = {self.downlink_rows}: with downlink = 'pairs' not one pair of batch_size = "
                f"{self.batch_size} rows may go down; allow at least as many rows, or use downlink = 'rows'"
            )

    def start(self, server: Server[Late], clients: Clients) -> Late:
        return Late(FusionPairs(()))

    def round(self, server: Server[Late], clients: Clients) -> None:
        outputs = clients.sample(self.participation).call(self.train_base, deadline=self.deadline or None)
        clients = clients.only(outputs)  # the others are away, or still at their base blocks
        if self.pairs == "own":
            clients.call(self.train_modular, {c: FusionPairs((own,) * len(outputs)) for c, own in outputs.items()},
                         deadline=self.deadline or None)  # fmt: skip
            return
        given = FusionPairs(tuple(outputs.values()))
        if self.pairs == "shuffled":
            given = FusionPairs(tuple(shuffled(pair, server.generator) for pair in given.pairs))
        if self.one_round_late:
            given, server.state = server.state.pairs, Late(given)
        if given.pairs and self.downlink == "mixed":
            clients.call(self.train_on_mixtures, self.mixtures(given, server), deadline=self.deadline or None)
        elif given.pairs:
            clients.call(self.train_modular, self.part(given, server, self.batch_size), deadline=self.deadline or None)

    def fit_base(self, client: Client) -> None:
        """The base phase: tau steps on the base block, the modular block frozen."""
        client.fit(
            client.loss, train="base", steps=self.local_steps, batch_size=self.batch_size, lr=self.base_lr,
            optimizer=self.optimizer, keep_optimizer="base" if self.keep_optimizer else None,
        )  # fmt: skip

    @on_client
    def train_base(self, client: Client) -> FusionOutputs:
        self.fit_base(client)
        positions = client.order.take(self.batch_size)
        batch = client.data.train(positions)
        with client.model.evaluating():
            return FusionOutputs(client.model.base(batch.x), self.reported(client, positions, batch.y))

    @on_client
    def train_modular(self, client: Client, fused: FusionPairs) -> None:
        batches = [Batch(pair.z, pair.y) for pair in fused.pairs]
        if self.modular_update == "joint":
            batches = [Batch(torch.cat([b.features for b in batches]), torch.cat([b.y for b in batches]))]
        self.fit_modular(client, batches, self.likelihood(client))

    @on_client
    def train_on_mixtures(self, client: Client, mixtures: Mixtures) -> None:
        rows = torch.arange(len(mixtures.z), device=mixtures.z.device)
        size = len(rows) if self.modular_update == "joint" else self.batch_size
        batches = [Batch(mixtures.z[part], part) for part in torch.split(rows, size)]
        self.fit_modular(client, batches, self.mixed_likelihood(mixtures.y))

    def fit_modular(self, client: Client, batches: list[Batch], loss: Objective) -> None:
        client.fit(
            loss, train="modular", batches=batches, lr=self.modular_lr,
            optimizer=self.optimizer, keep_optimizer="modular" if self.keep_optimizer else None,
        )  # fmt: skip

    def retains(self) -> frozenset[Disclosure]:
        return super().retains() if self.one_round_late else frozenset()

    def alone(self) -> Method:
        most = self.most_batches(self.batch_size)
        turns: int | Literal["clients"] = "clients"
        if self.modular_update == "joint":
            turns = 1
        elif self.downlink == "mixed":  # as many mixtures as are asked for, of however few clients
            turns = most
        return Local(
            local_steps=self.local_steps, modular_steps=turns, modular_most=most if turns == "clients" else 0,
            batch_size=self.batch_size, lr=self.base_lr, modular_lr=self.modular_lr, optimizer=self.optimizer,
            keep_optimizer=self.keep_optimizer, participation=self.participation,
        )  # fmt: skip
