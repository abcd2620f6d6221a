"""FedAvg: average parameters, key by key over the clients that hold them."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.families.averaging import AveragingModels


@dataclass(frozen=True)
class FedAvg(AveragingModels):
    """Federated averaging (McMahan et al., AISTATS 2017), layer-wise where clients hold different depths of one model.

    A round hands the server's model to a fraction of the clients, which train it on their data; the mean of what they
    send, weighted by their samples, is the server's model. With one architecture this is the published method.
    """
