"""Averages of adapters that then learn, on public rows, from what all clients answer there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from jaxtyping import Float, Float32
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.families.adapters import Adapters
from interfuse.families.averaged_adapters import AdapterAveraging
from interfuse.families.averaging import Global
from interfuse.families.public_learning import PublicLearning, Rows, check_answers, hosted, hosts
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, NamedTensors
from interfuse.server import Server


class Assignment(Message):
    """Adapters to begin with, and the public rows of the round."""

    adapters: Adapters
    rows: Rows


class Trained(Message):
    """Adapters as a client trained them, and its answers with them."""

    adapters: Adapters
    logits: Annotated[Float32[Tensor, "rows classes"], Disclosure.LOGITS]


class Lesson(Message):
    """The mean adapters of an architecture, and what teachers answer on the public rows of the round."""

    adapters: Adapters
    rows: Rows
    teachers: Annotated[Float32[Tensor, "teachers rows classes"], Disclosure.LOGITS]


@dataclass(frozen=True)
class TaughtAverages(PublicLearning, AdapterAveraging):
    """Methods whose round has two exchanges. Clients train adapters and send them, with what they answer on public
    rows; then for each architecture one client takes the mean and has it learn from what all answer."""

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old, rows = clients.sample(self.participation), server.state.weights, self.drawn(server)
        mean, logits = self.means(old, chosen), dict[ClientId, Tensor]()

        def take(client: ClientId, sent: Trained) -> None:
            check_answers(client, sent.logits, len(rows))
            mean.take(client, sent.adapters.tensors)
            logits[client] = sent.logits

        messages = self.adapters(old, chosen)
        chosen.call(self.train, {client: Assignment(own, rows) for client, own in messages.items()}, each=take)
        teachers, means = self.teachers(chosen, logits), mean.result()
        lessons = {client: Lesson(own, rows, teachers) for client, own in self.adapters(means, hosts(chosen)).items()}
        learnt = hosts(chosen).call(self.distil, lessons)
        server.state = Global(means | hosted(chosen, learnt, means))

    @abstractmethod
    def teachers(self, clients: Clients, logits: Mapping[ClientId, Tensor]) -> Float[Tensor, "teachers rows classes"]:
        """What teachers answer, of the answers of these clients."""

    @on_client
    def train(self, client: Client[Any], received: Assignment) -> Trained:
        sent = self.learn(client, received.adapters)
        return Trained(Adapters(sent), self.public_answers(client, sent, received.rows))

    @on_client
    def distil(self, client: Client[Any], lesson: Lesson) -> Adapters:
        return Adapters(self.learnt_from(client, lesson))

    @abstractmethod
    def learnt_from(self, client: Client[Any], lesson: Lesson) -> NamedTensors:
        """The mean adapters after the lesson."""
