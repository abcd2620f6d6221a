"""Seconds of a gradient step of models by name, in one thread: which of them a processor bears.

    python benchmarks/steps.py HtM10 HtFE9-narrow --shape 3 32 32 --classes 100 --batch 10

Processor time, which other work on the machine disturbs little: the least of some steps behind a first one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch.nn import functional

import common
from interfuse.models import expanded, resolve
from interfuse.models.making import make
from interfuse.numerics import DEFAULT


def seconds_of_a_step(name: str, shape: tuple[int, ...], classes: int, width: int, batch: int, steps: int) -> float:
    """Of plain SGD: forward and backward pass, and the change of the parameters."""
    build = resolve(name)
    model = make(lambda: build(shape, classes, width), 0, "model", device="cpu", numerics=DEFAULT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(batch, *shape)
    if x.dim() == 4:
        x = x.to(memory_format=DEFAULT.memory_format)
    y = torch.arange(batch) % classes
    found = []
    with DEFAULT.applied():
        for _ in range(1 + steps):
            start = time.process_time()
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(x), y))
            optimizer.step()
            found.append(time.process_time() - start)
    return min(found[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="models or groups of them")
    parser.add_argument("--shape", nargs="+", type=int, default=[3, 32, 32])
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args(argv)
    rows = []
    for name in dict.fromkeys(str(model) for model in expanded(given.models)):
        seconds = seconds_of_a_step(name, tuple(given.shape), given.classes, given.width, given.batch, given.steps)
        rows.append({"name": name, "seconds": seconds})
    print(common.table(rows, {"name": "", "seconds": "a step, s"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
