"""Floating-point operations, counted by PyTorch."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from interfuse.engines import InProcess
from interfuse.federation import Federation
from interfuse.runs import Given, RunConfig
from interfuse.runs.loop import assemble


def import_counter() -> None:
    """Import what PyTorch imports when it first counts an operation: seconds that every forked process would spend."""
    with FlopCounterMode(display=False):
        torch.zeros(1, 1) @ torch.zeros(1, 1)


def flops_of_a_round(config: RunConfig, given: Given) -> int:
    """Operations of the first round of a throw-away federation, at the clients and at the server.

    Counted are the matrix products and convolutions of forward and backward passes; a multiplication and an addition
    are two. Evaluation is not part of it.
    """
    setup = assemble(config, given)
    federation = Federation(setup, InProcess(setup))
    federation.start()
    with FlopCounterMode(display=False) as counter:
        federation.run_round()
    return int(counter.get_total_flops())
