"""IFL over a narrow fusion layer: of wide features a few fixed projections travel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from interfuse.clients import Clients
from interfuse.families.fusion import FusionPairs, SharingInRounds
from interfuse.families.replay import Replaying
from interfuse.method import Count
from interfuse.models import SplitModel
from interfuse.models.sketching import sketched
from interfuse.server import Server


@dataclass(frozen=True)
class IFLSketch(SharingInRounds, Replaying):
    """IFL whose base blocks end in a projection onto a few directions, and whose modular blocks begin with its
    transpose. Not from the paper.

    The directions are orthonormal, drawn from the run's seed, the same for all, and never trained. This is another
    fusion layer and no codec: training, evaluation and composition go through it, and a run's ``d`` is their number.
    """

    usual: ClassVar[Mapping[str, Any]] = {"window": 1}
    agreed: ClassVar[Collection[str]] = ("directions",)

    directions: Count = 32  # k: numbers that cross the fusion layer, of the models' d

    def round(self, server: Server, clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        outputs = self.outputs(chosen)
        chosen.call(self.train_modular, FusionPairs(tuple(outputs.values())))

    def crossing(self, width: int) -> int:
        return self.directions

    def fused(self, model: SplitModel, width: int, seed: int) -> SplitModel:
        return sketched(model, self.directions, width, seed)
