"""FedBuff: asynchronous federated averaging with a buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from interfuse.aggregation import counted_mean, keys_plan, moved
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import Notice
from interfuse.families.averaging import Global
from interfuse.families.checks import check_change
from interfuse.families.holdings import held, initial_weights, nothing_in_common
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import Change, Weights
from interfuse.method import NOTHING, STREAMED, NonNegative, Steps
from interfuse.server import Server


@dataclass(frozen=True)
class FedBuff(OwnTraining):
    """Federated learning with buffered asynchronous aggregation (Nguyen et al., AISTATS 2022, algorithm 1).

    All clients are at work all the time, each on the model that was the newest when it began. After K changes the
    server adds their mean, each divided by (1 + staleness)^0.5, staleness being the number of the server's models that
    came in between. A round ends with a new model. Statistics of normalisation have no changes: those of a client count
    by 1 / (1 + staleness)^0.5, the server's old ones for the rest, and the mean of that over the buffer is the new one.
    """

    usual = {"local_epochs": 1, "keep_optimizer": False}

    replies: Steps = 0  # K: changes in the buffer; 0 is as many as there are clients
    server_lr: NonNegative = 1.0  # eta_g: what the mean change of parameters is multiplied by
    damping: NonNegative = 0.5  # a change is divided by (1 + staleness) to this power [FedBuff's paper]

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def start(self, server: Server[Global], clients: Clients) -> Global:
        return Global(initial_weights(server, clients))

    def round(self, server: Server[Global], clients: Clients) -> None:
        weights, profiles, updates = server.state.weights, clients.profiles, []
        given = held(weights, clients)
        stream = clients.stream(self.train, given.__getitem__)
        for arrival in islice(stream, self.replies or len(clients)):
            check_change(arrival.client, arrival.reply, given[arrival.client].tensors, profiles[arrival.client].buffers)
            sent, scale = arrival.reply, (1 + server.round - arrival.round) ** -self.damping
            new = moved(weights, sent.change, sent.statistics, self.server_lr * scale, scale)
            updates.append((keys_plan(new), new, 1.0))
        server.state = Global(counted_mean(weights, updates))

    def calls_of_a_round(self, samples: int) -> Mapping[str, int]:
        return {"train": STREAMED}

    @on_client
    def train(self, client: Client, received: Weights) -> Change:
        client.model.load(received.tensors)
        self.fit(client, client.loss)
        return client.change(received.tensors)

    def deployed(self, server: Server[Global], clients: Clients) -> Mapping[ClientId, Weights]:
        return held(server.state.weights, clients)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return nothing_in_common(profiles)
