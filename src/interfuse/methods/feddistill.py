"""FedDistill (FD): share the mean logits of each class, and answer each sample as all do its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Float32, UInt
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import Notice
from interfuse.families.checks import rows_of_all
from interfuse.families.class_tables import mean_table, placed
from interfuse.families.holdings import one_a_round
from interfuse.families.own_training import OwnTraining
from interfuse.families.prototypes import Taken, share_through
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, State
from interfuse.method import Fraction, NonNegative
from interfuse.models import SplitModel
from interfuse.server import Server


class ClassLogits(Message):
    """Mean logits of samples by their class, one row a class; classes without a row are absent."""

    mean: Annotated[Float32[Tensor, "present classes"], Disclosure.LOGITS]
    y: Annotated[UInt[Tensor, "present"], Disclosure.LABELS]


class Teacher(State):
    """The means over clients, a row a class, and which classes have one."""

    logits: Float32[Tensor, "classes classes"]
    known: Bool[Tensor, "classes"]


def taught(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    table: Float[Tensor, "classes classes"],
    known: Bool[Tensor, "classes"],
    weight: float,
) -> Tensor:
    """CE with the labels + λ · CE with softmax(t_y), t_y the logits of all for the class; without any it adds 0."""
    logits = model(batch.x)
    to_teacher = functional.cross_entropy(logits, table.softmax(1)[batch.y], reduction="none")
    return functional.cross_entropy(logits, batch.y) + weight * (to_teacher * known[batch.y]).mean()


@dataclass(frozen=True)
class FedDistill(OwnTraining):
    """Federated distillation (Jeong et al., arXiv:1811.11479), FD in HtFLlib, with the latter's defaults.

    A round trains every model on the labels and on what the models of all clients answer, in the mean, to the class of
    a sample; then it takes each client's mean logits by class, and averages these over clients, who count alike. As in
    HtFLlib a client's own means are among those of all, which the paper leaves out. Models may differ in everything.
    A class that no client of a round has keeps its logits.

    Not taken over: HtFLlib has the logits themselves where a distribution belongs, so that a scale is learnt and the
    loss has no least value; and of a class that has none yet the own answer.
    """

    origin = "HtFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.01}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]
    weight: NonNegative = 1.0  # lambda: weight of the cross entropy with what all answer, a mean over the batch
    logits: Taken = "after"  # take logits after training, or during it, over all its steps, as in HtFLlib [interfuse]

    def start(self, server: Server[Teacher], clients: Clients) -> Teacher:
        classes = server.dims["classes"]
        return Teacher(torch.zeros(classes, classes), torch.zeros(classes, dtype=torch.bool))

    def round(self, server: Server[Teacher], clients: Clients) -> None:
        old, classes = server.state, server.dims["classes"]
        known = ClassLogits(old.logits[old.known], old.known.nonzero().flatten())
        new = mean_table(rows_of_all(clients.sample(self.participation).call(self.train, known)), classes)
        merged = torch.where(new.present[:, None], new.rows, old.logits.to(new.rows))
        server.state = Teacher(merged, new.present | old.known.to(new.present.device))

    @on_client
    def train(self, client: Client, teacher: ClassLogits) -> ClassLogits:
        table = placed(teacher.mean, teacher.y, client.dims["classes"])
        loss = partial(taught, table=table.rows, known=table.present, weight=self.weight)
        fitted = self.fit(client, loss, outputs_of="modular" if self.logits == "during" else None)
        rows = share_through(client, client.model) if fitted.outputs is None else fitted.outputs
        means = mean_table(rows, client.dims["classes"])
        return ClassLogits(means.rows[means.present], means.y)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation, "what all answer is what one client answers")
