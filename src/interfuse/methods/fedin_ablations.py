"""FedIN with one part of it changed or left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from interfuse.client import Client, ClientId
from interfuse.data import Batch
from interfuse.families.imitation import Rule, noisy_loss, on_intermediate
from interfuse.families.intermediate import FeaturePair, IntermediateLearning, ModelAndFeatures
from interfuse.method import Count, NonNegative, Steps


@dataclass(frozen=True)
class FedINAblations(IntermediateLearning):
    """The ablations of FedIN's paper (Chan et al., arXiv:2304.00759, Table 4; FedIN (+Noise)), and others."""

    origin = "FedIN's paper"

    imitation: bool = True  # IN training; False leaves the proximal term alone, and sends the same
    gradient: Rule = "simplified"  # eq. 13, exact (eq. 12), sum (without alleviation), or projected (local plus exact)
    per_tensor: bool = False  # the rule for each tensor by itself, not for all of them together [interfuse]
    in_weight: NonNegative = 1.0  # factor before the IN loss, a mean over batch and features
    in_order: Literal["interleaved", "after", "before"] = "interleaved"  # with local steps; or apart [interfuse]
    in_steps: Steps = 5  # IN steps of a round where they are apart; the paper has 5 beside 157 local ones
    received_batches: Count = 1  # batches of features that a client receives for a round; a step takes one of them
    noise: NonNegative = 0.0  # standard deviation of noise on features, in units of theirs; FedIN (+Noise) has 0.8
    noise_where: Literal["upload", "forward", "both"] = "upload"  # on what is sent, in training, or both [interfuse]

    def draw(
        self, pool: Mapping[ClientId, FeaturePair], client: ClientId, generator: torch.Generator, batches: int = 0
    ) -> tuple[FeaturePair, ...]:
        return super().draw(pool, client, generator, self.received_batches)

    def learn(self, client: Client[Any], received: ModelAndFeatures) -> None:
        local = self.nearby(partial(noisy_loss, noise=self.noise_at("forward"), task=client.task), received)
        features = received.features if self.imitation else ()
        if features and self.in_order == "before":
            self.train_apart(client, features)
        if features and self.in_order == "interleaved":
            foreign = self.imitating(features, self.in_weight)
            rule = partial(on_intermediate, rule=self.gradient, lam=self.lam, per_tensor=self.per_tensor)
            self.fit(client, {"local": local, "in": foreign}, combine=rule)
        else:
            self.fit(client, local)
        if features and self.in_order == "after":
            self.train_apart(client, features)

    def train_apart(self, client: Client[Any], features: tuple[FeaturePair, ...]) -> None:
        """IN training by itself."""
        some = Batch(features[0].s_in, torch.zeros(len(features[0].s_in), dtype=torch.int64))  # only counted
        foreign = self.imitating(features, self.in_weight)
        client.fit(foreign, batches=[some] * self.in_steps, train="intermediate", **self.how("in"))

    def features(self, client: Client[Any], noise: float = 0.0) -> FeaturePair:
        return super().features(client, self.noise_at("upload"))

    def noise_at(self, where: Literal["upload", "forward"]) -> float:
        return self.noise if self.noise_where in (where, "both") else 0.0
