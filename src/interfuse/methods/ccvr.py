"""CCVR: FedAvg, and then a head that is trained on features drawn from Gaussians of all classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.families.averaging import AveragingModels, merged, under
from interfuse.families.averaging import Global as ServersModel
from interfuse.families.calibration import Calibrating
from interfuse.families.heads import check_common_head
from interfuse.families.moments import ClassMoments, moments_of
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, Weights
from interfuse.server import Server


class Global(ServersModel):
    """The server's model as training left it, and the calibrated heads; these are nothing before the end."""

    heads: NamedTensors


@dataclass(frozen=True)
class CCVR(AveragingModels, Calibrating):
    """Classifier calibration with virtual representations (Luo et al., NeurIPS 2021, arXiv:2106.05001).

    Rounds are those of FedAvg. After the last one every client sends mean, covariance and count of the features of each
    of its classes, under the trained model; the server pools them to the moments of the union, draws features from a
    Gaussian of each class, and trains the modular block on these. The averaged model stays as it is: further rounds go
    on from it, and clients answer with the calibrated block. All modular blocks must be alike; with ``aggregation =
    "group"`` each architecture has a calibration of its own.

    The paper's text was not at hand: how much is drawn and trained is FL-bench's. ``ccvr-local`` is for clients
    with extractors of their own.
    """

    usual = {"local_epochs": 1}

    def start(self, server: Server[Global], clients: Clients) -> Global:
        self.check_buffers(clients, BufferPolicy.AGGREGATE, BufferPolicy.LOCAL)
        for _, alike in self.groups(clients):
            check_common_head(server, alike)
        return Global(self.initial(server, clients), {})

    def round(self, server: Server[Global], clients: Clients) -> None:
        server.state = Global(self.trained(server, clients.sample(self.participation)), {})

    def finish(self, server: Server[Global], clients: Clients) -> None:
        weights = server.state.weights
        heads = {prefix: self.calibrated(server, prefix, alike) for prefix, alike in self.groups(clients)}
        server.state = Global(weights, {key: head for key, head in merged(heads).items() if key in weights})

    def calibrated(self, server: Server[Global], prefix: str, alike: Clients) -> NamedTensors:
        """The modular block of one group of clients, calibrated on the features of all of them."""
        weights, moments = under(prefix, server.state.weights), self.gaussians(server)
        alike.call(self.moments, self.models(server.state.weights, alike), each=moments.take)
        first, *_ = alike.profiles.values()
        head = server.scratch_model(f"head{prefix}", first.architecture)
        head.load({key: weights[key] for key in head.tensors("modular") if key in weights})
        self.calibrate(server, self.drawn(server, moments), f"head{prefix}")
        return head.tensors("modular")

    @on_client
    def moments(self, client: Client, received: Weights) -> ClassMoments:
        client.model.load(received.tensors)
        return moments_of(client, self.covariance)

    def deployed(self, server: Server[Global], clients: Clients) -> Mapping[ClientId, Weights]:
        return self.models(server.state.weights | server.state.heads, clients)
