"""What two networks teach each other: divergences between their answers, each way to one of them alone."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Over = Literal["batch", "elements"]
"""A divergence is summed over classes and a mean over the batch, or a mean over both, so by their number smaller."""


def divergence(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], over: Over
) -> Float[Tensor, ""]:
    """KL(softmax(teacher) ‖ softmax(student)); no gradient reaches the teacher."""
    log_p, log_q = teacher.detach().log_softmax(1), student.log_softmax(1)
    found = (log_p.exp() * (log_p - log_q)).sum(1).mean()  # vmap has no rule for kl_div
    return found if over == "batch" else found / student.shape[1]
