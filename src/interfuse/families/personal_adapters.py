"""Personal adapters beside averaged ones: each client's own, which stay near those that it received."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from interfuse.client import Client
from interfuse.families.adapters import Adapters
from interfuse.families.averaged_adapters import AdapterAveraging, cloned
from interfuse.messages import NamedTensors, State
from interfuse.method import NonNegative
from interfuse.training import proximal, total


class Personal(State):
    """Whether a client's model holds adapters of its own yet."""

    begun: bool


@dataclass(frozen=True)
class PersonalAdapters(AdapterAveraging):
    """Methods whose clients train, on the same batches, the adapters that travel, and adapters of their own on the
    loss plus (λ/2) ‖v − w̄‖², w̄ being what came in this round. The latter stay in the
    model, and answer; they begin as what came first."""

    origin = "FedMosaic's release"

    lam: NonNegative = 0.002  # lambda: weight of the squared distance to the averaged adapters

    def new_client(self, client: Client[Personal]) -> Personal:
        return Personal(False)

    def learn(self, client: Client[Personal], received: Adapters) -> NamedTensors:
        personal = cloned(client.model.tensors([self.shared])) if client.state.begun else received.tensors
        place = client.order.saved()
        client.model.load(received.tensors)
        self.fit(client, client.loss)
        sent = cloned(client.model.tensors([self.shared]))
        client.order.restore(place)
        client.model.load(personal)
        near = partial(proximal, anchor=received.tensors, mu=self.lam)
        self.fit(client, total(client.loss, near), **self.how("personal"))
        client.state = Personal(True)
        return sent
