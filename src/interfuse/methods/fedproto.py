"""FedProto: share the mean feature of each class, and pull features towards the means of all."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.checks import check_row_counts, rows_of_all
from interfuse.families.holdings import WeightRule
from interfuse.families.prototypes import ClassMeans, CountedMeans, Global, PrototypeLearning, class_means, renewed
from interfuse.handler import on_client
from interfuse.server import Server


@dataclass(frozen=True)
class FedProto(PrototypeLearning):
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

    weights: WeightRule = "samples"  # clients count by their samples of the class, or uniform [FedProto's paper]

    def round(self, server: Server[Global], clients: Clients) -> None:
        old, classes = server.state.prototypes, server.dims["classes"]
        sent = clients.sample(self.participation).call(self.train, old)
        for client, means in sent.items():
            check_row_counts(client, means.count)
        counts = torch.cat([means.count for means in sent.values()])
        merged = class_means(rows_of_all(sent), classes, counts if self.weights == "samples" else None)
        server.state = Global(renewed(old, merged, classes))

    @on_client
    def train(self, client: Client, prototypes: ClassMeans) -> CountedMeans:
        return self.learned(client, prototypes)
