"""Local: no collaboration. The line that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.handler import on_client
from interfuse.method import Count, Fraction, Method, NonNegative, Steps
from interfuse.server import Server
from interfuse.training import LearningRate, Objective, Optimizer, OptimizerName, cross_entropy


@dataclass(frozen=True)
class OwnSteps:
    """How much a client trains without collaboration, and how."""

    local_steps: Steps = 10  # steps a round on the base block, or on the whole model
    local_epochs: Steps = 0  # epochs a round on the whole model instead of local_steps, where above 0
    modular_steps: Steps | Literal["clients"] = 0  # steps a round on the modular block; or as many as clients take part
    modular_most: Steps = 0  # with modular_steps = "clients": at most so many; 0: no bound
    batch_size: Count = 32  # samples of a step
    lr: LearningRate = 0.01  # learning rate
    modular_lr: LearningRate = 0.01  # learning rate of the modular block where the blocks take turns
    optimizer: OptimizerName = "sgd"  # sgd, adam or adamw
    momentum: NonNegative = 0.0  # of sgd
    weight_decay: NonNegative = 0.0  # of the optimizer
    keep_optimizer: bool = True  # False starts the optimizer anew each round

    def stepper(self) -> Optimizer:
        return Optimizer(self.optimizer, self.momentum, self.weight_decay)

    def turns(self, clients: int) -> int:
        """Steps a round on the modular block where so many clients take part."""
        return min(clients, self.modular_most or clients) if self.modular_steps == "clients" else self.modular_steps


@dataclass(frozen=True)
class Local(OwnSteps, Method):
    """Every client trains by itself and sends nothing.

    With ``modular_steps`` the two blocks take turns, as in IFL: the base block for ``local_steps``, then the modular
    block on the client's own samples. Otherwise all steps train the whole model.
    """

    participation: Fraction = 1.0  # fraction of the clients drawn for a round, as the method beside it draws them

    def round(self, server: Server, clients: Clients) -> None:
        clients.sample(self.participation).call(self.train)

    @on_client
    def train(self, client: Client) -> None:
        turns = self.turns(max(1, round(self.participation * client.dims["clients"])))
        client.fit(
            cross_entropy, train="base" if turns else "all", lr=self.lr, batch_size=self.batch_size,
            steps=None if self.local_epochs else self.local_steps, epochs=self.local_epochs or None,
            optimizer=self.stepper(), keep_optimizer="base" if self.keep_optimizer else None,
        )  # fmt: skip
        if turns:
            client.fit(
                cross_entropy, train="modular", lr=self.modular_lr, batch_size=self.batch_size, steps=turns,
                optimizer=self.stepper(), keep_optimizer="modular" if self.keep_optimizer else None,
            )  # fmt: skip


@dataclass(frozen=True)
class LocalTraining:
    """How much a client trains its own model in a round of a method that takes epochs or steps, and how."""

    local_epochs: Steps = 1  # E: epochs of a client in a round
    local_steps: Steps = 0  # steps instead of local_epochs, where above 0
    batch_size: Count = 32  # B: samples of a step
    lr: LearningRate = 0.01  # learning rate of clients
    optimizer: OptimizerName = "sgd"  # sgd, adam or adamw
    momentum: NonNegative = 0.0  # of sgd
    keep_optimizer: bool = True  # False starts the optimizer anew each round

    def train_locally(self, client: Client[Any], objective: Objective) -> None:
        client.fit(
            objective, lr=self.lr, batch_size=self.batch_size, optimizer=Optimizer(self.optimizer, self.momentum),
            steps=self.local_steps or None, epochs=None if self.local_steps else self.local_epochs,
            keep_optimizer="model" if self.keep_optimizer else None,
        )  # fmt: skip

    def alone(self) -> Local:
        return Local(
            local_steps=self.local_steps, local_epochs=0 if self.local_steps else self.local_epochs,
            batch_size=self.batch_size, lr=self.lr, optimizer=self.optimizer, momentum=self.momentum,
            keep_optimizer=self.keep_optimizer,
        )  # fmt: skip
