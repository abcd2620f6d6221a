"""Ditto on adapters: beside the averaged ones each client has its own, which stay near them."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.families.averaged_adapters import AveragingAdapters
from interfuse.families.personal_adapters import PersonalAdapters


@dataclass(frozen=True)
class DittoLoRA(AveragingAdapters, PersonalAdapters):
    """Ditto (Li et al., ICML 2021, arXiv:2012.04221) on LoRA adapters, as in FedMosaic's release; ``ditto`` is the same
    for whole models.

    A round is FedIT's, and beside it each client trains adapters of its own, with which it answers. Twice the work of a
    step, hence half of SFT's steps. The release multiplies the squared distance with 0.001, which is λ/2.

    Not taken over: the release averages the own adapters too, see :class:`interfuse.methods.fedsim.FedSim`.
    """

    origin = "FedMosaic's release"
    usual = {"local_steps": 50}
