"""FedNova: average the clients' steps, not how far they came with however many of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interfuse.aggregation import moved
from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.errors import ConfigError
from interfuse.families.averaging import Averaging, Global
from interfuse.families.checks import check_change, check_number
from interfuse.handler import on_client
from interfuse.messages import Change, Weights
from interfuse.server import Server


class Normalised(Change):
    """The change of the parameters divided by a_k, which is −d_k; statistics as they are; and a_k."""

    steps: float


def accumulated(steps: int, momentum: float) -> float:
    """a_k: how many gradients' worth of way SGD with momentum makes in so many steps; without momentum as many."""
    return float(sum((steps - i) * momentum**i for i in range(steps)))


@dataclass(frozen=True)
class FedNova(Averaging):
    """Normalised averaging (Wang et al., NeurIPS 2020): w ← w − τ_eff Σ p_k d_k, with d_k = (w − w_k) / a_k and
    τ_eff = Σ p_k a_k.

    Clients that make more steps do not pull the model to themselves. Layer-wise as FedAvg: sums over k are over those
    who hold a tensor. The theory is for SGD; with Adam, whose way is not known from its steps, a_k is their number.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_optimizer:
            raise ConfigError("FedNova: keep_optimizer = True: a_k is that of an optimizer that starts anew each round")

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state.weights
        w = self.models(old, chosen)
        replies = chosen.call(self.train, w)
        for client, reply in replies.items():
            check_change(client, reply, w[client].tensors, chosen.profiles[client].buffers)
            check_number(client, reply.steps, "its steps")
        none = {key: torch.zeros(()) for key in old}
        steps = {c: {key: torch.tensor(r.steps) for key in (*r.change, *r.statistics)} for c, r in replies.items()}
        # each client as if it had made tau_eff steps: the mean of these is the rule above, key by key
        tau_eff = self.models(self.mean(none, steps, chosen), chosen)
        levelled = {c: moved(w[c].tensors, r.change, r.statistics, tau_eff[c].tensors) for c, r in replies.items()}
        server.state = Global(self.mean(old, levelled, chosen))

    @on_client
    def train(self, client: Client, received: Weights) -> Normalised:
        client.model.load(received.tensors)
        done = self.fit(client, client.loss)
        a = accumulated(done.steps, self.momentum if self.optimizer == "sgd" else 0)
        made = client.change(received.tensors, self.buffers)
        # without a step there is no change, whatever it is divided by
        return Normalised({key: tensor / (a or 1) for key, tensor in made.change.items()}, made.statistics, a)
