"""SCAFFOLD: control variates on both sides correct the drift of clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interfuse.aggregation import moved
from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.families.averaging import Averaging
from interfuse.families.averaging import Global as ServersModel
from interfuse.families.checks import check_tensors
from interfuse.families.holdings import by_architecture
from interfuse.handler import on_client
from interfuse.messages import Message, NamedTensors, Parameters, State
from interfuse.server import Server
from interfuse.training import Combine, Gradients, Rate


class Global(ServersModel):
    """The server's model w and control variate c, which covers the trainable tensors."""

    control: NamedTensors


class Own(State):
    """A client's control variate c_k."""

    control: NamedTensors


class ModelAndControl(Message):
    """w and c down, y and c_k⁺ − c_k up."""

    weights: Parameters
    control: Parameters


def corrected(server: Mapping[str, Tensor], own: Mapping[str, Tensor], seen: NamedTensors) -> Combine:
    """The rule g(y) − c_k + c, which adds g(y) to what was seen."""

    def combine(gradients: Mapping[str, Gradients], parameters: Mapping[str, Tensor]) -> Gradients:
        local = gradients["local"]
        seen.update({key: seen[key] + g for key, g in local.items()})
        return {key: g + (server[key] - own[key]) for key, g in local.items()}

    return combine


@dataclass(frozen=True)
class SCAFFOLD(Averaging):
    """Stochastic controlled averaging (Karimireddy et al., ICML 2020), option II; its theory is for plain SGD.

    Option II's c_k⁺ = c_k − c + (w − y) / (K η) is the mean of the gradients of the round, where the optimizer is plain
    SGD. That mean is taken here, so that c_k is a gradient behind momentum and Adam too. Layer-wise as FedAvg: the
    server's control variate of a key counts all clients that hold the key.
    """

    origin = "SCAFFOLD's paper"
    usual = {"weights": "uniform"}  # for the control clients count alike whatever this is

    server_lr: Rate = 1.0  # eta_g: what the mean change of parameters is multiplied by [PFLlib's code]

    def start(self, server: Server[Global], clients: Clients) -> Global:
        weights = self.initial(server, clients)
        statistics = {
            prefix + key for prefix, some in self.groups(clients) for p in some.profiles.values() for key in p.buffers
        }
        return Global(weights, {key: torch.zeros_like(w) for key, w in weights.items() if key not in statistics})

    def new_client(self, client: Client[Own]) -> Own:
        return Own({key: torch.zeros_like(p) for key, p in client.model.parameters_of().items()})

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        w, c = self.models(old.weights, chosen), self.models(old.control, chosen)
        given = by_architecture(chosen, lambda p: ModelAndControl(w[p.id].tensors, c[p.id].tensors))
        groups = {client: prefix for prefix, some in self.groups(clients) for client in some}
        holders = Counter(groups[client] + key for client, p in clients.profiles.items() for key in p.keys)
        mean, control = self.means(old.weights, chosen), dict(old.control)

        def add(client: ClientId, reply: ModelAndControl) -> None:
            check_tensors(client, reply.control, c[client].tensors, "its control variate")
            mean.take(client, reply.weights)
            for key, change in reply.control.items():
                name = groups[client] + key
                control[name] = control[name] + change / holders[name]

        chosen.call(self.train, given, each=add)
        new = mean.result()
        change = {key: new[key] - w for key, w in old.weights.items() if key in old.control}
        statistics = {key: w for key, w in new.items() if key not in old.control}
        server.state = Global(moved(old.weights, change, statistics, self.server_lr), control)

    @on_client
    def train(self, client: Client[Own], received: ModelAndControl) -> ModelAndControl:
        client.model.load(received.weights)
        own = client.state.control
        seen = {key: torch.zeros_like(c) for key, c in own.items()}
        done = self.fit(client, {"local": client.loss}, combine=corrected(received.control, own, seen))
        if done.steps:
            client.state = Own({key: g / done.steps for key, g in seen.items()})
        change = {key: client.state.control[key] - own[key] for key in received.control}
        return ModelAndControl(client.tensors(buffers=self.buffers), change)
