"""What Co-LoRA's channel between architectures carries: P and Q of a small model, trained on a task, in a larger one.

The small model trains P and Q on a task of easy-VQA. A larger one takes them over, with A and B aligned in several ways
or not at all, and goes on for a few steps on a few samples of the task; beside it the same from P = 0. One larger model
is grown from the small one and trained on, the other one trained by itself: the negative control. Each draw has random
A and B, an order of batches and samples of the larger model of its own; all that is compared in a draw has the same.

Appends a line a task and draw to ``channel.jsonl``, goes on where it was broken off, and prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ours
from interfuse.client import Client
from interfuse.data import Batch, EpochOrder
from interfuse.families.adapters import BlockAdapters, carrying, own_cores
from interfuse.families.alignment import Alignment, Alignments
from interfuse.method import ALL
from interfuse.models.adapters import Adapted, CoreLinear, LoRALinear, carriers
from interfuse.party import Held
from interfuse.randomness import numpy_generator
from interfuse.setup import Setup
from interfuse.training import LearningRate

MODELS = ("vqa-s", "vqa-g", "vqa-m")
TASKS = ("hue/colour", "bgr/colour", "inverted/colour")
MODES: tuple[Alignments, ...] = ("residual", "gradients", "base_outputs", "released", "none")
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t at 97.5 % by the number of draws."""


@dataclass(frozen=True)
class Channel(Alignment):
    """P and Q in the layers that carry them, and nothing else that trains."""

    usual = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "batch_size": 16, "lr": 1e-2, "align_samples": 160}

    source_steps: int = 100  # of the small model
    source_lr: float = 1e-2  # its learning rate; lr is that of the larger one
    source_rows: int = 600
    steps: int = 15  # of the larger model
    samples: int = 30  # of which it has so many

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        if layer in carriers(layers, self.blocks):
            return CoreLinear(base, self.rank, self.scale, self.dropout)
        return LoRALinear(base, self.rank, self.scale, self.dropout).requires_grad_(False)

    def train(self, client: Client[Any], batches: Iterable[Batch], lr: LearningRate) -> None:
        client.fit(client.loss, batches, train="own", lr=lr, optimizer="adamw", clip=self.clip)


def client_of(setup: Setup, number: int) -> Client[Any]:
    """A client with a model of its own, outside of a federation."""
    profile, data = setup.profiles[number], setup.data_of(number)
    made: Client[Any] = Client(profile, data, EpochOrder(setup.seed, number, len(data.labels())), setup.dims, 0)
    held = Held(ALL)
    held.own(setup.build(profile.architecture, number))
    made.networks["model"] = held
    return made


def accuracy(client: Client[Any]) -> float:
    """On its own test rows."""
    right = rows = 0
    with client.model.evaluating():
        for batch in client.data.test():
            right += int((client.model(batch.x).argmax(1) == batch.y).sum())
            rows += len(batch.y)
    return right / rows


def put(client: Client[Any], blocks: int, linears: tuple[str, ...], cores: BlockAdapters) -> None:
    """Have these P and Q for one's own."""
    for b, block in enumerate(carrying(client.model, blocks, linears)):
        for i, path in enumerate(block):
            client.model.load({f"{path}.own.P": cores.P[b, i], f"{path}.own.Q": cores.Q[b, i]})


def measured(method: Channel, models: Sequence[str], task: str, draw: int) -> dict[str, Any]:
    """Accuracies of all models in one draw: by model and way, before the steps and after them."""
    rows = [method.source_rows, *[10 * method.samples] * (len(models) - 1)]
    config = {
        "method": f"{__file__}:Channel", "data": "easy-vqa-domains", "public": "easy-vqa-public",
        "clients": len(models), "read": {"tasks": [task] * len(models), "rows": rows},
        "partition": {"name": "natural", "drawn": False}, "test": "source", "validation": 0, "models": list(models),
        "seed": draw, "settings": {"rank": method.rank, "alpha": method.alpha, "blocks": method.blocks},
    }  # fmt: skip
    setup = ours.setup_of(config)
    with setup.numerics.applied():
        source, *targets = (client_of(setup, number) for number in range(len(models)))
        found: dict[str, Any] = {"task": task, "draw": draw, "source": {"before": accuracy(source)}}
        shape = (method.blocks, len(method.linears), method.rank)
        zero = own_cores(source.model, carrying(source.model, method.blocks, method.linears), shape)
        zero = BlockAdapters(torch.zeros_like(zero.P), torch.zeros_like(zero.Q))
        landmarks = {mode: replace(method, align=mode).describe(source) for mode in MODES if mode != "none"}
        order = EpochOrder(draw, 0, len(source.data.labels()))
        batches = [source.data.train(order.take(method.batch_size)) for _ in range(method.source_steps)]
        method.train(source, batches, method.source_lr)
        found["source"]["after"] = accuracy(source)
        cores = own_cores(source.model, carrying(source.model, method.blocks, method.linears), shape)
        cores = BlockAdapters(cores.P.clone(), cores.Q.clone())
        reverse = BlockAdapters(cores.P.flip(0), cores.Q.flip(0))
        for target in targets:
            start = method.own_basis(target).tensors
            start = {key: tensor.clone() for key, tensor in start.items()}
            ways: dict[str, Any] = {}
            for mode in MODES:
                target.model.load(start)
                put(target, method.blocks, method.linears, zero)
                aligning = replace(method, align=mode)
                basis = start if mode == "none" else aligning.find_basis(target, landmarks[mode]).tensors
                tried = {f"{mode}": cores}
                if mode in ("gradients", "residual", "none"):
                    tried[f"{mode}, P = 0"] = zero
                if mode == "gradients":
                    tried[f"{mode}, blocks reversed"] = reverse
                for way, given in tried.items():
                    target.model.load(basis)
                    put(target, method.blocks, method.linears, given)
                    before = accuracy(target)
                    method.train(target, batches_of(method, target, draw), method.lr)
                    ways[way] = {"before": before, "after": accuracy(target)}
            found[target.profile.architecture] = ways
    return found


def batches_of(method: Channel, client: Client[Any], draw: int) -> list[Batch]:
    """The larger model's steps: the same in all ways of a draw."""
    rows = numpy_generator(draw, "samples").permutation(len(client.data.labels()))[: method.samples]
    order = EpochOrder(draw, client.id, method.samples)
    return [client.data.train(rows[order.take(method.batch_size)]) for _ in range(method.steps)]


def table(lines: Sequence[dict[str, Any]], target: str) -> str:
    """Means over draws, and what each way gains after the steps over P = 0 in the same draws, with A and B with which
    that does best on the task. Behind ± half a 95 % interval."""
    shown = ["| task | way | before | after | std | gain over the best P = 0 | draws |", "|" + " --- |" * 7]
    for task in dict.fromkeys(line["task"] for line in lines):
        own = [line[target] for line in lines if line["task"] == task]
        after = {way: [ways[way]["after"] for ways in own] for way in own[0]}
        best = max((way for way in after if way.endswith("P = 0")), key=lambda way: statistics.mean(after[way]))
        for way, values in after.items():
            before = statistics.mean(ways[way]["before"] for ways in own)
            spread = f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""
            gain = "0, by definition" if way == best else difference(values, after[best])
            means = f"{before:.3f} | {statistics.mean(values):.3f} | {spread}"
            shown.append(f"| {task} | {way} | {means} | {gain} | {len(own)} |")
    return "\n".join(shown)


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """The mean of paired differences with half its 95 % interval."""
    gains = [value - other for value, other in zip(values, others, strict=True)]
    if len(gains) < 2:
        return f"{gains[0]:+.3f}"
    half = T_95.get(len(gains), 1.96) * statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{statistics.mean(gains):+.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("channel.jsonl"), help="what was measured, a line a draw")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="the small one, then larger ones")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings, such as steps=30")
    arguments = parser.parse_args()
    method = Channel.configure(
        {name: json.loads(value) for name, _, value in (s.partition("=") for s in arguments.set)}
    )
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    there = {(line["task"], line["draw"]) for line in lines}
    for draw in arguments.draws:
        for task in arguments.tasks:
            if (task, draw) not in there:
                lines.append(measured(method, arguments.models, task, draw))
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(f"{task}, draw {draw}: the small model {lines[-1]['source']}", flush=True)
    for task in arguments.tasks:
        own = [line["source"] for line in lines if line["task"] == task]
        means = ", ".join(f"{when} {statistics.mean(s[when] for s in own):.3f}" for when in ("before", "after"))
        print(f"\nThe small model on {task}, {len(own)} draws: {means}")
    for target in arguments.models[1:]:
        print(f"\n{target}\n\n{table(lines, target)}")


if __name__ == "__main__":
    main()
