"""FedSim: an adapter of all and one of its own, trained in one step, whose logits add up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from interfuse.client import Client
from interfuse.data import Batch, Inputs, Task
from interfuse.families.adapters import Adapters
from interfuse.families.averaged_adapters import cloned
from interfuse.families.dual_adapters import DualAdapters, mixed
from interfuse.messages import NamedTensors
from interfuse.method import Predictor
from interfuse.models import SplitModel
from interfuse.models.adapters import OWN, RECEIVED


def of_both(model: SplitModel, x: Inputs) -> Tensor:
    """The sum of what the model answers with its own adapter and with the one of all."""
    return mixed(model, x, 0.0) + mixed(model, x, 1.0)


def loss_of_both(model: SplitModel, batch: Batch, step: int, *, task: Task) -> Tensor:
    """The task's loss of that sum: its gradient reaches both adapters."""
    return task.loss(of_both(model, batch.x), batch.y)


@dataclass(frozen=True)
class FedSim(DualAdapters):
    """Partial personalisation with simultaneous updates (Pillutla et al., ICML 2022, arXiv:2204.03809), on adapters.

    Which parameters are personal is left open there. As in FedMosaic's release a client has two LoRA adapters, runs its
    model with each, and adds the logits: the paper's algorithm for what is known as a residual model. A step trains
    both; one is averaged, the other stays. A step costs two passes, hence 75 of them where SFT has 100.

    Not taken over: the release averages the personal adapters too and loads that mean over them in every round, so that
    nothing personal is left but the training of the last round.
    """

    origin = "FedMosaic's release"
    usual = {"local_steps": 75}

    def learn(self, client: Client[Any], received: Adapters) -> NamedTensors:
        client.model.load(received.tensors)
        self.fit(client, partial(loss_of_both, task=client.task), train=(OWN, RECEIVED))
        return cloned(client.model.tensors([self.shared]))

    def predictor(self) -> Predictor:
        return of_both
