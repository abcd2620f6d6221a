"""MOON: features drawn to those of the server's model, and away from those of the client's own last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch, Task
from interfuse.families.averaging import AveragingModels, Global
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import NonNegative
from interfuse.models import SplitModel, run_with
from interfuse.server import Server
from interfuse.training import Objective, Rate


class Previous(State):
    """The model with which a client last ended a round; nothing before its first."""

    weights: NamedTensors


def contrast(
    z: Float[Tensor, "batch d"],
    z_global: Float[Tensor, "batch d"],
    z_previous: Sequence[Float[Tensor, "batch d"]],
    temperature: float,
) -> Float[Tensor, ""]:
    """ℓ_con, mean over the batch (MOON, eq. 3): how hard z_global is to tell from z_previous by the cosine with z."""
    cosines = [functional.cosine_similarity(z, other) for other in (z_global, *z_previous)]
    return -functional.log_softmax(torch.stack(cosines, 1) / temperature, dim=1)[:, 0].mean()


def contrastive(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    received: NamedTensors,
    previous: Sequence[NamedTensors],
    mu: float,
    temperature: float,
    task: Task,
) -> Tensor:
    """The task's loss plus μ ℓ_con between the model in training, the one received, and the client's previous one."""
    with torch.no_grad():
        z_global, *z_previous = (run_with(model, own, batch.x, "base") for own in (received, *previous))
    z = model.base(batch.x)
    return task.loss(model.modular(z), batch.y) + mu * contrast(z, z_global, z_previous, temperature)


@dataclass(frozen=True)
class MOON(AveragingModels):
    """Model-contrastive learning (Li et al., CVPR 2021), with the authors' defaults.

    Features z are those of the fusion layer: a projection head, as the paper has it there, is a matter of the model.
    Both other models stay as they are and are run in evaluation mode. Clients that never took part have no previous
    model, so nothing to be drawn away from: they train on cross entropy alone.
    """

    origin = "MOON's code"
    usual = {
        "local_epochs": 5,
        "batch_size": 64,
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-5,
        "weights": "samples",
    }

    mu: NonNegative = 1.0  # weight of the contrast, a mean over the batch
    temperature: Rate = 0.5  # tau: what cosines are divided by

    def start(self, server: Server[Any], clients: Clients) -> Global:
        self.check_buffers(clients, BufferPolicy.AGGREGATE, BufferPolicy.LOCAL)
        return super().start(server, clients)

    def new_client(self, client: Client[Previous]) -> Previous:
        return Previous({})

    @on_client
    def train(self, client: Client[Previous], received: Weights) -> Weights:
        client.model.load(received.tensors)
        self.fit(client, self.objective(client, received))
        client.state = Previous({key: tensor.clone() for key, tensor in client.model.tensors().items()})
        return Weights(client.tensors(buffers=self.buffers))

    def objective(self, client: Client[Previous], received: Weights) -> Objective:
        # copies of the model: values that are laid out as it wants them
        own = client.model.frozen({}).tensors()
        previous = (client.model.frozen(client.state.weights).tensors(),) if client.state.weights else ()
        bound = partial(contrastive, mu=self.mu, temperature=self.temperature, task=client.task)
        return partial(bound, received=own, previous=previous)
