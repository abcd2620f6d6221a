"""Memory of FedVTC's phases at a client: model and generator trained in turn, beside both in one step.

    python benchmarks/phases.py --model htfl-cnn --shape 3 32 32 --batch 10

Each phase runs in a process of its own and is measured from the moment its networks and data are there: so its figure
has gradients, the optimizer's state, activations and what PyTorch works with. On a processor that is the peak resident
set (Linux), on a GPU what PyTorch allocated at most. In turn the model is trained by SGD and the generator by Adam, as
in FedVTC; jointly both are by one optimizer. SGD for the model and Adam for the generator lie between.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import common
from interfuse.data import Batch
from interfuse.families.drawing import learning_to_draw, matching, reconstruction
from interfuse.models import SplitModel, resolve, side_by_side
from interfuse.models.generators import as_samples, vtc
from interfuse.numerics import DEFAULT
from interfuse.training import Optimizer, cross_entropy, fit

ADAM = Optimizer("adam", betas=(0.5, 0.999))
LATENTS = 4
CHANNELS = 64


def peak_of(work: Callable[[], object], device: str = "cpu") -> int:
    """How many bytes more than before some work needs at its peak."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        before = _resident("VmRSS")
        work()
        return max(0, _resident("VmHWM") - before)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _resident(line: str) -> int:
    """A line of what the kernel says of this process, in bytes."""
    (found,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(f"{line}:"))
    return int(found.split()[1]) * 1024


class Client:
    """Networks and a batch, as a client of FedVTC has them in a round."""

    def __init__(self, name: str, shape: tuple[int, ...], classes: int, width: int, batch: int, device: str) -> None:
        torch.manual_seed(0)
        self.model = resolve(name)(shape, classes, width).to(device)
        self.generator = vtc(width, shape, CHANNELS).to(device)
        self.means = torch.randn(classes, width, device=device)
        self.spread = torch.ones(classes, width, device=device)
        self.bounds = torch.tensor([[-1.0] * shape[0], [1.0] * shape[0]], device=device)
        self.batch = Batch(torch.rand(batch, *shape, device=device), torch.arange(batch, device=device) % classes)

    def train_model(self, steps: int) -> None:
        fit(self.model, cross_entropy, [self.batch] * steps, lr=0.005)

    def train_generator(self, steps: int) -> None:
        loss = partial(
            learning_to_draw,
            extractor=self.model, tensors=self.model.tensors(), deviations=self.spread, means=self.means,
            spread=self.spread, targets=self.means, bounds=self.bounds, latents=LATENTS, weights=(1.0, 1.0),
        )  # fmt: skip
        fit(self.generator, loss, [self.batch] * steps, lr=1e-3, optimizer=ADAM)

    def fine_tune(self, steps: int) -> None:
        def drawn() -> Batch:
            with self.generator.evaluating():
                return Batch(as_samples(self.generator(self.means[self.batch.y]), self.bounds), self.batch.y)

        fit(self.model, cross_entropy, (drawn() for _ in range(steps)), lr=0.005)

    def train_jointly(self, steps: int, optimizer: Optimizer) -> None:
        """The losses of both, with gradients of all for both: an autoencoder whose encoder is the base block."""
        both = side_by_side({"model": self.model, "vtc": self.generator})
        loss = partial(jointly, means=self.means, spread=self.spread, bounds=self.bounds)
        fit(both, loss, [self.batch] * steps, lr=1e-5, optimizer=optimizer)


def jointly(
    networks: SplitModel, batch: Batch, step: int, *, means: Tensor, spread: Tensor, bounds: Tensor | None
) -> Tensor:
    """Cross entropy, reconstruction and distribution matching in one step."""
    model, generator = networks.inner("model"), networks.inner("vtc")
    z = model.base(batch.x)
    drawn = as_samples(generator(z + spread[batch.y] * torch.randn_like(z)), bounds)
    v = means[:, None] + spread[:, None] * torch.randn(len(means), LATENTS, means.shape[1], device=means.device)
    again = model.base(as_samples(generator(v.flatten(0, 1)), bounds)).reshape(len(means), LATENTS, -1)
    classified = functional.cross_entropy(model.modular(z), batch.y)
    return classified + reconstruction(drawn, batch.features) + matching(again, means)


PHASES: dict[str, Callable[[Client, int], None]] = {
    "model": Client.train_model,
    "generator": Client.train_generator,
    "fine-tuning": Client.fine_tune,
    "jointly by SGD": partial(Client.train_jointly, optimizer=Optimizer("sgd")),
    "jointly by Adam": partial(Client.train_jointly, optimizer=ADAM),
}
JOINT = ("jointly by SGD", "jointly by Adam")


def measured(phase: str, steps: int, *arguments: Any) -> int:
    """The peak of a phase, in a process of its own, so that nothing is left of another."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, phase, steps, arguments))
    process.start()
    theirs.close()
    found: int = ours.recv()
    process.join()
    return found


def _measure(pipe: Connection, phase: str, steps: int, arguments: tuple[Any, ...]) -> None:
    with DEFAULT.applied():
        client = Client(*arguments)
        pipe.send(peak_of(partial(PHASES[phase], client, steps), arguments[-1]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["htfl-cnn"], help="models of the zoo")
    parser.add_argument("--shape", nargs="+", type=int, default=[3, 32, 32])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    rows = []
    for name in given.model:
        arguments = (name, tuple(given.shape), given.classes, given.width, given.batch, given.device)
        peaks = {phase: measured(phase, given.steps, *arguments) / 1e6 for phase in PHASES}
        turns = max(peak for phase, peak in peaks.items() if phase not in JOINT)
        rows.append({"name": name, **peaks, "ratio": " to ".join(f"{turns / peaks[phase]:.2f}" for phase in JOINT)})
    columns = {"name": "", **{phase: f"{phase}, MB" for phase in PHASES}, "ratio": "in turn / jointly"}
    print(common.table(rows, columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
