"""Models of one family at several widths and depths, small enough to work rounds out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from worlds import Recorder

from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.messages import Message, Weights
from interfuse.models import Builder, SplitModel


def slim(hidden: int, blocks: int = 1) -> Builder:
    """Linear layers of so many hidden units with batch normalisation: a stem, blocks and a classifier."""

    def build(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
        stem = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), hidden), nn.BatchNorm1d(hidden))
        stages: dict[str, nn.Module] = {"stem": stem}
        stages |= {f"body.{i}": nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()) for i in range(blocks)}
        return SplitModel(stages | {"classifier": nn.Linear(hidden, classes)})

    build.__qualname__ = f"slim{hidden}x{blocks}"
    return build


def flattening(channels: int) -> Builder:
    """One normalised convolution of so many channels on images of 6 by 6, flattened for the classifier."""

    def build(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
        conv = nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.Flatten())
        return SplitModel({"conv": conv, "classifier": nn.Linear(16 * channels, classes)})

    build.__qualname__ = f"flattening{channels}"
    return build


def received_for_evaluation(f: Federation) -> dict[int, Weights]:
    """What clients get before they are evaluated."""
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    recorder.down.clear()
    evaluate(f, full=True)
    return {client: m for request, client, m in recorder.down if isinstance(m, Weights)}


class Round:
    """What clients got and gave in one round of training, by client."""

    def __init__(self, f: Federation) -> None:
        recorder = f.engine
        assert isinstance(recorder, Recorder)
        recorder.down.clear()
        recorder.up.clear()
        self.before = {key: tensor.clone() for key, tensor in f.server.state.weights.items()}
        f.run_round()
        self.after: Mapping[str, Tensor] = f.server.state.weights
        self.down: dict[int, Message] = {c: m for request, c, m in recorder.down if request.handler == "train"}
        self.up: dict[int, Message] = {c: m for request, c, m in recorder.up if request.handler == "train"}


def mean_by_loops(old: Tensor, sent: Sequence[tuple[Tensor, Sequence[Sequence[int]], float]]) -> Tensor:
    """Element by element the mean over its holders; each of ``sent`` is a value, its positions by axis, a weight."""
    sums, weights = torch.zeros_like(old, dtype=torch.float64), torch.zeros_like(old, dtype=torch.float64)
    for value, positions, weight in sent:
        for place in torch.cartesian_prod(*[torch.arange(n) for n in value.shape]).reshape(value.numel(), -1).tolist():
            there = tuple(axis[i] for axis, i in zip(positions, place, strict=True))
            sums[there] += weight * float(value[tuple(place)])
            weights[there] += weight
    return torch.where(weights > 0, sums / weights, old.double()).float()
