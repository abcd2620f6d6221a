"""What the machine can do: forward and backward pass of the model's large convolution, in both layouts.

Two processes of one thread, as interfuse works. A round answers with GFLOP/s of all processes by layout.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from driver import Channel, Forked, options
from workload import LAYOUTS, autocast

BATCH, INPUTS, OUTPUTS, SIDE, KERNEL = 32, 32, 64, 14, 3
FLOPS = 3 * 2 * BATCH * OUTPUTS * SIDE * SIDE * INPUTS * KERNEL * KERNEL


def main() -> None:
    channel, given = Channel(), options()
    torch.set_num_threads(1)
    processes = Forked([lambda order: _work(*order)] * given["processes"])
    channel.ready()
    while channel.next_round(lambda path: {}) is not None:
        began = time.perf_counter()
        gflops = {}
        for layout in LAYOUTS:
            seconds = processes.run((layout, given["dtype"], given["passes"]))
            gflops[layout] = sum(FLOPS * given["passes"] / own / 1e9 for own in seconds)
        channel.answer({"seconds": time.perf_counter() - began, "gflops": gflops})


def _work(layout: str, dtype: str, passes: int) -> float:
    """Seconds of so many passes, after a few to warm up."""
    format: Any = LAYOUTS[layout]
    convolution = torch.nn.Conv2d(INPUTS, OUTPUTS, KERNEL, padding=KERNEL // 2).to(memory_format=format)  # type: ignore[call-overload]
    x = torch.randn(BATCH, INPUTS, SIDE, SIDE).contiguous(memory_format=format).requires_grad_()
    inputs = (x, *convolution.parameters())
    gradient = torch.ones_like(convolution(x))
    began = 0.0
    for number in range(passes + passes // 4):
        if number == passes // 4:
            began = time.perf_counter()
        with autocast(dtype):
            output = convolution(x)
        torch.autograd.grad(output, inputs, gradient.to(output.dtype))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
