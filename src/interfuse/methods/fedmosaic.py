"""FedMosaic: relevance-guided mixtures of adapters whose shared part has one shape in all models (RELA, Co-LoRA)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from interfuse.families.mosaic_blocks import BlockMosaic
from interfuse.models.adapters import Adapted, CoLoRALinear, DualLoRALinear, carriers, make_gate


@dataclass(frozen=True)
class FedMosaic(BlockMosaic):
    """Personalised federations of different transformers (Seo et al., ICLR 2026, arXiv:2506.11024).

    In the last layer of each of ``blocks`` pieces of a transformer an adapter is B (P A x + Q): A and B are frozen, and
    aligned between architectures once, on public data; P and Q have one shape in all models. Other layers have LoRA.
    A client trains its own adapters beside frozen ones that it received, mixed by a gate; then it sends its P and Q,
    its LoRA, and what its batches do to a small frozen network that all have in common. From the latter the server
    tells whose data are alike, and mixes for each client the P and Q of all others, and the LoRA of those with its
    architecture, never its own. Gates stay at home.

    Where the authors' release and the paper differ, defaults are the release's (cosines of columns, the first rows of a
    gradient, noise before the moving average) but for the gate, which is the paper's. Two are of neither: gradients go
    through the probe's normalisation exactly, and B is aligned by what corresponds between the models. In the release B
    stays in the space of its random columns, whatever the data.
    """

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        kind = CoLoRALinear if layer in carriers(layers, self.blocks) else DualLoRALinear
        return kind(base, self.rank, self.scale, make_gate(self.gate, base.in_features), self.dropout)
