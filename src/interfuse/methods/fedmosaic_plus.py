"""fedmosaic+: FedMosaic that gets from as many clients as is wanted, and sends less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from interfuse.client import Profile
from interfuse.families.mosaic_blocks import BlockMosaic
from interfuse.families.probes import sketched
from interfuse.families.relevance import Relevance
from interfuse.families.weighing import Matrix, calibrated, weights
from interfuse.method import NonNegative, Steps
from interfuse.models.adapters import OWN, Adapted, CoLoRALinear, carriers, make_gate
from interfuse.randomness import seeded


@dataclass(frozen=True)
class FedMosaicPlus(BlockMosaic):
    """FedMosaic (Seo et al., ICLR 2026, arXiv:2506.11024) with its weak parts mended. Own work.

    The published temperature leaves weights nearly uniform, and what relevances mean differs from probe to probe: here
    each client's temperature is that at which it gets from so many effective sources (e^H). Nine tenths of the upload
    are the probe's gradient and LoRA for models alike: here the gradient is a sketch, which keeps cosines nearly, and
    every layer has P and Q, in a random basis that all models of an architecture have in common; those of layers that
    do not carry them for all go to models alike.
    """

    origin = "interfuse"
    agreed: ClassVar[tuple[str, ...]] = (*BlockMosaic.agreed, "sketch")
    usual = {"similarity": "flat"}

    sources: NonNegative = 2.0  # e^H that each client gets from; 0: as the temperature has it
    sketch: Steps = 1024  # numbers that are sent of a gradient; 0: all

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        with seeded(0, "basis", layer, layers, linear, base.in_features, base.out_features):
            return CoLoRALinear(base, self.rank, self.scale, make_gate(self.gate, base.in_features), self.dropout)

    def others_of(self, profile: Profile) -> list[str]:
        own = [key for key in profile.keys if f".{OWN}." in key]
        carrying = carriers(1 + max(map(layer_of, own)), self.blocks)
        return sorted(key for key in own if layer_of(key) not in carrying)

    def packed(self, gradient: Float[Tensor, "kept hidden"]) -> Float[Tensor, "rows columns"]:
        return sketched(gradient, self.sketch) if self.sketch else gradient

    def mixture(self, known: Relevance, among: Bool[Tensor, "clients clients"] | None = None) -> Matrix:
        if not self.sources:
            return super().mixture(known, among)
        return weights(known.scores, calibrated(known.scores, self.sources, among), among)


def layer_of(key: str) -> int:
    """The number of the layer that a key is of: the last number in it."""
    return next(int(part) for part in reversed(key.split(".")) if part.isdigit())
