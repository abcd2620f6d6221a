"""SplitFed v1: the model is cut between client and server, and both parts are averaged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.handler import on_client
from interfuse.message import Disclosure, FeatureGradients, Features, Labels, Message, NamedTensors, State
from interfuse.method import NOTHING, Count, Method, Steps
from interfuse.methods.local import Local
from interfuse.models import SplitModel
from interfuse.parameters import WeightRule, Weights, averaged, held, initial_weights, part_of
from interfuse.server import Server
from interfuse.training import Batch, LearningRate, OptimizerName, lacks_variance, modular_cross_entropy, pull_back


class Global(State):
    """Averaged client parts (before the cut) and server parts (behind it)."""

    fronts: NamedTensors
    tails: NamedTensors


class Smashed(Message):
    """A minibatch at the cut, and its labels."""

    z: Features
    y: Labels


class CutGradient(Message):
    """∂loss/∂z."""

    gradient: FeatureGradients


@dataclass(frozen=True)
class SplitFedV1(Method):
    """SplitFed version 1 (Thapa et al., AAAI 2022): a server copy per client, averaged with the client parts.

    The cut is the fusion layer. Each step costs an exchange: features and labels up, their gradient down.
    """

    discloses = frozenset({Disclosure.FEATURES, Disclosure.LABELS, Disclosure.PARAMETERS})

    local_steps: Steps = 0  # T: steps a round; 0: one epoch
    batch_size: Count = 32  # B: samples of a step
    lr: LearningRate = 0.01  # learning rate on both sides
    optimizer: OptimizerName = "sgd"  # sgd, adam or adamw, on both sides; starts anew each round
    weights: WeightRule = "samples"  # clients count by their samples, or uniform

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def start(self, server: Server[Global], clients: Clients) -> Global:
        return Global(*(initial_weights(server, clients, parts=[part]) for part in ("base", "modular")))

    def round(self, server: Server[Global], clients: Clients) -> None:
        old, profiles = server.state, clients.profiles
        clients.call(self.receive, held(old.fronts, clients))
        tails = {c: server.scratch_model(f"tail-{c}", profile.architecture) for c, profile in profiles.items()}
        for client, tail in tails.items():
            tail.load(part_of(old.tails, profiles[client]))
        steps = {client: self.steps_of(profile) for client, profile in profiles.items()}
        for step in range(max(steps.values())):
            active = clients.only(client for client in clients if step < steps[client])
            smashed = active.call(self.forward)
            active.call(self.backward, {c: self.serve(server, c, tails[c], sent) for c, sent in smashed.items()})
        server.optimizers.clear()
        fronts = {client: reply.tensors for client, reply in clients.call(self.send).items()}
        trained = {client: tail.tensors("modular") for client, tail in tails.items()}
        server.state = Global(
            averaged(old.fronts, fronts, profiles, self.weights), averaged(old.tails, trained, profiles, self.weights)
        )

    def steps_of(self, profile: Profile) -> int:
        return self.local_steps or math.ceil(profile.samples / self.batch_size)

    def serve(self, server: Server[Global], client: ClientId, tail: SplitModel, sent: Smashed) -> CutGradient:
        """A step of a client's server copy; answers with the gradient of the cut before the step."""
        z = sent.z.detach().requires_grad_()
        server.fit(
            tail, modular_cross_entropy, [Batch(z, sent.y.long())], train="modular", lr=self.lr,
            optimizer=self.optimizer, keep_optimizer=f"tail-{client}",
        )  # fmt: skip
        return CutGradient(torch.zeros_like(z) if z.grad is None else z.grad)

    @on_client
    def receive(self, client: Client, received: Weights) -> None:
        client.model.load(received.tensors)

    @on_client
    def forward(self, client: Client) -> Smashed:
        batch = client.batch(self.batch_size)
        with client.model.training_parts("base"):
            if lacks_variance(client.model, batch):  # `fit` will skip it on either side
                client.model.eval()
            client.scratch["batch"] = Batch(client.model.base(batch.x), batch.y)
        return Smashed(client.scratch["batch"].x, batch.y)

    @on_client
    def backward(self, client: Client, received: CutGradient) -> None:
        batch = client.scratch["batch"]
        client.fit(
            pull_back(batch.x, received.gradient), batches=[batch], train="base", lr=self.lr,
            optimizer=self.optimizer, keep_optimizer="front",
        )  # fmt: skip

    @on_client
    def send(self, client: Client) -> Weights:
        client.optimizers.clear()
        return Weights(client.tensors("base"))

    def prepare_evaluation(self, server: Server[Global], clients: Clients) -> None:
        clients.call(self.receive, held(server.state.fronts | server.state.tails, clients))

    def alone(self) -> Method:
        return Local(
            local_steps=self.local_steps, local_epochs=0 if self.local_steps else 1, batch_size=self.batch_size,
            lr=self.lr, optimizer=self.optimizer, keep_optimizer=False,
        )  # fmt: skip
