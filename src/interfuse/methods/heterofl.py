"""HeteroFL: narrower clients hold the first channels of every layer, and every element is averaged over its holders."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.families.submodels import MaskedSubModels


@dataclass(frozen=True)
class HeteroFL(MaskedSubModels):
    """Sub-models of several widths (Diao et al., ICLR 2021): resnet18, resnet18@0.5 and so on, with fixed rates.

    Clients train without the logits of classes they have not, and their rows of the classifier do not count for these.
    What nobody holds stays as it is. The authors' Scaler, activations divided by the rate in training, is left out:
    normalisation behind a layer undoes it, and models of several widths without any are refused. Running
    statistics of one width fit no other; the authors compute them anew, of all clients' data, before evaluation. Use
    ``buffers="recalibrate"`` (of a client's own data), or ``"batch-statistics"``, which costs nothing.
    """

    origin = "HeteroFL's code"
    usual = {"local_epochs": 5, "batch_size": 10, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
