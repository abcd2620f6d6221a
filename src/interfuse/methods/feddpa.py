"""FedDPA: a global adapter, and a local one that is trained beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from interfuse.client import Client
from interfuse.families.adapters import Adapters
from interfuse.families.averaged_adapters import cloned
from interfuse.families.dual_adapters import DualAdapters, mixed, mixed_loss
from interfuse.families.mutual import Part
from interfuse.messages import NamedTensors
from interfuse.method import Predictor
from interfuse.models.adapters import OWN, RECEIVED


@dataclass(frozen=True)
class FedDPA(DualAdapters):
    """Dual-personalizing adapters (Yang et al., NeurIPS 2024, arXiv:2403.19211), FedDPA-T.

    A round trains the local adapter in the mix with the global one as it came, which is frozen, and then the global one
    by itself, from where it came; the latter is averaged. A client answers with the mix of its local adapter and the
    newest mean. Each is trained for half of SFT's steps.

    Not taken over: the paper may weigh the adapters for each input, by how near it is to inputs of training; here, as
    in FedMosaic's release, the mix is fixed. That release trains the global adapter first, and the local one beside the
    result; and it averages local adapters too, see :class:`interfuse.methods.fedsim.FedSim`.
    """

    origin = "FedMosaic's release"
    usual = {"local_steps": 50, "answers": "averaged"}

    global_share: Part = 0.5  # weight of the global adapter in the mix; the local one has the rest [FedDPA's code]

    def learn(self, client: Client[Any], received: Adapters) -> NamedTensors:
        client.model.load(received.tensors)
        self.fit(client, partial(mixed_loss, task=client.task, share=self.global_share), train=(OWN,))
        self.fit(client, partial(mixed_loss, task=client.task, share=1.0), train=(RECEIVED,))
        return cloned(client.model.tensors([self.shared]))

    def predictor(self) -> Predictor:
        return partial(mixed, share=self.global_share)
