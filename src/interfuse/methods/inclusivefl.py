"""InclusiveFL: models of several depths; the last block of a shallow one learns from the later ones of a deeper one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated
from urllib.parse import quote

import torch
from annotated_types import Ge, Le
from torch import Tensor

from interfuse.aggregation import Plan, keys_plan
from interfuse.client import ClientId, Profile
from interfuse.clients import Clients
from interfuse.families.averaging import AveragingModels
from interfuse.families.averaging import Global as ServersModel
from interfuse.families.holdings import averaged, by_architecture, one_of_each_architecture
from interfuse.families.submodels import classifier
from interfuse.messages import NamedTensors, Weights
from interfuse.server import Server


class Global(ServersModel):
    """The layers that all depths share, and what each depth has of its own, by architecture (its name quoted)."""

    own: dict[str, NamedTensors]


@dataclass(frozen=True)
class InclusiveFL(AveragingModels):
    """Layer-wise averaging of nested depths with momentum distillation (Liu et al., KDD 2022).

    A model's last block does another work than the same block in the middle of a deeper model. So the clients of an
    architecture average it among themselves, and its change g becomes β · (mean of the changes of the same and all
    later blocks in the next deeper architecture of the round) + (1 − β) · g. A ResNet has a last block in each of its
    four groups; blocks are stages with names such as ``layer2.0``. All else is averaged layer-wise.

    Classifiers, too, are averaged among clients of an architecture alone, as the authors' command has it.

    The authors' clients send accumulated gradients for AdamW at the server; here they train and send their models.
    """

    origin = "InclusiveFL's code"
    usual = {"batch_size": 64, "weights": "samples"}

    beta: Annotated[float, Ge(0), Le(1)] = 0.2  # weight of the deeper blocks' changes in the momentum distillation
    exclude_last: bool = True  # False averages last blocks layer-wise too, which leaves no distillation
    own_classifier: bool = True  # each architecture has a classifier of its own; False averages all of them

    def start(self, server: Server[Global], clients: Clients) -> Global:
        weights = self.initial(server, clients)
        models = self.models(weights, clients)
        own = {
            name_of(p): {key: t for key, t in models[p.id].tensors.items() if key in self.excluded(p)}
            for p in one_of_each_architecture(clients)
        }
        return Global(weights, own)

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        models = self.with_own(old, chosen)
        sent = {c: reply.tensors for c, reply in chosen.call(self.train, models).items()}
        shared = {c: {k: t for k, t in sent[c].items() if k not in self.excluded(chosen.profiles[c])} for c in sent}
        weights = self.mean(old.weights, shared, chosen, self.shares)
        means, changes = {}, {}
        groups = sorted(one_of_each_architecture(chosen), key=lambda p: p.size)
        for group in groups:
            theirs = {c: sent[c] for c, p in chosen.profiles.items() if p.architecture == group.architecture}
            before = models[group.id].tensors
            means[group.id] = averaged(before, theirs, chosen.profiles, self.weights)
            changes[group.id] = {key: mean - before[key] for key, mean in means[group.id].items()}
        own = {name_of(g): {key: means[g.id][key] for key in old.own[name_of(g)]} for g in groups}
        for group, deeper in pairwise(groups):
            own[name_of(group)] |= self.distilled(group, deeper, own[name_of(group)], changes)
        server.state = Global(weights, old.own | own)

    def distilled(
        self,
        group: Profile,
        deeper: Profile,
        last: Mapping[str, Tensor],
        changes: Mapping[ClientId, Mapping[str, Tensor]],
    ) -> NamedTensors:
        """The last blocks' parameters, their change mixed with those of the deeper architecture's blocks from there on.

        Blocks whose tensor has another shape, or that have none of that name (shortcuts), are left out.
        """
        found: NamedTensors = {}
        until = last_blocks(deeper)
        for name, number in last_blocks(group).items():
            block = f"{name}.{number}."
            for key in (key for key in last if key.startswith(block) and key not in group.buffers):
                keys = [f"{name}.{j}.{key.removeprefix(block)}" for j in range(number, until.get(name, -1) + 1)]
                g = [changes[deeper.id][k] for k in keys if deeper.keys.get(k) == group.keys[key]]
                if g:
                    found[key] = last[key] + self.beta * (torch.stack(g).mean(0) - changes[group.id][key])
        return found

    def deployed(self, server: Server[Global], clients: Clients) -> Mapping[ClientId, Weights]:
        return self.with_own(server.state, clients)

    def with_own(self, state: Global, clients: Clients) -> dict[ClientId, Weights]:
        """A message for each client: the shared layers, and the last blocks of its architecture."""
        shared = self.models(state.weights, clients)
        return by_architecture(clients, lambda p: Weights(shared[p.id].tensors | state.own[name_of(p)]))

    def shares(self, weights: Mapping[str, Tensor], profile: Profile) -> Plan:
        """What a client's architecture averages with others."""
        excluded = self.excluded(profile)
        return keys_plan(key for key in weights if key in profile.keys and key not in excluded)

    def excluded(self, profile: Profile) -> frozenset[str]:
        """The keys of the last blocks and of the classifier."""
        blocks = tuple(f"{name}.{number}." for name, number in last_blocks(profile).items())
        last = frozenset(key for key in profile.keys if self.exclude_last and key.startswith(blocks))
        return last | frozenset(classifier(profile) if self.own_classifier else ())


def last_blocks(profile: Profile) -> dict[str, int]:
    """Number of the last block by name of its group, of stages named ``<group>.<number>``."""
    blocks = (stage.rpartition(".") for stage in profile.stages)
    return {name: int(number) for name, _, number in blocks if name and number.isdecimal()}


def name_of(profile: Profile) -> str:
    """The name under which the state has an architecture."""
    return quote(profile.architecture, safe="")
