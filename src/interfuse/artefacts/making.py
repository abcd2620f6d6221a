"""Artefacts of clients' models: programs with the reading of samples inside, and what a manifest says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor, nn

from interfuse.artefacts.manifest import Answers, Fusion, Manifest, Origin, Owner, Part, TensorForm
from interfuse.artefacts.programs import Program, export_program
from interfuse.client import ClientId
from interfuse.data import Dataset, Inputs
from interfuse.data.inputs import each, named
from interfuse.errors import ModelError
from interfuse.method import Method, disclosures
from interfuse.models import SplitModel
from interfuse.numerics import Numerics
from interfuse.setup import as_inputs


@dataclass(frozen=True, eq=False)
class Trained:
    """A client's model after a round, as the method evaluates it, and what has to be known of it.

    Attributes:
        data: What it was trained on: for its inputs, normalisation and task alone.
        run: See :class:`.manifest.Fusion`.
        method_name: As recipes have it.
    """

    model: SplitModel = field(repr=False)
    method: Method
    method_name: str
    data: Dataset = field(repr=False)
    numerics: Numerics
    client: ClientId
    architecture: str
    run: str
    round: int
    state: Literal["last", "best"] = "last"


def make(trained: Trained, part: Part, owner: Owner, expires: date | None = None) -> tuple[Manifest, Program]:
    """One block of a model, or all of it, as a program and a manifest.

    Raises:
        ModelError: the model cannot be exported, or a client does not answer with its model alone.
    """
    model, data = trained.model, trained.data
    with trained.numerics.applied(), model.evaluating():
        stored = each(lambda x: x[[0, -1]].cpu(), data.x_train)
        inputs = as_inputs(data, trained.numerics, stored)
        z = model.base(inputs)
        if part == "modular":
            program = export_program(_Modular(model), z)
        elif part == "base":
            program = export_program(_Base(model, data, trained.numerics), stored)
        elif type(trained.method).predict is not Method.predict:
            raise ModelError(
                f"with {trained.method_name} a client answers with more than its model, so that is no artefact: export "
                "its blocks, part = 'base' and part = 'modular'"
            )
        else:
            program = export_program(_Whole(model, data, trained.numerics, trained.method), stored)
    fusion = Fusion(run=trained.run, method=trained.method_name, round=trained.round, features=_forms(z))
    shape = data.task.output_shape(tuple(data.y_train.shape[1:]))
    answers = Answers(task=data.task.name, classes=data.class_names, shape=shape)
    manifest = Manifest(
        part=part,
        inputs=None if part == "modular" else _forms(stored),
        columns=() if part == "modular" else data.columns,
        ranges={} if part == "modular" else _ranges(data.x_train),
        bounds=program.bounds if part == "base" else {},
        fusion=None if part == "model" else fusion,
        answers=None if part == "base" else answers,
        origin=Origin(
            interfuse=version("interfuse"),
            torch=torch.__version__,
            architecture=trained.architecture,
            client=trained.client,
            state=trained.state,
            disclosed=tuple(sorted(disclosures(trained.method))),
        ),
        owner=owner,
        expires=expires,
    )
    return manifest, program


class _Block(nn.Module):
    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self.model = model


class _Modular(_Block):
    def forward(self, z: Inputs) -> Tensor:
        return self.model.modular(z)


class _Base(_Block):
    def __init__(self, model: SplitModel, data: Dataset, numerics: Numerics) -> None:
        super().__init__(model)
        self.data, self.numerics = data, numerics

    def forward(self, x: Inputs) -> Inputs:
        return self.model.base(as_inputs(self.data, self.numerics, x))


class _Whole(_Base):
    def __init__(self, model: SplitModel, data: Dataset, numerics: Numerics, method: Method) -> None:
        super().__init__(model, data, numerics)
        self.method = method

    def forward(self, x: Inputs) -> Tensor:
        return self.method.predictor()(self.model, as_inputs(self.data, self.numerics, x))


def _ranges(x: Inputs) -> dict[str, tuple[float, float]]:
    """Of images and signals; the columns of a table have a range each, which would tell of single rows."""
    return {
        name: (float(tensor.min()), float(tensor.max()))
        for name, tensor in named(x).items()
        if tensor.dim() > 2 and tensor.dtype != torch.int64
    }


def _forms(x: Inputs) -> dict[str, TensorForm]:
    return {
        name: TensorForm.model_validate({"dtype": str(tensor.dtype).removeprefix("torch."), "shape": tensor.shape[1:]})
        for name, tensor in named(x).items()
    }
