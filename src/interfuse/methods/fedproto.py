"""FedProto: share the mean feature of each class, and pull features towards the means of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch, Inputs
from interfuse.errors import Notice
from interfuse.families.class_merging import check_rows
from interfuse.families.holdings import WeightRule, one_a_round
from interfuse.families.own_training import OwnTraining
from interfuse.families.prototypes import ClassMeans, CountedMeans, by_class, class_means, fused_share, renewed
from interfuse.handler import on_client
from interfuse.messages import Disclosure, State
from interfuse.method import Fraction, NonNegative
from interfuse.models import SplitModel
from interfuse.server import Server

Taken = Literal["after", "during"]


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
) -> Tensor:
    """Cross entropy + λ · mean (z − c_y)² over batch and features; a class without a prototype c_y adds nothing."""
    z = model.base(batch.x)
    target = torch.where(present[batch.y, None], table[batch.y], z.detach())
    return functional.cross_entropy(model.modular(z), batch.y) + pull * functional.mse_loss(z, target)


@dataclass(frozen=True)
class FedProto(OwnTraining):
    """Federated prototype learning (Tan et al., AAAI 2022), with the defaults of HtFLlib (arXiv:2506.03954), but
    class means weighted by samples, as in the paper.

    A round trains every model on cross entropy and on the squared distance of its features to the global prototypes
    of their classes, takes each client's class means anew, and averages these. Models may differ in all but the width
    of the fusion layer. By default a client answers with the nearest global prototype.

    With ``prototypes = "during"``, as in HtFLlib, class means are of what the model made of its batches before each
    step, over all steps of all epochs of the round: of many models, and nothing is run again.

    A class that no client of a round has keeps its prototype, so all classes can be answered with. HtFLlib forgets it:
    there nobody is drawn to it in the next round, nor answers with it. With everybody in each round it is the same.
    """

    origin = "HtFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.01}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]
    pull: NonNegative = 10.0  # lambda: weight of the squared distance to the prototypes, a mean over batch and features
    weights: WeightRule = "samples"  # clients count by their samples of the class, or uniform [FedProto's paper]
    prototypes: Taken = "after"  # take class means after training, or during it, over all its steps [FedProto's paper]
    predict_by: Literal["prototype", "model"] = "prototype"  # answer with the nearest prototype, or the own model

    def start(self, server: Server[Global], clients: Clients) -> Global:
        return Global(ClassMeans(torch.zeros(0, server.dims["d"]), torch.zeros(0, dtype=torch.int64)))

    def round(self, server: Server[Global], clients: Clients) -> None:
        old, classes = server.state.prototypes, server.dims["classes"]
        replies = clients.sample(self.participation).call(self.train, old)
        sent = replies.values()
        for client, means in replies.items():
            check_rows(client, means.mean, means.y, means.count)
        rows = Batch(torch.cat([means.mean for means in sent]), torch.cat([means.y.long() for means in sent]))
        counts = torch.cat([means.count for means in sent])
        merged = class_means(rows, classes, counts if self.weights == "samples" else None)
        server.state = Global(renewed(old, merged, classes))

    @on_client
    def train(self, client: Client, prototypes: ClassMeans) -> CountedMeans:
        classes = client.dims["classes"]
        table, present = by_class(prototypes, classes)
        losses = partial(pulled, table=table, present=present, pull=self.pull)
        fitted = self.fit(client, losses, outputs_of="base" if self.prototypes == "during" else None)
        return class_means(fused_share(client) if fitted.outputs is None else fitted.outputs, classes)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation, "every prototype is the mean of one client")

    def deployed(self, server: Server[Global], clients: Clients) -> ClassMeans:
        return server.state.prototypes

    @on_client
    def deploy(self, client: Client, message: ClassMeans) -> None:
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
