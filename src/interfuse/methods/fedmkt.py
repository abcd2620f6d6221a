"""FedMKT: on each public row the best model teaches those that are worse there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ClientError, ConfigError
from interfuse.families.adapters import Adapters
from interfuse.families.averaged_adapters import SharedAdapters, cloned
from interfuse.families.averaging import Global, of_each_architecture
from interfuse.families.public_learning import PublicLearning, Rows, check_answers, hosted, hosts
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, NamedTensors
from interfuse.method import Count
from interfuse.models import SplitModel
from interfuse.models.adapters import OWN
from interfuse.server import Server


class Answers(Message):
    """A model's largest logits on public rows, of which classes they are, and its loss on each row."""

    logits: Annotated[Float32[Tensor, "rows kept"], Disclosure.LOGITS]
    of: Annotated[Int64[Tensor, "rows kept"], Disclosure.LOGITS]
    loss: Annotated[Float32[Tensor, "rows"], Disclosure.LOGITS]


class Asked(Message):
    """The public rows of the round."""

    rows: Rows


class Knowledge(Message):
    """What a teacher answers on the public rows of the round."""

    rows: Rows
    answers: Answers


class GlobalTask(Message):
    """The adapters of the global model of an architecture, and what it is to learn from."""

    adapters: Adapters
    knowledge: Knowledge


class GlobalReply(Message):
    """These adapters when they learnt, and what they answer then."""

    adapters: Adapters
    answers: Answers


def near_answers(model: SplitModel, batch: Batch, step: int) -> Tensor:
    """Cross entropy with a distribution over classes for each row."""
    return functional.cross_entropy(model(batch.x), batch.y)


def best_of(replies: Iterable[Answers]) -> Answers:
    """Of each row the answer with the lowest loss."""
    found = list(replies)
    loss, best = torch.stack([own.loss for own in found]).min(0)
    row = torch.arange(len(best), device=best.device)
    logits, of = (torch.stack(some)[best, row] for some in ([a.logits for a in found], [a.of for a in found]))
    return Answers(logits, of, loss)


def with_losses(answers: Answers, y: Int64[Tensor, "rows"], classes: int) -> Answers:
    """The same with the losses that follow from the logits, where these are of all classes; else as they were sent."""
    if answers.logits.shape[1] < classes:
        return answers
    logits = torch.zeros_like(answers.logits).scatter(1, answers.of, answers.logits)
    return replace(answers, loss=functional.cross_entropy(logits, y.to(logits.device), reduction="none"))


def distributions(answers: Answers, classes: int) -> Float[Tensor, "rows classes"]:
    """The softmax of the logits that were kept; other classes have nothing."""
    zero = answers.logits.new_zeros(len(answers.of), classes)
    return zero.scatter(1, answers.of, answers.logits.softmax(1))


@dataclass(frozen=True)
class FedMKT(PublicLearning, SharedAdapters):
    """Federated mutual knowledge transfer (Fan et al., COLING 2025, arXiv:2406.02224), as in FedMosaic's release.

    Clients keep their adapters and train them. Of each public row that client teaches whose loss is lowest, by its
    largest logits: a global model for each architecture learns on the rows on which that loss is below its own. Then
    each client learns from the global model of its architecture where that has the lower loss. Nothing is averaged, and
    of clients' adapters nothing travels. Where logits of all classes are sent, the server has the losses from them;
    where fewer are, whoever sends a low loss teaches: it is taken at its word.

    Classes are common to all clients, so there is no token to align. Not taken over: losses and answers are taken in
    training mode in the release, with dropout.
    """

    origin = "FedMosaic's release"
    usual = {"local_steps": 60}

    top_k: Count = 128  # largest logits of a row that are sent, or all where classes are fewer [FedMKT's code]

    def start(self, server: Server[Any], clients: Clients) -> Global:
        if server.public.task != server.task:
            raise ConfigError(
                "fedmkt takes losses on public rows, whose classes are not those of the task: name public data with "
                f"the classes {', '.join(server.task.names)[:80]}"
            )
        return super().start(server, clients)

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, weights, rows = clients.sample(self.participation), server.state.weights, self.drawn(server)
        shape, sent = (len(rows), min(self.top_k, server.dims["classes"])), dict[ClientId, Answers]()
        y = server.public.labels()[rows].long()

        def take(client: ClientId, answers: Answers) -> None:
            check(client, answers, shape, server.dims["classes"])
            sent[client] = with_losses(answers, y, server.dims["classes"])

        chosen.call(self.train, Asked(rows), each=take)
        best, owned = Knowledge(rows, best_of(sent.values())), self.adapters(weights, hosts(chosen))
        learnt = hosts(chosen).call(self.teach_global, {host: GlobalTask(own, best) for host, own in owned.items()})
        knowledge = dict[ClientId, Knowledge]()
        for host, (_, some) in zip(hosts(chosen), of_each_architecture(chosen), strict=True):
            check(host, learnt[host].answers, shape, server.dims["classes"])
            answers = with_losses(learnt[host].answers, y, server.dims["classes"])
            knowledge |= dict.fromkeys(some, Knowledge(rows, answers))
        taught = hosted(chosen, {host: reply.adapters for host, reply in learnt.items()}, weights)
        chosen.call(self.learn_from_global, knowledge)
        server.state = Global(weights | taught)

    @on_client
    def train(self, client: Client, asked: Asked) -> Answers:
        self.fit(client, client.loss)
        return self.answered(client, client.model.tensors([OWN]), asked.rows)

    @on_client
    def teach_global(self, client: Client, task: GlobalTask) -> GlobalReply:
        learnt = self.learnt(client, task.adapters.tensors, task.knowledge)
        return GlobalReply(Adapters(learnt), self.answered(client, learnt, task.knowledge.rows))

    @on_client
    def learn_from_global(self, client: Client, knowledge: Knowledge) -> None:
        client.model.load(self.learnt(client, cloned(client.model.tensors([OWN])), knowledge))

    def answered(self, client: Client, tensors: NamedTensors, rows: Tensor) -> Answers:
        """What the client's model answers with these adapters."""
        logits, y = self.public_answers(client, tensors, rows), client.public.labels()[rows.cpu()].long()
        loss = functional.cross_entropy(logits, y.to(logits.device), reduction="none")
        return Answers(*logits.topk(min(self.top_k, logits.shape[1])), loss)

    def learnt(self, client: Client, start: NamedTensors, knowledge: Knowledge) -> NamedTensors:
        """Adapters after they learnt on the rows on which the teacher is better."""
        better = knowledge.answers.loss < self.answered(client, start, knowledge.rows).loss
        targets = distributions(knowledge.answers, client.dims["classes"])
        return self.taught(client, start, near_answers, knowledge.rows.to(better.device)[better], targets[better])


def check(client: ClientId, answers: Answers, shape: tuple[int, int], classes: int) -> None:
    """Check what a model answers on public rows.

    Raises:
        ClientError: rows, logits or losses are not what they can be; names the client.
    """
    check_answers(client, answers.logits, shape[0])
    of = answers.of.sort(1).values
    known = (of >= 0) & (of < classes)
    if tuple(of.shape) != shape or not bool(known.all()) or bool((of[:, 1:] == of[:, :-1]).any()):
        raise ClientError(f"client {client} sent logits not of {shape[1]} of {classes} classes a row", client)
    if len(answers.loss) and float(answers.loss.min()) < 0:
        raise ClientError(f"client {client} sent a loss below 0", client)
