"""Labels by k-ary randomised response, and the loss that knows how often they were flipped.

A label is reported as it is with probability e^ε / (e^ε + k - 1), otherwise as one of the k - 1 others, each as likely
(Kairouz, Bonawitz and Ramage, 2016, arXiv:1602.07387). No two labels make any report more than e^ε times as likely as
each other: ε-local differential privacy of the label, as long as each label is reported once, or always by the same
report. It hides labels alone: whatever else is sent with a report, such as features, may tell the label by itself.

Whoever can derive the noise can undo it. In a simulation it is a function of the run's seed, known to its one owner;
between parties of a secret that never leaves the node (:meth:`interfuse.Client.lasting_noise`).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor


def flip_rates(classes: int, epsilon: float) -> tuple[float, float]:
    """The probabilities that a label is kept, and that it becomes one certain other."""
    others = math.exp(-epsilon)
    return 1 / (1 + (classes - 1) * others), others / (1 + (classes - 1) * others)


def randomised_response(
    y: Int64[Tensor, "rows"], classes: int, epsilon: float, noise: Float64[Tensor, "rows"]
) -> Int64[Tensor, "rows"]:
    """The labels as they are reported.

    Args:
        noise: Uniform in [0, 1). Rates of flips are multiples of its last bit: with 53 bits the real epsilon is within
            0.01 of a stated one up to 30. A row that is reported again needs the same number again.
    """
    _, other = flip_rates(classes, epsilon)
    # small numbers flip, whose quotients lose no digits
    step = 1 + (noise / max(other, 1e-300)).clamp(max=classes).long()
    return torch.where(step < classes, (y + step) % classes, y)


def log_reported(log_probabilities: Float32[Tensor, "rows classes"], epsilon: float) -> Float32[Tensor, "rows classes"]:
    """From log-probabilities of labels to those of their reports.

    The negative log-likelihood of reports is then minimal where that of the labels is: forward correction (Patrini et
    al., CVPR 2017, arXiv:1609.03683).
    """
    kept, other = flip_rates(log_probabilities.shape[1], epsilon)
    return ((kept - other) * log_probabilities.exp() + other).log()
