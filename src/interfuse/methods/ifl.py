"""IFL: share fusion-layer outputs, never parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.handler import on_client
from interfuse.message import Disclosure, Features, Labels, Message, State
from interfuse.method import Count, Method, Steps
from interfuse.methods.local import Local
from interfuse.server import Server
from interfuse.training import Batch, LearningRate, OptimizerName, cross_entropy, modular_cross_entropy


class FusionOutputs(Message):
    """One minibatch of a client at the fusion layer: z = base(x), and its labels."""

    z: Features
    y: Labels


class FusionPairs(Message):
    """The pairs (z, y) of all clients, in the order of clients."""

    pairs: tuple[FusionOutputs, ...]


def shuffled(outputs: FusionOutputs, generator: torch.Generator) -> FusionOutputs:
    """The same features with the same labels, but who belongs to whom is drawn: a control that can teach nothing."""
    return FusionOutputs(outputs.z, outputs.y[torch.randperm(len(outputs.y), generator=generator)])


class Late(State):
    """Pairs that wait for the next round, where they are used one round late; otherwise none."""

    pairs: FusionPairs


@dataclass(frozen=True)
class IFL(Method):
    """Interoperable federated learning (Krouka and Bennis, arXiv:2509.22823).

    Every client owns a base block and a modular block; they agree on the width of the fusion layer between them. A
    round trains the base blocks alone, shares one minibatch of fusion-layer outputs of each client, and trains every
    modular block on all of them. Any base block then works with any modular block.
    """

    discloses = frozenset({Disclosure.FEATURES, Disclosure.LABELS})

    local_steps: Steps = 10  # tau: base-block steps between two exchanges
    batch_size: Count = 32  # B: samples of a step, and of an upload
    base_lr: LearningRate = 0.01  # eta_b: learning rate of the base block
    modular_lr: LearningRate = 0.01  # eta_m: learning rate of the modular block
    modular_update: Literal["sequential", "joint"] = "sequential"  # a step for each client's pair, or one on all
    optimizer: OptimizerName = "sgd"  # sgd (the paper's), adam or adamw
    keep_optimizer: bool = True  # blocks and optimizer both stay with the client; False starts anew each round
    pairs: Literal["all", "own", "shuffled"] = "all"  # controls: each client its own alone; labels of another row
    one_round_late: bool = False  # modular blocks learn from the pairs of the round before

    def start(self, server: Server[Late], clients: Clients) -> Late:
        return Late(FusionPairs(()))

    def round(self, server: Server[Late], clients: Clients) -> None:
        outputs = clients.call(self.train_base)
        if self.pairs == "own":
            clients.call(self.train_modular, {c: FusionPairs((own,) * len(outputs)) for c, own in outputs.items()})
            return
        given = FusionPairs(tuple(outputs.values()))
        if self.pairs == "shuffled":
            given = FusionPairs(tuple(shuffled(pair, server.generator) for pair in given.pairs))
        if self.one_round_late:
            given, server.state = server.state.pairs, Late(given)
        if given.pairs:
            clients.call(self.train_modular, given)

    @on_client
    def train_base(self, client: Client) -> FusionOutputs:
        client.fit(
            cross_entropy, train="base", steps=self.local_steps, batch_size=self.batch_size, lr=self.base_lr,
            optimizer=self.optimizer, keep_optimizer="base" if self.keep_optimizer else None,
        )  # fmt: skip
        batch = client.batch(self.batch_size)
        with client.model.evaluating():
            return FusionOutputs(client.model.base(batch.x), batch.y)

    @on_client
    def train_modular(self, client: Client, fused: FusionPairs) -> None:
        batches = [Batch(pair.z, pair.y.long()) for pair in fused.pairs]
        if self.modular_update == "joint":
            batches = [Batch(torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches]))]
        client.fit(
            modular_cross_entropy, train="modular", batches=batches, lr=self.modular_lr,
            optimizer=self.optimizer, keep_optimizer="modular" if self.keep_optimizer else None,
        )  # fmt: skip

    def retains(self) -> frozenset[Disclosure]:
        return super().retains() if self.one_round_late else frozenset()

    def alone(self) -> Method:
        return Local(
            local_steps=self.local_steps, modular_steps="clients" if self.modular_update == "sequential" else 1,
            batch_size=self.batch_size, lr=self.base_lr, modular_lr=self.modular_lr, optimizer=self.optimizer,
            keep_optimizer=self.keep_optimizer,
        )  # fmt: skip
