"""FedIT: FedAvg of LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.families.averaged_adapters import AnsweringAverages, AveragingAdapters


@dataclass(frozen=True)
class FedIT(AveragingAdapters, AnsweringAverages):
    """Federated instruction tuning (Zhang et al., arXiv:2305.05644): LoRA adapters, trained and averaged.

    A and B are averaged each by itself, so the mean model is not the mean of the models' updates B A; with one client,
    or where all agree, it is. Only clients with one architecture average. As in FedMosaic's release a client answers
    with the adapters that it trained last, a mean that was tuned on its own samples, and clients count alike; in the
    paper the mean answers, and clients count by their samples.
    """
