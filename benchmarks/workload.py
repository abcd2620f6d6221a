"""What all contenders of a benchmark share: models, data, batches, one epoch of SGD. PyTorch and NumPy only.

Nothing here imports interfuse: the peers run this file in environments of their own.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def cnn() -> nn.Sequential:
    """Two 3x3 convolutions (32, 64) and two linear layers (150, 10) for 28x28 images: 490,876 parameters."""
    return _stages(
        conv1=nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        conv2=nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        fc1=nn.Sequential(nn.Flatten(), nn.Linear(64 * 7 * 7, 150), nn.ReLU()),
        fc2=nn.Linear(150, 10),
    )


def htfl_cnn() -> nn.Sequential:
    """The small CNN of HtFLlib: 5x5 convolutions (32, 64), a feature vector of 512, a linear head."""
    return _stages(
        conv1=nn.Sequential(nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
        conv2=nn.Sequential(nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
        fc1=nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 512), nn.ReLU()),
        head=nn.Linear(512, 10),
    )


def mlp() -> nn.Sequential:
    """784-200-10."""
    return _stages(
        fc1=nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 200), nn.ReLU()),
        fc2=nn.Linear(200, 10),
    )


def large_mlp() -> nn.Sequential:
    """784-6000-880-10: 40 MB of parameters."""
    return _stages(
        fc1=nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 6000), nn.ReLU()),
        fc2=nn.Sequential(nn.Linear(6000, 880), nn.ReLU()),
        fc3=nn.Linear(880, 10),
    )


MODELS: Mapping[str, Callable[[], nn.Sequential]] = {
    "cnn": cnn, "htfl_cnn": htfl_cnn, "mlp": mlp, "large_mlp": large_mlp
}  # fmt: skip


def pool_first(model: nn.Sequential) -> nn.Sequential:
    """The model with ReLU behind the pooling that it stands before, as interfuse arranges it: equal bits."""
    for stage in model:
        if isinstance(stage, nn.Sequential):
            for place in range(len(stage) - 1):
                if isinstance(stage[place], nn.ReLU) and isinstance(stage[place + 1], nn.MaxPool2d):
                    stage[place], stage[place + 1] = stage[place + 1], stage[place]
    return model


def _stages(**stages: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(stages))


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, shares, order of samples and initial weights: the same for every contender.

    Attributes:
        x, y: Normalised training images and their labels.
        rows: Training rows of each client, ``[clients, samples]``.
        test_rows: Rows of each client's own test share, ``[clients, test samples]``.
        order: Positions in ``rows`` in the order of each epoch, ``[clients, epochs, samples]``.
        x_test, y_test: The common test set.
        folder: Where it was read from; ``initial-<client>.npz`` or ``initial.npz`` hold initial weights.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    test_rows: Tensor
    order: Tensor
    x_test: Tensor
    y_test: Tensor
    folder: Path

    @classmethod
    def read(cls, folder: Path, layout: str = "contiguous") -> Problem:
        with np.load(folder / "problem.npz", allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        mean, std = arrays["mean"], arrays["std"]

        def normal(x: Tensor) -> Tensor:
            return x.float().div_(255).sub_(mean).div_(std).contiguous(memory_format=LAYOUTS[layout])

        return cls(
            normal(arrays["x_train"]), arrays["y_train"], arrays["rows"], arrays["test_rows"], arrays["order"],
            normal(arrays["x_test"]), arrays["y_test"], folder,
        )  # fmt: skip

    def initial(self, client: int | None = None) -> dict[str, Tensor]:
        """Initial weights: the server's, or a client's own."""
        return read_weights(self.folder / ("initial.npz" if client is None else f"initial-{client}.npz"))

    def epoch(self, client: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The training share of a client in the order of one of its epochs."""
        rows = self.rows[client][self.order[client, epoch]]
        return self.x[rows], self.y[rows]

    def epoch_batches(self, client: int, epoch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch as views of the whole, gathered at once."""
        x, y = self.epoch(client, epoch)
        return zip(torch.split(x, size), torch.split(y, size), strict=True)

    def batches(self, client: int, epoch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same in batches, each gathered when it is asked for; the last may be smaller."""
        for positions in torch.split(self.order[client, epoch], size):
            rows = self.rows[client][positions]
            yield self.x[rows], self.y[rows]


@functools.cache
def read_once(folder: str, layout: str) -> Problem:
    """The problem in a folder, kept for as long as the process lives."""
    return Problem.read(Path(folder), layout)


def autocast(dtype: str) -> AbstractContextManager[object]:
    """Mixed precision where it is asked for; weights stay float32."""
    return contextlib.nullcontext() if dtype == "float32" else torch.autocast("cpu", torch.bfloat16)


def train_epoch(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], lr: float, dtype: str = "float32",
    fused: bool | None = None,
) -> None:  # fmt: skip
    """One epoch of SGD as everybody writes it; ``fused`` is the optimizer's choice where it is None."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=fused)
    for x, y in batches:
        optimizer.zero_grad()
        with autocast(dtype):
            loss = functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, problem: Problem) -> float:
    """On the common test set, in float32, between 0 and 1."""
    model.eval()
    pairs = zip(torch.split(problem.x_test, 500), torch.split(problem.y_test, 500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs) / len(problem.y_test)


def training_flops(model: nn.Sequential, x: Tensor) -> int:
    """Floating-point operations of forward and backward pass of the convolutions and linear layers on a batch.

    A multiplication and an addition are two. Backward costs twice the forward pass, except in the first layer, whose
    input needs no gradient.
    """
    forward: list[int] = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        forward.append(2 * output.numel() * weight[0].numel())

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return 3 * sum(forward) - forward[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    np.savez(path, **{name: tensor.detach().contiguous().numpy() for name, tensor in weights.items()})  # type: ignore[arg-type]
