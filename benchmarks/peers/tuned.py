"""The best loop by hand: two forked processes of one thread, weights in shared memory, no framework at all.

Its model is arranged as interfuse arranges it, for less traffic of memory; with ``as_given`` it is as everybody has it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from driver import Channel, Cohort, Forked, options, serve
from workload import LAYOUTS, MODELS, Problem, autocast, pool_first, write_weights


def main() -> None:
    channel, given = Channel(), options()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    problem = Problem.read(Path(given["problem"]), given["layout"])
    model = MODELS[given["model"]]()
    if not given.get("as_given"):
        pool_first(model)
    model.to(memory_format=LAYOUTS[given["layout"]])  # type: ignore[call-overload]
    model.load_state_dict(problem.initial())
    parameters = [parameter.detach() for parameter in model.parameters()]
    weights = [_shared(parameter) for parameter in parameters]
    sums = [[_shared(torch.zeros_like(weight)) for weight in weights] for _ in range(given["processes"])]

    def part(number: int) -> Callable[[Any], None]:
        return lambda cohort: _train(given, problem, model, weights, sums[number], cohort[number :: given["processes"]])

    processes = Forked([part(number) for number in range(given["processes"])])

    def run_round(cohort: Cohort) -> None:
        processes.run(cohort)
        for position, weight in enumerate(weights):
            weight.copy_(torch.stack([own[position] for own in sums]).sum(0).div_(len(cohort)))

    def result(path: Path) -> dict[str, Any]:
        write_weights(path, dict(zip(model.state_dict(), weights, strict=True)))
        return {}

    serve(run_round, result, channel)


def _shared(values: Tensor) -> Tensor:
    """A copy that forked processes see."""
    shared: Tensor = values.clone().share_memory_()  # type: ignore[no-untyped-call]
    return shared


def _train(
    given: dict[str, Any], problem: Problem, model: torch.nn.Module, weights: list[Tensor], sums: list[Tensor],
    cohort: Cohort,
) -> None:  # fmt: skip
    """Train these clients one after the other, and leave the sum of their weights in ``sums``."""
    parameters: list[Tensor] = list(model.parameters())
    with torch.no_grad():
        torch._foreach_zero_(sums)
    for client, epoch in cohort:
        with torch.no_grad():
            torch._foreach_copy_(parameters, weights)
        for images, labels in problem.epoch_batches(client, epoch, given["batch_size"]):
            with autocast(given["dtype"]):
                loss = functional.cross_entropy(model(images), labels)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-given["lr"])
        with torch.no_grad():
            torch._foreach_add_(sums, parameters)


if __name__ == "__main__":
    main()
