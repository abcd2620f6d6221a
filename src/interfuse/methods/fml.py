"""FML: every model and a small network that all have in common teach each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.families.memes import MEME, MODEL
from interfuse.families.mutual import MutualLearning, Over, divergence
from interfuse.models import SplitModel
from interfuse.training import Objective


def mutual(model: SplitModel, batch: Batch, step: int, *, alpha: float, beta: float, over: Over) -> Tensor:
    """α CE(m) + (1 − α) KL(g ‖ m) + β CE(g) + (1 − β) KL(m ‖ g), of model m and meme g; who teaches is held fixed, so
    the former two train the model alone, the latter two the meme alone."""
    own, meme = model.inner(MODEL)(batch.x), model.inner(MEME)(batch.x)
    of_model = alpha * functional.cross_entropy(own, batch.y) + (1 - alpha) * divergence(own, meme, over)
    of_meme = beta * functional.cross_entropy(meme, batch.y) + (1 - beta) * divergence(meme, own, over)
    return of_model + of_meme


@dataclass(frozen=True)
class FML(MutualLearning):
    """Federated mutual learning (Shen et al., arXiv:2006.16765), with the local training of HtFLlib.

    A client trains its model and the meme on the same batches, in one step, each towards the labels and towards the
    answers of the other; memes are averaged, models stay. A client answers with its model. Earlier versions of the
    authors' code have both terms at full weight: the same at twice the rate.

    Not taken over: in HtFLlib the teacher is trained by what it teaches, and its gradients are clipped at a norm of 10;
    the server's statistics of normalisation never change there, and in the authors' code they grow with each mean.
    """

    def objective(self, client: Client[Any]) -> Objective:
        return partial(mutual, alpha=self.alpha, beta=self.beta, over=self.divergence)
