"""FML whose models learn from the meme only where that is sure of its answer. It is not FedType."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.families.memes import MEME, MODEL
from interfuse.families.mutual import MutualLearning, Over, Part, divergence, divergences
from interfuse.method import Steps
from interfuse.models import SplitModel
from interfuse.training import Objective


def threshold(logits: Float[Tensor, "rows classes"], y: Int64[Tensor, "rows"], miscoverage: float) -> Float[Tensor, ""]:
    """The ⌈(n + 1)(1 − δ)⌉-th smallest of n scores 1 − p(y), and 1 where there are fewer scores.

    Of a further row like these the set of all classes with 1 − p at most so has the right one with a probability of at
    least 1 − δ (split conformal prediction; Sadinle et al., JASA 2019).
    """
    scores = 1 - logits.softmax(1).gather(1, y[:, None]).flatten()
    place = math.ceil((len(y) + 1) * (1 - miscoverage))
    return scores.sort().values[place - 1] if 0 < place <= len(y) else scores.new_ones(())


def is_open(meme: Float[Tensor, "batch classes"], most: Float[Tensor, ""], largest: int) -> Float[Tensor, "batch"]:
    """1 for rows whose set of classes has one class at least and ``largest`` at most, else 0."""
    size = (1 - meme.detach().softmax(1) <= most).sum(1)
    return ((size >= 1) & (size <= largest)).to(meme.dtype)


def gated(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    alpha: float,
    beta: float,
    over: Over,
    most: Float[Tensor, ""],
    largest: int,
) -> Tensor:
    """FML's loss, but rows whose gate is closed have the cross entropy alone in the model's loss, at full weight."""
    own, meme = model.inner(MODEL)(batch.x), model.inner(MEME)(batch.x)
    taught = (1 - alpha) * is_open(meme, most, largest)
    distance = divergences(own, meme) / (1 if over == "batch" else own.shape[1])
    of_model = ((1 - taught) * functional.cross_entropy(own, batch.y, reduction="none") + taught * distance).mean()
    of_meme = beta * functional.cross_entropy(meme, batch.y) + (1 - beta) * divergence(meme, own, over)
    return of_model + of_meme


@dataclass(frozen=True)
class FMLUncertaintyGate(MutualLearning):
    """FML with an uncertainty gate: a stand-in of our own where a comparison asks for FedType, and no figure of it is
    one of FedType (Wang et al., ICML 2024, arXiv:2407.03247), whose losses, scores and settings were not at hand.

    In common with what its abstract says are small identical networks that alone travel, and that the two directions of
    teaching differ: the meme always learns from the model, the model from the meme only on samples whose conformal
    prediction set is small. Scores of the client's validation share under the meme that it received set the size of the
    sets anew in each round; a client without one has sets of all classes. So validation data has a say in training.
    With ``largest_set = 0`` the model trains alone; with ``miscoverage = 0``, and all classes as ``largest_set``, it is
    FML.
    """

    miscoverage: Part = 0.1  # delta: part of the samples whose set may lack the right class [interfuse]
    largest_set: Steps = 1  # classes, at most, in the set of a sample on which the model is taught [interfuse]

    def objective(self, client: Client[Any]) -> Objective:
        meme, classes = client.network(MEME), client.dims["classes"]
        logits, y = [torch.zeros(0, classes)], [torch.zeros(0, dtype=torch.int64)]
        with meme.evaluating():
            for batch in client.data.validation():
                logits.append(meme(batch.x).cpu())
                y.append(batch.y.cpu())
        most = threshold(torch.cat(logits), torch.cat(y), self.miscoverage).to(next(meme.parameters()).device)
        loss = partial(gated, alpha=self.alpha, beta=self.beta, over=self.divergence)
        return partial(loss, most=most, largest=self.largest_set)
