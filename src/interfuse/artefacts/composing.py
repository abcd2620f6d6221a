"""Answers of artefacts: of a whole model, or of a base block and the modular blocks of one or several vendors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interfuse.artefacts.folder import Artefact
from interfuse.data.inputs import Inputs
from interfuse.errors import ArtefactError

Mean = Literal["scores", "probabilities"]
"""Of what several modular blocks answer together: the mean of their scores (logits), or of their probabilities."""


def check_fit(base: Artefact, modular: Artefact) -> None:
    """Check that a modular block goes on where a base block ends.

    Raises:
        ArtefactError: they are no such blocks, or their fusion layers differ; names the first field that does.
    """
    for artefact, part in ((base, "base"), (modular, "modular")):
        if artefact.manifest.part != part:
            raise ArtefactError(f"{artefact.path} is a {artefact.manifest.part} block, where a {part} block is needed")
    one, other = base.manifest.fusion, modular.manifest.fusion
    if one is None or other is None:
        raise ArtefactError(f"{base.path} or {modular.path} has no fusion layer")
    try:
        one.check(other)
    except ArtefactError as error:
        raise ArtefactError(f"{base.path} and {modular.path}: {error}") from None


def composed(
    base: Artefact, modular: Sequence[Artefact], x: Inputs, mean: Mean = "scores"
) -> Float[Tensor, "batch *out"]:
    """What modular blocks answer to what a base block makes of samples.

    Args:
        x: As the manifest of the base block has it.
        mean: How several answers become one.

    Raises:
        ArtefactError: the blocks do not fit, answer different questions, or samples are others.
    """
    for one in modular:
        check_fit(base, one)
    return mean_of(modular, base(x), mean)


def mean_of(modular: Sequence[Artefact], z: Inputs, mean: Mean = "scores") -> Float[Tensor, "batch *out"]:
    """What modular blocks answer together to fusion-layer outputs.

    Raises:
        ArtefactError: there is none, or they answer different questions.
    """
    if not modular:
        raise ArtefactError("no modular block is named: one at least has to answer")
    first = modular[0].manifest.answers
    for one in modular:
        if one.manifest.answers != first:
            raise ArtefactError(
                f"{modular[0].path} and {one.path} answer different questions, or number classes otherwise"
            )
    found = [_only(one(z), one) for one in modular]
    if len(found) == 1:
        return found[0]
    if mean == "probabilities":
        found = [scores.softmax(1) for scores in found]
    return torch.stack(found).mean(0)


def _only(answer: Inputs, artefact: Artefact) -> Tensor:
    if isinstance(answer, Tensor):
        return answer
    raise ArtefactError(f"{artefact.path} answers with {', '.join(answer)}, where one tensor of scores is needed")
