"""The one recipe by which small backbones are pre-trained: AdamW on shuffled rows, warm-up and a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from interfuse.numerics import DEFAULT
from interfuse.randomness import Key, generator, seeded

VERSION = 1
"""To be raised when the recipe below gives other values: what is kept depends on it."""
BUILD = (VERSION, torch.__version__)


@dataclass(frozen=True)
class Course:
    """How long and how fast.

    Attributes:
        lr: The largest rate: it rises to it over ``warm_up`` steps, then falls to 0 as a cosine does.
    """

    steps: int
    batch: int
    lr: float
    decay: float = 0.01
    warm_up: int = 50

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.lr * min(1.0, (step + 1) / self.warm_up) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def train(
    name: str,
    parameters: Sequence[nn.Parameter],
    loss: Callable[[Int64[Tensor, "batch"]], Tensor],
    rows: int,
    course: Course,
    *key: Key,
) -> None:
    """Train on rows by number. What comes out is a function of the arguments, the build and the type of processor.

    Args:
        name: What the progress bar calls it.
        key: Of the order of rows, and of what the loss draws.
    """
    optimizer = torch.optim.AdamW(parameters, lr=course.lr, weight_decay=course.decay, fused=True)
    shuffle = generator(0, "pre-training", *key)
    passes = -(-course.steps * course.batch // rows)
    order = torch.cat([torch.randperm(rows, generator=shuffle) for _ in range(passes)])
    console = Console(stderr=True)
    steps = track(range(course.steps), name, console=console, disable=not console.is_terminal, transient=True)
    with torch.enable_grad(), DEFAULT.applied(), seeded(0, "pre-training", *key):
        for step in steps:
            optimizer.param_groups[0]["lr"] = course.rate(step)
            optimizer.zero_grad()
            torch.autograd.backward(loss(order[step * course.batch : (step + 1) * course.batch]))
            optimizer.step()
