"""FedTGP: prototypes that the server trains, so that classes stay a margin apart, in the place of means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from interfuse.client import Client, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.checks import rows_of_all
from interfuse.families.class_tables import ClassTable, mean_table
from interfuse.families.heads import shuffled
from interfuse.families.prototypes import ClassMeans, Global, PrototypeLearning, Taken
from interfuse.handler import on_client
from interfuse.messages import Dims
from interfuse.method import Count, Network, NonNegative, Steps
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import LearningRate

TRAINED = "prototypes"


def generator(classes: int, d: int, hidden: int) -> SplitModel:
    """Class numbers ``[classes]`` to prototypes ``[classes, d]``: an embedding and two linear layers."""
    inner = nn.Sequential(nn.Linear(d, hidden), nn.ReLU())
    return SplitModel({"embedding": nn.Embedding(classes, d), "hidden": inner, "prototypes": nn.Linear(hidden, d)})


def apart(
    model: SplitModel, batch: Batch, step: int, *, known: Bool[Tensor, "classes"], margin: Float[Tensor, ""]
) -> Tensor:
    """Mean over clients' prototypes p of class c of −log (exp(−‖p − ĉ_c‖ − δ) / Σ_c' exp(−‖p − ĉ_c'‖ − δ [c' = c])).

    ĉ are the model's prototypes; those of classes that nobody has had stay out of the sum.
    """
    numbers = torch.arange(len(known), device=known.device)
    made = model(numbers)
    distances = torch.linalg.vector_norm(batch.features[:, None] - made, dim=2)
    widened = distances + margin * (numbers == batch.y[:, None])
    return functional.cross_entropy(-widened.masked_fill(~known, torch.inf), batch.y)


def widest_gap(means: ClassTable, most: float) -> Float[Tensor, ""]:
    """Of the distances of each class's mean to its nearest other the largest, but not above ``most``."""
    rows = means.rows[means.present]
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return (distances + torch.eye(len(rows)).to(rows) * most).amin(1).amax().clamp(max=most)


@dataclass(frozen=True)
class FedTGP(PrototypeLearning):
    """Trainable global prototypes (Zhang et al., AAAI 2024, arXiv:2401.03230), with the defaults of HtFLlib.

    Clients are those of FedProto, and send their class means without counts. On these the server trains a network that
    makes a prototype of each class, so that every mean is nearer to the prototype of its class than to others, by a
    margin: the largest distance between neighbours among the means over clients, within a bound. The paper has 0.1 for
    the weight of the distance, its code 10.

    Not taken over: HtFLlib and the authors' code send the class means of the model as it was before local training.
    A class that no client has ever had has no prototype.
    """

    origin = "HtFLlib's code"

    prototypes: Taken = "after"  # take class means after training, or during it, over all its steps [FedTGP's paper]
    margin: NonNegative = 100.0  # tau: the largest margin
    server_lr: LearningRate = 0.01  # learning rate of the prototypes
    server_epochs: Steps = 100  # S: epochs of the prototypes in a round
    server_batch_size: Count = 10  # class means of a step of the prototypes
    hidden: Count | None = None  # width between the linear layers of the prototypes; none: that of the features

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        build = partial(generator, dims["classes"], dims["d"], self.hidden or dims["d"])
        return {TRAINED: Network(build)} if owner is None else {}

    def round(self, server: Server[Global], clients: Clients) -> None:
        old, classes = server.state.prototypes, server.dims["classes"]
        rows = rows_of_all(clients.sample(self.participation).call(self.train, old))
        known = mean_table(rows, classes).present.index_fill(0, old.y.long(), True)
        self.train_prototypes(server, rows, known)
        with server.network(TRAINED).evaluating():
            made = server.network(TRAINED)(torch.arange(classes, device=known.device))
        server.state = Global(ClassMeans(made[known], known.nonzero().flatten()))

    def train_prototypes(self, server: Server[Any], rows: Batch, known: Bool[Tensor, "classes"]) -> None:
        """min over the network of :func:`apart`, with plain SGD."""
        margin = widest_gap(mean_table(rows, len(known)), self.margin)
        batches = shuffled(rows, self.server_batch_size, self.server_epochs, server.generator)
        server.fit(partial(apart, known=known, margin=margin), batches, network=TRAINED, lr=self.server_lr)

    @on_client
    def train(self, client: Client, prototypes: ClassMeans) -> ClassMeans:
        means = self.learned(client, prototypes)
        return ClassMeans(means.mean, means.y)
