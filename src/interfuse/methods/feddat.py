"""FedDAT: an adapter of all learns from a teacher of two adapters, and the teacher from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from interfuse.client import Client
from interfuse.data import Batch, Task
from interfuse.families.adapters import Adapters
from interfuse.families.averaged_adapters import cloned
from interfuse.families.dual_adapters import DualAdapters, mixed
from interfuse.families.mutual import softened
from interfuse.messages import NamedTensors
from interfuse.models import SplitModel
from interfuse.models.adapters import OWN, RECEIVED
from interfuse.training import Rate


def dual_teaching(
    model: SplitModel, batch: Batch, step: int, *, task: Task, frozen: NamedTensors, temperature: float
) -> Tensor:
    """(CE(s) + KL(t ‖ s)) / 2 + (CE(t) + KL(s ‖ t)) / 2, of the student s, which has the adapter of all, and the
    teacher t, which has half of the own adapter and half of that of all as it came; who teaches is held fixed."""
    student, teacher = mixed(model, batch.x, 1.0), mixed(model, batch.x, 0.5, frozen)
    learnt = task.loss(student, batch.y) + softened(student, teacher, temperature)
    return (learnt + task.loss(teacher, batch.y) + softened(teacher, student, temperature)) / 2


@dataclass(frozen=True)
class FedDAT(DualAdapters):
    """Dual-adapter teacher (Chen et al., AAAI 2024, arXiv:2308.12305).

    A step trains the adapter of all, which is averaged, and the own one, which is a half of the teacher; the other half
    is the adapter of all as it came, frozen. A client answers with the teacher.

    The authors and FedMosaic's release make one step after the other on a batch, the second towards what the student
    answered before its own: the same as one step on the sum, but for dropout, and for a third pass that goes without
    gradients. FedMosaic's release has 43 steps for SFT's 100, with that pass counted; here it would be 50.
    """

    origin = "FedMosaic's release"
    usual = {"local_steps": 43}

    temperature: Rate = 2.0  # of answers in divergences, which are multiplied with its square; 3 in FedDAT's code

    def learn(self, client: Client[Any], received: Adapters) -> NamedTensors:
        client.model.load(received.tensors)
        loss = partial(dual_teaching, task=client.task, frozen=received.tensors, temperature=self.temperature)
        self.fit(client, loss, train=(OWN, RECEIVED))
        sent = cloned(client.model.tensors([self.shared]))
        client.model.load(received.tensors)
        return sent
