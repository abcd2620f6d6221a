"""What clients draw of each class, beside samples that they have: for pictures, in simulations alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Shaped, UInt
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.errors import ModelError
from interfuse.federation import Federation
from interfuse.handler import Program, on_client
from interfuse.messages import Disclosure, Labels, Message
from interfuse.method import Method

MOST_DRAWING = 4
"""In larger federations so many clients, evenly spread over their numbers, draw."""
MOST_CLASSES = 10
"""Of more classes so many, evenly spread over their numbers, are drawn."""
EACH = 2
"""Samples drawn of a class by a client."""
DRAWING_CALLS = 4000
"""Where these calls of an evaluation begin to count: others have been at the same round before."""


class Wanted(Message):
    """Classes, and how many samples to draw of each."""

    y: Labels
    each: int


class Pictures(Message):
    """Samples as the client's data set stores them, with their classes.

    Attributes:
        drawn: Those that the method draws; of a class that it cannot draw there is none.
        real: The first training row of each class wanted that the client has.
    """

    drawn: Annotated[Shaped[Tensor, "drawn ..."], Disclosure.DATA]
    drawn_y: Annotated[UInt[Tensor, "drawn"], Disclosure.LABELS]
    real: Annotated[Shaped[Tensor, "real ..."], Disclosure.DATA]
    real_y: Annotated[UInt[Tensor, "real"], Disclosure.LABELS]


@dataclass(frozen=True, eq=False)
class Drawing(Program):
    """The handler behind the pictures of a run."""

    method: Method

    @on_client
    def draw(self, client: Client, wanted: Wanted) -> Pictures:
        """Samples of each class, and one that the client has."""
        dataset, classes = client.data.dataset, wanted.y.tolist()
        first = dict(reversed([(c, place) for place, c in enumerate(client.data.labels().tolist())]))
        real = client.data.raw(np.array([first[c] for c in classes if c in first], np.int64))
        found = {c: self._drawn(client, c, wanted.each) for c in classes}
        drawn = {c: dataset.denormalise(samples) for c, samples in found.items() if samples is not None}
        y = torch.tensor([*drawn], dtype=torch.int64).repeat_interleave(wanted.each)
        return Pictures(torch.cat([dataset.drawable[:0], *drawn.values()]), y, real.features, real.y)

    def _drawn(self, client: Client, label: int, count: int) -> Tensor | None:
        y = torch.full((count,), label, device=client.data.labels().device)
        with torch.no_grad():
            samples = self.method.samples_of(client, y)
        if samples is None:
            return None
        wanted, name = (count, *client.data.dataset.drawable.shape[1:]), type(self.method).__name__
        if samples.shape != wanted or not samples.isfinite().all():
            found = "with values that are not finite" if samples.shape == wanted else f"of shape {tuple(samples.shape)}"
            raise ModelError(f"{name}.samples_of gave samples {found} for {count} labels; it returns finite {wanted}")
        return samples


def drawing(method: Method) -> dict[str, Program]:
    """The program by which clients draw, where their method may have something to show."""
    return {} if type(method).samples_of is Method.samples_of else {"drawing": Drawing(method)}


def drawn_by(federation: Federation, client: ClientId, y: Sequence[int], each: int) -> Pictures | None:
    """What one client draws of these classes, so many of each; None: its method draws nothing.

    Raises:
        ClientError: it draws what are no samples.
    """
    program = federation.exchange.programs.get("drawing")
    if not isinstance(program, Drawing):
        return None
    with federation.evaluating(calls=DRAWING_CALLS) as clients:
        return clients.only([client]).call(program.draw, Wanted(torch.tensor(y, dtype=torch.int64), each))[client]


def draw(federation: Federation) -> tuple[Mapping[ClientId, Pictures], list[str]]:
    """What some clients draw, where the method draws and the data can be drawn; and who failed in it, in words.

    A picture that cannot be had is no reason to lose a run that is finished.
    """
    program = federation.exchange.programs.get("drawing")
    if not isinstance(program, Drawing) or "classes" not in federation.setup.dims:
        return {}, []
    classes = federation.setup.dims["classes"]
    count = min(classes, MOST_CLASSES)
    wanted = Wanted(torch.tensor([place * classes // count for place in range(count)]), EACH)
    with federation.evaluating(MOST_DRAWING, calls=DRAWING_CALLS) as clients:
        replies = clients.call(program.draw, wanted, minimum=0)
    found = {client: pictures for client, pictures in replies.items() if len(pictures.drawn)}
    return found, [f"no samples of client {f.client}: {f.reason}" for f in replies.failures]
