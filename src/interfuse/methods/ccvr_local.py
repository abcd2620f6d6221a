"""CCVR for models that differ: Local, and then each client's own head learns from what all have."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.calibration import Calibrating
from interfuse.families.moments import ClassMoments, moments_of
from interfuse.handler import on_client
from interfuse.messages import Features, Labels, Message, NamedTensors, State
from interfuse.messages.delivery import LARGEST
from interfuse.method import Fraction
from interfuse.server import Server


class Drawn(Message):
    """Features drawn from Gaussians of all classes: no sample's."""

    z: Features
    y: Labels


class Own(State):
    """The modular block as training left it, once the model has a calibrated one in its place; nothing before."""

    trained: NamedTensors


@dataclass(frozen=True)
class CCVRLocal(Calibrating):
    """Classifier calibration (CCVR, Luo et al., NeurIPS 2021) where every client has a model of its own.

    A reconstruction: how the authors of FedVTC (arXiv:2508.01669) ran CCVR with unlike models is not public. Clients
    train alone, as in Local. After the last round they send the moments of their classes once; the server pools them
    over all clients, as if all extractors made features of one space, which nothing here brings about, and hands
    features drawn from a Gaussian of each class to everybody. On these each client trains a copy of its own modular
    block, and answers with it. Further rounds go on from the block that training left. Models agree in the width of the
    fusion layer alone. ``ccvr`` is the published method, for a model that is averaged.
    """

    usual = {"local_epochs": 1}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round; all are calibrated [interfuse]

    def new_client(self, client: Client[Own]) -> Own:
        return Own({})

    def round(self, server: Server, clients: Clients) -> None:
        clients.sample(self.participation).call(self.train)

    @on_client
    def train(self, client: Client[Own]) -> None:
        client.model.load(client.state.trained)
        client.state = Own({})
        self.fit(client, client.loss)

    def finish(self, server: Server, clients: Clients) -> None:
        moments = self.gaussians(server)
        clients.call(self.moments, each=moments.take)
        rows = self.drawn(server, moments)
        # what is drawn around the largest mean that a client may send could not travel
        clients.call(self.retrain, Drawn(rows.features.clamp(-LARGEST, LARGEST), rows.y))

    @on_client
    def moments(self, client: Client[Own]) -> ClassMoments:
        return moments_of(client, self.covariance)

    @on_client
    def retrain(self, client: Client[Own], drawn: Drawn) -> None:
        head = client.model.live(client.model.keys_of("modular"))
        client.state = Own({key: tensor.clone() for key, tensor in head.items()})
        self.calibrate(client, Batch(drawn.z, drawn.y.long()))
