"""TAKFL: one student for each teacher, and what they learnt is added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.averaged_adapters import AnsweringAverages
from interfuse.families.averaging import of_each_architecture
from interfuse.families.mutual import softened
from interfuse.families.taught_averages import Lesson, TaughtAverages
from interfuse.messages import NamedTensors
from interfuse.method import NonNegative
from interfuse.models import SplitModel
from interfuse.training import Rate


def near_teacher_and_itself(
    model: SplitModel, batch: Batch, step: int, *, temperature: float, own_temperature: float, gamma: float
) -> Tensor:
    """T² KL(t ‖ f(x)) + γ T_self² KL(s ‖ f(x)), each at its temperature; targets are, side by side, the logits t of the
    teacher and those s of the student before it learnt anything ``[batch, 2, classes]``."""
    answers = model(batch.x)
    to_teacher = softened(answers, batch.y[:, 0], temperature)
    return to_teacher + gamma * softened(answers, batch.y[:, 1], own_temperature)


@dataclass(frozen=True)
class TAKFL(TaughtAverages, AnsweringAverages):
    """Task arithmetic of distilled students (Morafah et al., NeurIPS 2024), as in FedMosaic's release.

    The clients of each architecture are one teacher: their answers on public rows, in the mean. For each teacher a
    student begins anew as the mean adapters of its architecture and learns from that teacher alone, without going far
    from its own answers; what it then differs by is that teacher's task vector. The mean adapters move by the mean of
    the task vectors of all teachers.

    Not taken over: the release subtracts the mean adapters from themselves, so that all task vectors are 0 and nothing
    is distilled at all; a student goes on where the last one ended; across families it takes probabilities for logits.
    TAKFL's code weighs task vectors by what scores best on validation data, one of its modes on the test set.
    """

    origin = "FedMosaic's release"
    usual = {"local_steps": 75}

    temperature: Rate = 3.0  # of answers where a student learns from a teacher
    own_temperature: Rate = 20.0  # of answers where it stays near its own
    gamma: NonNegative = 0.01  # weight of the latter

    def teachers(self, clients: Clients, logits: Mapping[ClientId, Tensor]) -> Float[Tensor, "teachers rows classes"]:
        groups = (torch.stack([logits[client] for client in some]) for _, some in of_each_architecture(clients))
        return torch.stack([group.mean(0) for group in groups])

    def learnt_from(self, client: Client[Any], lesson: Lesson) -> NamedTensors:
        mean, rows = lesson.adapters.tensors, lesson.rows
        own = partial(near_teacher_and_itself, own_temperature=self.own_temperature, gamma=self.gamma)
        learn, itself = partial(own, temperature=self.temperature), self.public_answers(client, mean, rows)
        students = [
            self.taught(client, mean, learn, rows, torch.stack([teacher, itself], 1)) for teacher in lesson.teachers
        ]
        vectors = {key: torch.stack([student[key] - start for student in students]) for key, start in mean.items()}
        return {key: start + vectors[key].mean(0) for key, start in mean.items()}
