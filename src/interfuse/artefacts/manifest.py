"""What an artefact says of itself: what it takes and gives, with what it fits together, and where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal

from annotated_types import Ge, Len
from pydantic import BaseModel, ConfigDict

from interfuse.errors import ArtefactError
from interfuse.messages import Disclosure

Part = Literal["base", "modular", "model"]
"""From samples to fusion-layer outputs; from these to scores; both in one."""
Size = Annotated[int, Ge(1)]
Text = Annotated[str, Len(0, 10_000)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorForm(_Record):
    """A tensor that goes in or comes out: ``shape`` is that of one sample, without the batch axis."""

    dtype: Literal["uint8", "int64", "float32"]
    shape: tuple[Size, ...]


class Fusion(_Record):
    """The contract of a fusion layer: blocks that have the same one fit together.

    Attributes:
        run: The key of the federation that trained them: the name of a run between parties, or a digest of a
            simulated run's configuration.
        round: After which the state was taken; blocks of other rounds were not trained to fit.
        features: What crosses the layer, by name.
    """

    run: str
    method: str
    round: Annotated[int, Ge(0)]
    features: Mapping[str, TensorForm]

    @property
    def key(self) -> str:
        """The contract as one word, which travels with features: SHA-256, in hexadecimal, of its JSON with sorted keys
        and no spaces."""
        plain = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode()).hexdigest()

    def check(self, other: Fusion) -> None:
        """Check that another block's fusion layer is this one.

        Raises:
            ArtefactError: names the first field that differs.
        """
        for field in type(self).model_fields:
            mine, its = getattr(self, field), getattr(other, field)
            if mine != its:
                raise ArtefactError(
                    f"the blocks do not fit: {field} is {_short(mine)} of one, {_short(its)} of the other"
                )


class Answers(_Record):
    """What scores mean: the task, and the names of its classes, if it has such, in the order of the outputs."""

    task: str
    classes: tuple[str, ...]
    shape: tuple[Size, ...]


class Origin(_Record):
    """Where an artefact comes from.

    Attributes:
        state: Of the run: its last one, or that with the best validation accuracy.
        disclosed: What training told the others of the owner's data.
    """

    interfuse: str
    torch: str
    architecture: str
    client: int
    state: Literal["last", "best"]
    disclosed: tuple[Disclosure, ...]


class Owner(_Record):
    """In the owner's words."""

    name: Text = ""
    licence: Text = ""
    about: Text = ""


class Manifest(_Record):
    """``manifest.json`` of an artefact.

    Attributes:
        inputs: By name, as they are stored: what normalises them is in the program. None of a modular block.
        columns: Names of the columns of a table, in their order.
        ranges: Of images and signals: the least and the largest value of all training rows, by input, which is the unit
            that samples are in.
        bounds: Of a base block: what its features lie between, by name, where its last operation says so (a ReLU: from
            0); null: there is none on this side. It belongs to the block and not to the contract, since blocks of other
            models fit as well.
        fusion: None of a whole model.
        answers: None of a base block.
        expires: From this day on it is refused.
    """

    format: Literal[1] = 1
    part: Part
    inputs: Mapping[str, TensorForm] | None
    columns: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = {}
    bounds: Mapping[str, tuple[float | None, float | None]] = {}
    fusion: Fusion | None
    answers: Answers | None
    origin: Origin
    owner: Owner
    expires: date | None = None

    @property
    def takes(self) -> Mapping[str, TensorForm]:
        """What goes in, by name."""
        found = self.inputs if self.inputs is not None else self.fusion.features if self.fusion is not None else {}
        return found

    @property
    def discloses(self) -> Disclosure:
        """What the answers of this block tell of the samples that were put in."""
        return Disclosure.FEATURES if self.part == "base" else Disclosure.LOGITS


def _short(value: object) -> str:
    return str(value)[:120]
