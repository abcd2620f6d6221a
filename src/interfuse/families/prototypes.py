"""Class means of features: what methods that share prototypes have in common. The tables behind them: class_tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float32, UInt
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch, Inputs
from interfuse.errors import Notice
from interfuse.families.class_tables import kept_up, mean_table, placed
from interfuse.families.holdings import one_a_round
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, State
from interfuse.method import Fraction, NonNegative
from interfuse.models import SplitModel
from interfuse.server import Server

Taken = Literal["after", "during"]
"""When class means are taken: of the model that training has left, or of the batches while it went on."""

_CHUNK = 500


class ClassMeans(Message):
    """Mean features of the classes that the sender knows, one row a class; classes without a row are absent."""

    mean: Annotated[Float32[Tensor, "present d"], Disclosure.PROTOTYPES]
    y: Annotated[UInt[Tensor, "present"], Disclosure.LABELS]


class CountedMeans(ClassMeans):
    """Class means, and how many samples (or how much weight) each is the mean of."""

    count: Annotated[Float32[Tensor, "present"], Disclosure.STATISTICS]


def share_through(client: Client[Any], run: Callable[[Inputs], Tensor]) -> Batch:
    """What the client's model, or a part of it, makes of the whole training share, with its labels.

    Evaluation mode and the model as it is now: what was gathered while it trained is of models that are gone.
    """
    with client.model.evaluating():
        chunks = [Batch(run(batch.x), batch.y) for batch in client.data.train_batches(_CHUNK)]
    return Batch(torch.cat([chunk.features for chunk in chunks]), torch.cat([chunk.y for chunk in chunks]))


def fused_share(client: Client[Any]) -> Batch:
    """The client's whole training share at the fusion layer, ``[samples, d]``, with its labels."""
    return share_through(client, client.model.base)


def class_means(rows: Batch, classes: int, weights: Float32[Tensor, "rows"] | None = None) -> CountedMeans:
    """The :func:`.mean_table` of rows, without the classes that are absent, in the order of classes."""
    table = mean_table(rows, classes, weights)
    return CountedMeans(table.rows[table.y], table.y, table.count[table.y])


def renewed(old: ClassMeans, new: ClassMeans, classes: int) -> ClassMeans:
    """The new means, and the old ones of classes that have no new one, in the order of classes."""
    table = kept_up(placed(old.mean, old.y, classes), placed(new.mean, new.y, classes))
    return ClassMeans(table.rows[table.y], table.y)


def by_class(means: ClassMeans, classes: int) -> tuple[Float32[Tensor, "classes d"], Bool[Tensor, "classes"]]:
    """A row for every class (0 for those absent), and which classes are present."""
    table = placed(means.mean, means.y, classes)
    return table.rows, table.present


class Global(State):
    """Global prototypes: a row for each class that some client has."""

    prototypes: ClassMeans


def pulled(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    table: Float32[Tensor, "classes d"],
    present: Bool[Tensor, "classes"],
    pull: float,
    weights: Float32[Tensor, "classes d"] | None = None,
) -> Tensor:
    """Cross entropy + λ · mean w_yj (z_j − c_yj)² over batch and features; a class without a prototype adds nothing.

    Without weights w all are 1.
    """
    z = model.base(batch.x)
    target = torch.where(present[batch.y, None], table[batch.y], z.detach())
    entropy = functional.cross_entropy(model.modular(z), batch.y)
    if weights is None:
        return entropy + pull * functional.mse_loss(z, target)
    return entropy + pull * (weights[batch.y] * (z - target).square()).mean()


@dataclass(frozen=True)
class PrototypeLearning(OwnTraining):
    """Methods whose clients train towards global prototypes and send class means; the state has ``prototypes``.

    Models may differ in all but the width of the fusion layer.
    """

    origin = "HtFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.01}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]
    pull: NonNegative = 10.0  # lambda: weight of the squared distance to the prototypes, a mean over batch and features
    prototypes: Taken = "after"  # take class means after training, or during it, over all its steps [FedProto's paper]
    predict_by: Literal["prototype", "model"] = "prototype"  # answer with the nearest prototype, or the own model

    def start(self, server: Server[Any], clients: Clients) -> Global:
        return Global(ClassMeans(torch.zeros(0, server.dims["d"]), torch.zeros(0, dtype=torch.int64)))

    def learned(self, client: Client[Any], prototypes: ClassMeans) -> CountedMeans:
        """The client's class means after it has trained towards prototypes, or while it did."""
        classes = client.dims["classes"]
        table, present = by_class(prototypes, classes)
        losses = partial(pulled, table=table, present=present, pull=self.pull)
        fitted = self.fit(client, losses, outputs_of="base" if self.prototypes == "during" else None)
        return class_means(fused_share(client) if fitted.outputs is None else fitted.outputs, classes)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation, "every prototype is the mean of one client")

    def deployed(self, server: Server[Any], clients: Clients) -> ClassMeans:
        sent: ClassMeans = server.state.prototypes
        return sent

    @on_client
    def deploy(self, client: Client[Any], message: ClassMeans) -> None:
        client.scratch["prototypes"] = message

    def retains(self) -> frozenset[Disclosure]:
        return frozenset()  # its labels are the numbers of classes, not of samples

    def predict(self, client: Client[Any], x: Inputs) -> Tensor:
        prototypes: ClassMeans = client.scratch["prototypes"]
        if self.predict_by == "model" or not len(prototypes.y):  # before the first round there are none
            return super().predict(client, x)
        table, present = by_class(prototypes, client.dims["classes"])
        # the matrix product that cdist may use instead loses the digits that tell near prototypes apart
        distances = torch.cdist(client.model.base(x), table, compute_mode="donot_use_mm_for_euclid_dist")
        return -distances.masked_fill(~present, torch.inf)
