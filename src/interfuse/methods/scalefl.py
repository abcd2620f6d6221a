"""ScaleFL: clients hold the first channels and the first exits; early exits learn from the last."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.averaging import AveragingModels, Global
from interfuse.families.submodels import SubModels
from interfuse.messages import Weights
from interfuse.method import NonNegative, Steps
from interfuse.models import SplitModel
from interfuse.models.resnets import exit_logits
from interfuse.server import Server
from interfuse.training import Objective, Rate


def multi_exit(model: SplitModel, batch: Batch, step: int, *, gamma: float, temperature: float) -> Tensor:
    """Σ_j j · (CE_j + γ T² KL(p_J ‖ p_j)) / (1 + … + J) over the exits j = 1 … J, without KL for the last one.

    The probabilities p are of logits divided by T. The last exit teaches and does not learn from it: no gradient goes
    through p_J. KL is the mean over the batch of the sum over classes.
    """
    *early, last = exit_logits(model, batch.features)
    teacher = functional.log_softmax(last.detach() / temperature, dim=1)
    losses = []
    for logits in early:
        student = functional.log_softmax(logits / temperature, dim=1)
        distance = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        losses.append(functional.cross_entropy(logits, batch.y) + gamma * temperature**2 * distance)
    losses.append(functional.cross_entropy(last, batch.y))
    ranks = torch.arange(1, len(losses) + 1, device=last.device)
    return (ranks * torch.stack(losses)).sum() / ranks.sum()


@dataclass(frozen=True)
class ScaleFL(SubModels, AveragingModels):
    """Sub-models scaled in width and depth, with self-distillation (Ilhan et al., CVPR 2023).

    The authors' four levels are resnet18-exits1@0.7, resnet18-exits2@0.7, resnet18-exits3@0.75 and resnet18-exits4.
    Accuracy is that of a client's last exit. The default of the authors' code is gamma = 0, without distillation; where
    they distil, it begins after a quarter of the rounds, and for text gamma is 0.05. Their divergence is a mean over
    batch and classes, this one a sum over classes: their gamma divided by the number of classes is the same here.
    """

    origin = "ScaleFL's code"
    usual = {"local_epochs": 5, "batch_size": 16, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}

    gamma: NonNegative = 0.0  # weight of the distillation, a mean over the batch of sums over classes; 0 is without
    temperature: Rate = 3.0  # T: of the distillation
    warm_up: Steps = 0  # rounds before the distillation begins; the authors take a quarter of all [interfuse]

    def start(self, server: Server[Any], clients: Clients) -> Global:
        _ = server.dims["classes"]  # what exits teach each other
        return super().start(server, clients)

    def objective(self, client: Client[Any], received: Weights) -> Objective:
        gamma = self.gamma if client.round > self.warm_up else 0.0
        return partial(multi_exit, gamma=gamma, temperature=self.temperature)
