"""FedMosaic-homo: FedMosaic among models that are alike, with LoRA in all layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from interfuse.families.mosaic import MosaicLearning
from interfuse.models.adapters import Adapted, DualLoRALinear, make_gate


@dataclass(frozen=True)
class FedMosaicHomo(MosaicLearning):
    """FedMosaic without P and Q (Seo et al., ICLR 2026, arXiv:2506.11024): relevance weighs all A and B.

    Clients with models of several architectures share among those of their own alone.
    """

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        return DualLoRALinear(base, self.rank, self.scale, make_gate(self.gate, base.in_features), self.dropout)
