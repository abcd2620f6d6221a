"""FedVTC: statistics of features by class, and a generator that draws samples of classes that a client lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import Notice
from interfuse.families.class_statistics import ClassStatistics
from interfuse.families.drawing import drawing_to, learning_to_draw, own_rows, rehearsal
from interfuse.families.holdings import one_a_round
from interfuse.families.priors import VTC, Global, Prior, SharedPrior
from interfuse.families.prototypes import fused_share
from interfuse.handler import on_client
from interfuse.method import Count, NonNegative, Steps
from interfuse.server import Server
from interfuse.training import LearningRate, Optimizer, Rate

RECONSTRUCTED = Notice(
    "FedVTC is a reconstruction: no code of its authors is public, and not all of their paper.",
    "Call its results those of a reconstruction; docs/fedvtc.md says where each choice is from.",
)
ADAM = Optimizer("adam", betas=(0.5, 0.999))


@dataclass(frozen=True)
class FedVTC(SharedPrior):
    """Variational transposed convolution (Niu, Dong & Qin, arXiv:2508.01669): a reconstruction.

    No code of the authors is public, and much of the paper is known from notes and reviews alone. What a setting's
    default is from stands beside it; no result of it is one of the paper.

    A round draws each client's features to the global means of their classes, weighted by 1/σ²; takes class means and
    variances of its features anew; and trains its generator, with the model frozen, to make x of g(x) plus noise, and
    of the global prior samples whose features have the client's own mean of their class. Samples of all classes that
    somebody has, drawn from the prior, then fine-tune every whole model. Models may differ in all but the width of the
    fusion layer.

    The closed-form divergence of the paper has one part that a gradient reaches: the distance of features to class
    means, which ``pull`` weights. Variances are measured, and the extractor is frozen while the generator trains.
    """

    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.005}
    origin = "third-party code"

    pull: NonNegative = 0.1  # lambda: weight of the squared distance to the class mean, by 1/σ² with a mean of 1
    floor: Rate = 1e-4  # least variance in the weights of the pull
    generator_epochs: Count = 5  # epochs of the generator in a round, by Adam, which begins anew
    generator_steps: Steps | None = None  # steps of the generator in a round; instead of generator_epochs [interfuse]
    generator_lr: LearningRate = 1e-3  # learning rate of the generator
    noise: NonNegative = 1.0  # of features in the generator's training, in standard deviations of a class [paper notes]
    reconstruction: NonNegative = 1.0  # weight of ‖x′ − x‖², a sum over the values of a sample [reconstruction]
    matching: NonNegative = 1.0  # weight of the distribution matching, a sum over features [reconstruction]
    matching_latents: Steps = 4  # drawn for each class in a step, for the distribution matching [reconstruction]
    match_to: Literal["own", "global"] = "own"  # class means that samples drawn must have in its features [interfuse]
    finetune: Literal["post", "every_round"] = "post"  # after the last round, or in each, behind the own training
    finetune_epochs: Steps = 50  # each over all that is drawn, then over the own rows
    finetune_lr: LearningRate = 0.005  # learning rate of fine-tuning
    latents: Steps = 200  # M: samples drawn of each class in an epoch of fine-tuning; 0: there is none
    replay_real: bool = True  # own rows too, after those drawn [reconstruction]
    tuned: Literal["all", "modular"] = "all"  # what fine-tuning trains: the whole model, or its head [paper notes]

    def learn(self, client: Client, known: ClassStatistics) -> ClassStatistics:
        self.fit(client, drawing_to(known, self.floor, self.pull))
        if self.finetune == "every_round":
            self.rehearse(client, known)
        own = ClassStatistics.of(fused_share(client), client.dims["classes"], self.variance)
        self.train_generator(client, own, known)
        return own

    def train_generator(self, client: Client, own: ClassStatistics, known: ClassStatistics) -> None:
        """Train the generator on the client's rows, with the model as it is.

        What a class looks like only an extractor that has seen it can tell: where others match it too, the generator
        learns what deceives these. And as long as features of clients differ, no sample of a class has the mean of all
        clients in the features of one; it has the client's own.
        """
        aim = own.means if self.match_to == "own" else known.means
        y = known.means.y[aim.present[known.means.y]]
        loss = partial(
            learning_to_draw,
            extractor=client.model,
            tensors=client.model.tensors(),
            deviations=self.noise * own.deviations,
            means=known.means.rows[y],
            spread=known.deviations[y],
            bounds=client.data.bounds,
            latents=self.matching_latents,
            weights=(self.reconstruction, self.matching),
            targets=aim.rows[y],
        )
        rows = own_rows(client, self.batch_size, epochs=self.generator_epochs, steps=self.generator_steps)
        client.fit(loss, rows, network=VTC, lr=self.generator_lr, optimizer=ADAM)

    def rehearse(self, client: Client, known: ClassStatistics) -> None:
        """Train the model on samples of all classes that somebody has, and on its own rows."""
        y = known.means.y.repeat_interleave(self.latents)
        draw, how = partial(self.draw, client, known), self.how() | {"lr": self.finetune_lr, "keep_optimizer": None}
        batches = rehearsal(client, draw, y, self.finetune_epochs, self.batch_size, replay=self.replay_real)
        if len(y):
            client.fit(client.loss, batches, train=self.tuned, **how)

    def finish(self, server: Server[Global], clients: Clients) -> None:
        if self.finetune == "post" and self.latents and self.finetune_epochs:
            clients.call(self.tune, self.prior(server))

    @on_client
    def tune(self, client: Client, prior: Prior) -> None:
        self.rehearse(client, self.receive(client, prior))

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        few = one_a_round(profiles, self.participation, "what all know is of one client")
        both = [RECONSTRUCTED] if few is None else [few, RECONSTRUCTED]
        return Notice(*(" ".join(part) for part in zip(*((n.text, n.remedy) for n in both), strict=True)))
