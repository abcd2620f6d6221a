"""IFL with a late joiner whose features an incumbent's modular block answers with gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.checks import check_batch, check_tensors
from interfuse.families.late_joining import LateJoining
from interfuse.handler import on_client
from interfuse.messages import FeatureGradients, Features, Labels, Message
from interfuse.method import Steps
from interfuse.server import Server
from interfuse.training import gradient_of_features, pull_back


class Question(Message):
    """A newcomer's minibatch at the fusion layer, and its labels."""

    z: Features
    y: Labels


class Reply(Message):
    """∂loss/∂z, of the incumbent's modular block."""

    gradient: FeatureGradients


@dataclass(frozen=True)
class IFLLateAnswers(LateJoining):
    """IFL whose newcomers train their base blocks behind the incumbents' modular blocks. Not from the paper.

    Each step costs an exchange: features and labels up, the gradient of the loss back, by way of the server. The
    modular blocks stay with their vendors and do not change. A newcomer's own learns from its own outputs.
    """

    teacher: Steps | Literal["turns"] = "turns"  # whose modular block answers: a client's, or the incumbents' in turn

    def asked(self) -> ClientId | None:
        return None if self.teacher == "turns" else self.teacher

    def round(self, server: Server, clients: Clients) -> None:
        incumbents, newcomers = self.parted(clients)
        if server.round < self.joins_at:
            self.exchange(incumbents)
            return
        for step in range(self.local_steps):
            turn = (server.round - self.joins_at) * self.local_steps + step
            teacher = incumbents.ids[turn % len(incumbents)] if self.teacher == "turns" else self.teacher
            questions, asked = newcomers.call(self.ask), incumbents.only([teacher])
            for client, question in questions.items():
                check_batch(client, question.y, clients.profiles[client].samples, least=0)
            replies = {c: asked.call(self.answer, q)[teacher] for c, q in questions.items() if len(q.y)}
            for client, reply in replies.items():
                check_tensors(teacher, {"gradient": reply.gradient}, {"gradient": questions[client].z}, "its answer")
            if replies:
                newcomers.call(self.learn, replies)
        newcomers.call(self.follow)

    @on_client
    def ask(self, client: Client) -> Question:
        batch = client.scratch["batch"] = client.front(client.batch(self.batch_size))
        return Question(batch.features, batch.y)

    @on_client
    def answer(self, client: Client, question: Question) -> Reply:
        return Reply(gradient_of_features(client.modular_loss, client.model, Batch(question.z, question.y)))

    @on_client.continuing
    def learn(self, client: Client, reply: Reply) -> None:
        batch = client.scratch["batch"]
        loss = partial(pull_back, gradient=reply.gradient)
        client.fit(loss, batches=[batch], **self.how("base", self.base_lr))

    @on_client
    def follow(self, client: Client) -> None:
        how = self.how("modular", self.modular_lr)
        client.fit(client.loss, steps=self.local_steps, batch_size=self.batch_size, **how)
