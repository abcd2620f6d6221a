"""Fed-ET: groups of small models teach a large one at the server, which gives them its head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client, Profile
from interfuse.clients import Clients
from interfuse.data import Batch, Inputs
from interfuse.data.inputs import split
from interfuse.families.averaging import AveragingModels
from interfuse.families.averaging import Global as ServersModel
from interfuse.families.heads import check_common_head
from interfuse.families.holdings import averaged, one_of_each_architecture
from interfuse.handler import on_client
from interfuse.messages import Data, Message, NamedTensors
from interfuse.method import Count, NonNegative, Steps
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import LearningRate

_CHUNK = 256


class PublicRows(Message):
    """Samples without labels that a client gives to everybody."""

    x: Data


class Global(ServersModel):
    """The models of all groups, and the unlabelled public set, as stored."""

    public: Shaped[Tensor, "batch ..."]


def consensus(
    scores: Float[Tensor, "k rows classes"],
) -> tuple[Int64[Tensor, "rows"], Float[Tensor, "rows classes"]]:
    """What the clients agree on for each row, and what those who do not say; this is 0 where all agree.

    Clients count by the variance of their scores over the classes. The answer is the largest of the weighted sum;
    those whose own answer is another keep their weights, scaled to add up to 1.
    """
    alpha = scores.var(2, correction=0)
    alpha = alpha / alpha.sum(0).clamp(min=torch.finfo(alpha.dtype).tiny)
    answer = (alpha[..., None] * scores).sum(0).argmax(1)
    dissent = alpha * (scores.argmax(2) != answer)
    dissent = dissent / dissent.sum(0).clamp(min=torch.finfo(alpha.dtype).tiny)
    return answer, (dissent[..., None] * scores).sum(0)


@dataclass(frozen=True)
class FedET(AveragingModels):
    """Heterogeneous ensemble transfer (Cho et al., IJCAI 2022); no code of the authors is public.

    Clients of one architecture average their models. The server has a model of the clients' largest architecture; it
    begins each round with the mean of the clients' modular blocks, which must be alike, learns what the clients agree
    on and what the dissenters say on the public set, and gives its modular block to all groups. The public set is made
    of rows that clients give once, without labels: more like their data than a public set would be. Scores are logits;
    log-probabilities differ from them by one number a row, so variances over the classes and answers are the same.
    Defaults of the server's training are those of a server of others (a third party's code), for want of the authors'.
    """

    usual = {"aggregation": "group"}
    origin = "Fed-ET's paper"

    diversity: NonNegative = 0.05  # lambda: weight of the divergence from dissenters, a mean [third party's code]
    server_steps: Steps = 128  # steps of the server's model in a round [third party's code]
    server_batch_size: Count = 64  # public rows of a step of the server's model [third party's code]
    server_lr: LearningRate = 0.005  # learning rate of the server's model [third party's code]
    public_rows: Count = 50  # rows that each client gives to the public set [interfuse]

    def start(self, server: Server[Global], clients: Clients) -> Global:
        _ = server.dims["classes"]  # what the clients' models vote for
        self.check_buffers(clients, BufferPolicy.AGGREGATE)
        check_common_head(server, clients)
        largest = max(one_of_each_architecture(clients), key=size)
        server.model("large", largest.architecture)
        given = clients.call(self.give).values()
        return Global(self.initial(server, clients), torch.cat([rows.x for rows in given]))

    @on_client
    def give(self, client: Client) -> PublicRows:
        rows = client.data.raw().features
        return PublicRows(rows[torch.randperm(len(rows), generator=client.generator)[: self.public_rows]])

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old, large = clients.sample(self.participation), server.state, server.network("large")
        replies = chosen.call(self.train, self.models(old.weights, chosen))
        sent = {c: reply.tensors for c, reply in replies.items()}
        head = {
            key: t for key, t in large.tensors("modular").items() if all(key in tensors for tensors in sent.values())
        }
        heads = {c: {key: tensors[key] for key in head} for c, tensors in sent.items()}
        large.load(averaged(head, heads, chosen.profiles, self.weights))
        architectures = {c: chosen.profiles[c].architecture for c in sent}
        models = [(server.scratch_model(architectures[c], architectures[c]), tensors) for c, tensors in sent.items()]
        self.transfer(server, models)
        weights = self.mean(old.weights, sent, chosen) | self.heads(large.tensors("modular"), old.weights)
        server.state = Global(weights, old.public)

    def heads(self, head: NamedTensors, weights: NamedTensors) -> NamedTensors:
        """The modular block in place of those of all groups, whose keys may stand behind the name of a group."""
        behind = {key: key.rpartition(":")[2] for key in weights}
        return {key: head[name] for key, name in behind.items() if name in head}

    def transfer(self, server: Server[Global], models: Sequence[tuple[SplitModel, NamedTensors]]) -> None:
        """Train the server's model on the public set: CE(F(x), ŷ) + λ KL(s_div ‖ F(x))."""
        x = server.inputs(server.state.public)
        scores = torch.stack([answers(model, tensors, x) for model, tensors in models])
        answer, dissent = consensus(scores)
        loss = partial(taught, answer=answer, dissent=dissent, weight=self.diversity)
        drawn = torch.randint(len(x), (self.server_steps, self.server_batch_size), generator=server.generator)
        server.fit(loss, (Batch(x[rows], rows) for rows in drawn), network="large", lr=self.server_lr)


def taught(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    answer: Int64[Tensor, "rows"],
    dissent: Float[Tensor, "rows classes"],
    weight: float,
) -> Tensor:
    """Cross entropy with what all agree on, and the weighted divergence from those who do not, where there are any.

    For labels the batch has the places of its rows.
    """
    logits, answer, dissent = model(batch.x), answer[batch.y], dissent[batch.y]
    distance = functional.kl_div(logits.log_softmax(1), dissent.softmax(1), reduction="none").sum(1)
    disputed = dissent.abs().sum(1) > 0
    return functional.cross_entropy(logits, answer) + weight * (distance * disputed).mean()


def answers(model: SplitModel, tensors: NamedTensors, x: Inputs) -> Float[Tensor, "rows classes"]:
    """The logits of a model with these weights."""
    model.load(tensors)
    with model.evaluating():
        return torch.cat([model(rows) for rows in split(x, _CHUNK)])


def size(profile: Profile) -> int:
    """Elements of a client's tensors."""
    return sum(map(math.prod, profile.keys.values()))
