"""A client's own training: for how long, with which optimizer. The one declaration of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from interfuse.client import Client
from interfuse.errors import ConfigError
from interfuse.method import ALTERNATIVES, Count, Fraction, Method, NonNegative, Steps, usual_amount
from interfuse.training import Fitted, LearningRate, Objective, Optimizer, OptimizerName


@dataclass(frozen=True)
class OwnTraining(Method):
    """Methods whose clients train on their own data, for epochs or for steps.

    Of ``local_epochs`` and ``local_steps`` one is given, never both; with neither it is what :attr:`usual` says. Local,
    beside a method, takes its settings of these names.
    """

    usual: ClassVar[Mapping[str, Any]] = {"local_epochs": 1}

    local_epochs: Count | None = None  # E: epochs of a client in a round; instead of local_steps
    local_steps: Steps | None = None  # steps of a client in a round; instead of local_epochs
    batch_size: Count = 32  # B: samples of a step
    lr: LearningRate = 0.01  # learning rate of clients
    optimizer: OptimizerName = "sgd"  # sgd, adam or adamw
    momentum: NonNegative = 0.0  # of sgd
    weight_decay: NonNegative = 0.0  # of the optimizer
    keep_optimizer: bool = True  # False starts the optimizer anew each round

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: getattr(self, name) for name in ALTERNATIVES if getattr(self, name) is not None}
        if len(given) > 1:
            values = " and ".join(f"{name} = {value}" for name, value in given.items())
            raise ConfigError(
                f"{type(self).__name__}: {values}: a client trains for epochs or for steps; leave one out"
            )
        for name, value in ({} if given else usual_amount(type(self))).items():
            object.__setattr__(self, name, value)

    def rows_of_a_step(self, samples: int) -> Mapping[str, int]:
        return dict.fromkeys(("base", "modular"), min(self.batch_size, samples))

    def how(self, slots: str = "model") -> dict[str, Any]:
        """Options of ``fit``: the rate, the optimizer, and the name under which its state is kept, where it is."""
        optimizer = Optimizer(self.optimizer, self.momentum, self.weight_decay)
        return {"lr": self.lr, "optimizer": optimizer, "keep_optimizer": slots if self.keep_optimizer else None}

    def positions(self, client: Client[Any]) -> list[np.ndarray]:
        """Where the batches of a client's training of a round lie in its share, in order. They count as taken."""
        if self.local_steps is not None:
            return [client.order.take(self.batch_size) for _ in range(self.local_steps)]
        return [*client.order.epochs(self.local_epochs or 0, self.batch_size)]

    def fit(self, client: Client[Any], losses: Objective | Mapping[str, Objective], **options: Any) -> Fitted:
        """A client's training of a round; ``options`` are further ones of :meth:`.Client.fit`."""
        amount = {"steps": self.local_steps, "epochs": self.local_epochs, "batch_size": self.batch_size}
        network = options.get("network", "model")
        slots = network if isinstance(network, str) else "+".join(network)
        return client.fit(losses, **amount | self.how(slots) | options)


@dataclass(frozen=True)
class TrainingInTurns(OwnTraining):
    """Base block and modular block in turn, as in IFL, or the whole model at once."""

    usual = {"local_steps": 10}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round, as the method beside it draws them
    modular_steps: Steps | Literal["clients"] = 0  # steps a round on the modular block; or as many as clients take part
    modular_most: Steps = 0  # with modular_steps = "clients": at most so many; 0: no bound
    modular_lr: LearningRate = 0.01  # learning rate of the modular block where the blocks take turns

    def rows_of_a_step(self, samples: int) -> Mapping[str, int]:
        rows = super().rows_of_a_step(samples)
        return {"base": rows["base"]} if self.modular_steps else rows

    def turns(self, clients: int) -> int:
        """Steps a round on the modular block in a run of so many clients."""
        drawn = max(1, round(self.participation * clients))
        return min(drawn, self.modular_most or drawn) if self.modular_steps == "clients" else self.modular_steps
