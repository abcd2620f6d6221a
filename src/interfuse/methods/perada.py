"""PerAda: personal adapters near averaged ones, and the average learns from what all answer on public rows."""

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
from interfuse.families.mutual import divergences
from interfuse.families.personal_adapters import PersonalAdapters
from interfuse.families.taught_averages import Lesson, TaughtAverages
from interfuse.messages import NamedTensors
from interfuse.models import SplitModel
from interfuse.training import Rate


def near_teacher(model: SplitModel, batch: Batch, step: int, *, temperature: float) -> Tensor:
    """KL(softmax(t / T) ‖ softmax(f(x) / T)), a mean over rows whose targets are the teacher's logits t."""
    return divergences(model(batch.x) / temperature, batch.y / temperature).mean()


@dataclass(frozen=True)
class PerAda(TaughtAverages, PersonalAdapters):
    """Personal adapters with a taught average (Xie et al., CVPR 2024, arXiv:2302.06637), as in FedMosaic's release.

    Clients train as in Ditto on adapters. Then the mean adapters of each architecture learn, on public rows without
    their labels, what clients of all architectures answer in the mean with the adapters that they send: that is the one
    way between unlike models. A client answers with its personal adapters.

    Not taken over: in the release the teachers answer with their personal adapters, which the paper says never travel,
    for no reason but the state that a module is left in; the personal ones are averaged too, see
    :class:`interfuse.methods.fedsim.FedSim`; and across families of models a teacher's probabilities are added to the
    logits of others. PerAda's code distils with Adam at a rate of its own, and keeps the best of many steps by
    validation data.
    """

    origin = "FedMosaic's release"
    usual = {"local_steps": 50}

    temperature: Rate = 2.0  # of answers in the divergence; 1 in PerAda's code

    def teachers(self, clients: Clients, logits: Mapping[ClientId, Tensor]) -> Float[Tensor, "teachers rows classes"]:
        return torch.stack(list(logits.values())).mean(0, keepdim=True)

    def learnt_from(self, client: Client[Any], lesson: Lesson) -> NamedTensors:
        learn = partial(near_teacher, temperature=self.temperature)
        return self.taught(client, lesson.adapters.tensors, learn, lesson.rows, lesson.teachers[0])
