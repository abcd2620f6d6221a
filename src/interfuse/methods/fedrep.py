"""FedRep: each client first fits its own head to the common base block, then the base block to its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interfuse.client import Client
from interfuse.families.shared_base import PersonalHeads
from interfuse.method import Steps


@dataclass(frozen=True)
class FedRep(PersonalHeads):
    """Exploiting shared representations (Collins et al., ICML 2021, arXiv:2102.07078).

    A round hands the averaged base block to clients. They train their own modular block for ``head_epochs`` while the
    base block is frozen, its statistics too, then the base block while the modular block is; base blocks are averaged.
    Defaults are those of FedRep in the code of SRPFL (Tziotis et al., TMLR), which decays weights but not biases: here
    all decay.
    """

    origin = "SRPFL's code"
    usual = {"lr": 0.01, "momentum": 0.5, "weight_decay": 1e-4}

    head_epochs: Steps = 10  # epochs of the modular block in a round, before local_epochs of the base block

    def learn(self, client: Client[Any]) -> None:
        how = self.how("modular") | {"batch_size": self.batch_size}
        client.fit(client.loss, epochs=self.head_epochs, train="modular", **how)
        self.fit(client, client.loss, train="base", **self.how("base"))
