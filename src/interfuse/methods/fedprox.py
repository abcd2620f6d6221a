"""FedProx: FedAvg whose clients do not go far from where they began."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.families.proximal import AveragingNearby


@dataclass(frozen=True)
class FedProx(AveragingNearby):
    """Federated optimization with a proximal term (Li et al., MLSys 2020), with the weight of FedIN (arXiv:2304.00759).

    A round is that of FedAvg; clients minimise their loss plus (mu/2) ‖w − w̄‖² over the trainable parameters, w̄ being
    what they received.
    """
