"""Artefacts of linear layers: a base block from 3 to 4 numbers, a modular block from 4 to 2."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import torch
from torch import nn

from interfuse.artefacts import (
    Answers,
    Artefact,
    Fusion,
    Manifest,
    Origin,
    Owner,
    Part,
    TensorForm,
    export_program,
    load,
    write,
)

IN, OUT = TensorForm(dtype="float32", shape=(3,)), TensorForm(dtype="float32", shape=(4,))
ORIGIN = Origin(interfuse="1", torch="2", architecture="mine", client=0, state="last", disclosed=())


def written(
    path: Path,
    part: Part = "base",
    seed: int = 0,
    expires: date | None = None,
    classes: tuple[str, ...] = ("a", "b"),
    **fusion: object,
) -> Artefact:
    torch.manual_seed(seed)
    made = nn.Linear(3, 4) if part == "base" else nn.Linear(4, 2)
    contract = {"run": "r", "method": "ifl", "round": 3, "features": {"x": OUT}} | fusion
    manifest = Manifest(
        part=part,
        inputs={"x": IN} if part == "base" else None,
        fusion=Fusion.model_validate(contract),
        answers=None if part == "base" else Answers(task="classification", classes=classes, shape=(2,)),
        origin=ORIGIN,
        owner=Owner(name="ant"),
        expires=expires,
    )
    write(path, manifest, export_program(made, torch.randn(2, 3 if part == "base" else 4)))
    return load(path)
