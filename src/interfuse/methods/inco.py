"""InCo: at the server, later blocks of a stage take over a part of the first block's change."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.families.cross_layer import CrossLayer
from interfuse.families.proximal import AveragingNearby


@dataclass(frozen=True)
class InCo(CrossLayer, AveragingNearby):
    """Internal cross-layer gradients (Chan et al., ICLR 2024), on FedProx; with ``mu`` = 0 on FedAvg (InCoAvg).

    Convolutions in later blocks of a ResNet's stage are held by fewer clients the deeper they lie; their change takes
    over the direction of the second convolution of the first block, which all clients train. The weight of that is the
    authors' |b|/a, for agreement and conflict alike, where their theorem has −b/a for conflict alone. Only models with
    stages ``layerN.M`` have such blocks; of others nothing is changed. A tenth of the clients takes part in a round, as
    the authors have it with 20 and 100: of few clients give a larger ``participation``.
    """

    origin = "InCo's code"
    usual = {
        "mu": 0.0,
        "participation": 0.1,
        "weights": "uniform",
        "local_epochs": 5,
        "batch_size": 64,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
    }
