"""Two adapters in one model, the client's own and one that travels: run apart, or mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from interfuse.data import Batch, Inputs, Task
from interfuse.families.averaged_adapters import AnsweringAverages, AveragingAdapters
from interfuse.messages import NamedTensors
from interfuse.models import SplitModel, run_with
from interfuse.models.adapters import GATE, RECEIVED, Adapted, DualLoRALinear, HalfGate


@dataclass(frozen=True)
class DualAdapters(AveragingAdapters, AnsweringAverages):
    """Methods whose clients have an adapter of their own (``own``) beside one that travels and is averaged
    (``received``), which they train too. In the beginning neither changes the model."""

    shared: ClassVar[str] = RECEIVED

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        made = DualLoRALinear(base, self.rank, self.scale, HalfGate(), self.dropout)
        made.received.requires_grad_(True)
        return made


def mixed(model: SplitModel, x: Inputs, share: float, tensors: NamedTensors | None = None) -> Tensor:
    """What a model answers with (1 − share) · own + share · received, in the mode in which it is.

    Args:
        tensors: In place of the model's own, by key.
    """
    betas = {key: torch.full_like(b, share) for key, b in model.named_buffers() if key.endswith(f".{GATE}.beta")}
    return run_with(model, betas | (tensors or {}), x, training=True)


def mixed_loss(model: SplitModel, batch: Batch, step: int, *, task: Task, share: float) -> Tensor:
    """The task's loss of :func:`mixed`."""
    return task.loss(mixed(model, batch.x, share), batch.y)
