"""Images for the workloads, and how good everybody's weights are on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import interfuse
import workload
from common import Course
from interfuse.data import available
from interfuse.data.inputs import ONLY, named


def images(
    folder: Path, rows: int, names: Sequence[str] = ("fashion-mnist",), test_rows: int = 1000
) -> tuple[str, str]:
    """Write an ``.npz`` of training and test images of 28x28. Returns its path, and whose images these are.

    Args:
        names: Data sets to take, the first that is here without a download; otherwise images are made up.
    """
    here = {info.name for info in available() if info.state in ("found", "cached")}
    name = next((name for name in names if name in here), "made up")
    if name == "made up":
        x, y, x_test, y_test = made_up(rows, test_rows)
    else:
        data = interfuse.load(name)
        x, y, x_test, y_test = named(data.x_train)[ONLY], data.y_train, named(data.x_test)[ONLY], data.y_test
    parts = {"x_train": x[:rows], "y_train": y[:rows], "x_test": x_test[:test_rows], "y_test": y_test[:test_rows]}
    workload.write_weights(folder / "images.npz", parts)
    return str(folder / "images.npz"), name


def made_up(rows: int, test_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A blurred pattern of its own for each class, under noise."""
    noise = torch.Generator().manual_seed(0)
    patterns = functional.interpolate(torch.rand(10, 1, 7, 7, generator=noise), size=28, mode="bilinear")
    y = torch.randint(0, 10, (rows + test_rows,), generator=noise)
    x = 255 * (0.5 * patterns[y] + 0.5 * torch.rand(len(y), 1, 28, 28, generator=noise))
    return x[:rows].byte(), y[:rows], x[rows:].byte(), y[rows:]


def add_accuracies(
    rows: list[dict[str, Any]], courses: Sequence[Course], folder: Path, problem: workload.Problem, model: str
) -> None:
    """Evaluate everybody's final weights here, by the same code. Contenders without weights get no accuracy."""
    for number, row in enumerate(rows):
        path = folder / f"result-{number}.npz"
        if not courses[number].failure and path.exists():
            net = workload.MODELS[model]()
            net.load_state_dict(workload.read_weights(path))
            row["accuracy"] = workload.accuracy(net, problem)
