"""FedL2G: a vector for each class guides all clients, and learns from them to guide well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float32, UInt
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.errors import ClientError, ConfigError
from interfuse.families.checks import check_size
from interfuse.families.class_tables import placed
from interfuse.families.guidance import Form, guided, meta_gradient
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, State
from interfuse.method import Count, Fraction, NonNegative, Steps
from interfuse.server import Server
from interfuse.training import Rate

MOST = 100.0
"""Norm of a step's gradient of all vectors, at most."""


class Guides(Message):
    """A guiding vector for each class, as wide as the outputs or as the fusion layer."""

    vectors: Annotated[Float32[Tensor, "classes _"], Disclosure.GRADIENTS]


class MetaGradients(Message):
    """How the loss on the quiz rows, after a guided step, changes with the vectors of the client's classes; 0 of those
    that were not in the step."""

    gradients: Annotated[Float32[Tensor, "present _"], Disclosure.GRADIENTS]
    y: Annotated[UInt[Tensor, "present"], Disclosure.LABELS]


class Global(State):
    """The guiding vectors."""

    vectors: Float32[Tensor, "classes width"]


class MeanGradient:
    """By class the mean of what clients sent, one client at a time.

    Rows of zeros do not count: a class that was in nobody's step stays where it is.
    """

    def __init__(self, vectors: Float32[Tensor, "classes width"]) -> None:
        self._total, self._holders = torch.zeros_like(vectors), torch.zeros(len(vectors), 1).to(vectors)

    def take(self, client: ClientId, sent: MetaGradients) -> None:
        """Add what a client sent: :meth:`take` is for ``clients.call(..., each=)``.

        Raises:
            ClientError: gradients are of another width, of a class twice, or too large; names the client.
        """
        classes, width = self._total.shape
        if sent.gradients.shape[1] != width or len(set(sent.y.tolist())) < len(sent.y):
            raise ClientError(f"client {client} sent gradients of no guiding vectors of {width}", client)
        check_size(client, sent.gradients, "a gradient")
        rows = placed(sent.gradients.to(self._total), sent.y, classes).rows
        self._total += rows
        self._holders += rows.any(1, keepdim=True)

    def result(self) -> Float32[Tensor, "classes width"]:
        """The mean, shortened to norm 100 at most."""
        mean = self._total / self._holders.clamp(min=1)
        shortened: Tensor = mean * (MOST / mean.norm().clamp(min=MOST))
        return shortened


@dataclass(frozen=True)
class FedL2G(OwnTraining):
    """Learning to guide local training (Zhang et al., arXiv:2410.06490), after its form in HtFLlib.

    A round trains every model on cross entropy and on the distance of its outputs, or features, to the guiding vectors
    of their classes. Then each client takes one such step for trial, and sends how its loss on quiz rows, on which it
    never trains, changes with each vector; the server moves the vectors along the mean over the clients that have the
    class. Models may differ in everything; with ``form = "features"`` their fusion layers agree in width.

    Before the first round the vectors learn alone for ``warm_up`` exchanges, which leave the models as they are. The
    trial step is plain SGD with ``trial_lr``, in evaluation mode. Quiz rows are drawn once, and are at most half of the
    share: a client of one row has none, and sends zeros.
    """

    origin = "HtFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.01}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round; the warm-up is everybody's
    form: Form = "logits"  # what is guided: logits (FedL2G-l), or features (FedL2G-f)
    weight: NonNegative = 1.0  # of the squared distance to the guiding vectors, a mean over batch and their width
    server_lr: Rate = 0.1  # learning rate of the vectors, by SGD; for features 100 [FedL2G's code]
    trial_lr: Rate = 0.01  # eta: learning rate of the step for trial
    warm_up: Steps = 50  # exchanges before the first round in which only the vectors learn
    quiz_batches: Count = 1  # quiz rows of a client, in batches, never trained on

    def start(self, server: Server[Global], clients: Clients) -> Global:
        unit = {"logits": "classes", "features": "d"}[self.form]
        if unit not in server.dims:
            raise ConfigError(
                'form = "features" needs fusion layers of one width; take models of one, or form = "logits"'
            )
        vectors = torch.randn(server.dims["classes"], server.dims[unit], generator=server.generator)
        for _ in range(self.warm_up):
            mean = MeanGradient(vectors)
            clients.call(self.study, Guides(vectors), each=mean.take)
            vectors = vectors - self.server_lr * mean.result()
        return Global(vectors)

    def round(self, server: Server[Global], clients: Clients) -> None:
        vectors, mean = server.state.vectors, MeanGradient(server.state.vectors)
        clients.sample(self.participation).call(self.train, Guides(vectors), each=mean.take)
        server.state = Global(vectors - self.server_lr * mean.result())

    @on_client
    def study(self, client: Client, guides: Guides) -> MetaGradients:
        return self.meta(client, guides, self.quiz(client))

    @on_client
    def train(self, client: Client, guides: Guides) -> MetaGradients:
        quiz = self.quiz(client)
        kept = (rows for rows in (drawn[~quiz[drawn]] for drawn in self.drawn(client)) if len(rows))
        loss = partial(guided, vectors=guides.vectors, form=self.form, weight=self.weight)
        self.fit(client, loss, batches=client.data.batches(kept), steps=None, epochs=None)
        return self.meta(client, guides, quiz)

    def drawn(self, client: Client) -> Iterator[np.ndarray]:
        """The rows of each step of a round."""
        if self.local_epochs is not None:
            return client.order.epochs(self.local_epochs, self.batch_size)
        return (client.order.take(self.batch_size) for _ in range(self.local_steps or 0))

    def quiz(self, client: Client) -> np.ndarray:
        """Which rows of the share are the quiz."""
        rows = len(client.data.labels())
        chosen = client.lasting_draw(rows, "quiz").argsort()[: min(self.quiz_batches * self.batch_size, rows // 2)]
        return np.isin(np.arange(rows), chosen.numpy())

    def meta(self, client: Client, guides: Guides, quiz: np.ndarray) -> MetaGradients:
        """A row for each class of the share, so that sizes tell nothing of what was drawn."""
        own, others = client.data.labels().bincount().nonzero().flatten(), np.flatnonzero(~quiz)
        if not quiz.any():
            return MetaGradients(torch.zeros_like(guides.vectors)[own], own)
        drawn = torch.randperm(len(others), generator=client.generator)[: self.batch_size].numpy()
        study, asked = client.data.train(others[drawn]), client.data.train(np.flatnonzero(quiz))
        settings = {"lr": self.trial_lr, "weight": self.weight}
        found = meta_gradient(client.model, study, asked, guides.vectors, form=self.form, **settings)
        return MetaGradients(found[own], own)
