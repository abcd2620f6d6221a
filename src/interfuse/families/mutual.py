"""What two networks teach each other: divergences between their answers, each way to one of them alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from interfuse.families.memes import AveragedMemes

Part = Annotated[float, Ge(0), Le(1)]
Over = Literal["batch", "elements"]
"""A divergence is summed over classes and a mean over the batch, or a mean over both, so by their number smaller."""


def divergence(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], over: Over
) -> Float[Tensor, ""]:
    """KL(softmax(teacher) ‖ softmax(student)); no gradient reaches the teacher."""
    found = divergences(student, teacher).mean()
    return found if over == "batch" else found / student.shape[1]


def divergences(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> Float[Tensor, "batch"]:
    """The same of each row by itself."""
    log_p, log_q = teacher.detach().log_softmax(1), student.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)  # vmap has no rule for kl_div


def softened(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), a mean over the batch; no gradient reaches the teacher. With
    the square a gradient is about as large for any T."""
    return temperature**2 * divergences(student / temperature, teacher / temperature).mean()


@dataclass(frozen=True)
class MutualLearning(AveragedMemes):
    """Model and meme learn from labels and from each other; see :class:`interfuse.methods.fml.FML`."""

    origin = "HtFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.01, "weights": "uniform"}

    alpha: Part = 0.5  # weight of the cross entropy in the model's loss; the divergence has the rest [FML's code]
    beta: Part = 0.5  # the same in the meme's loss [FML's code]
    divergence: Over = "batch"  # a mean over the batch, or over batch and classes as in HtFLlib [FML's code]
