"""What clients hold of tensors at the server: initial values, slices by plan, messages, means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar

from torch import Tensor

from interfuse.aggregation import BufferPolicy, Mean, Plan, extract, keys_plan, travels
from interfuse.client import ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import ModelError, Notice
from interfuse.families.checks import blaming
from interfuse.messages import Message, NamedTensors, Weights
from interfuse.server import Server

M = TypeVar("M", bound=Message)

WeightRule = Literal["samples", "uniform"]
"""How clients count in a mean: by their training samples, or all alike."""

Holding = Callable[[Mapping[str, Tensor], Profile], Plan]
"""From the server's tensors and a client's profile to what the client holds of them."""

ONE_HEAD = "cnn,mlp-linear,mixed-linear,deep-linear"
"""Models of the zoo with different base blocks and one modular block: what to try where that is needed."""


def initial_weights(
    server: Server[Any],
    clients: Clients,
    buffers: BufferPolicy = BufferPolicy.AGGREGATE,
    parts: Collection[str] | None = None,
) -> NamedTensors:
    """Initial values of every tensor that some client shares; where several share a key, of the first one's model.

    Raises:
        ModelError: two clients have tensors of different shape under one key, or one of them has it in a part that is
            not shared, so no mean of them exists.
    """
    weights: NamedTensors = {}
    owner: dict[str, Profile] = {}
    unshared: dict[str, Profile] = {}
    for profile in one_of_each_architecture(clients):
        model = server.new_model(profile.architecture)
        trainable = dict(model.named_parameters())
        for key, tensor in model.tensors(parts).items():
            if key in weights and weights[key].shape != tensor.shape:
                first = owner[key]
                raise ModelError(
                    f"clients {first.id} ({first.architecture}) and {profile.id} ({profile.architecture}) differ in "
                    f"the shape of {key}: {tuple(weights[key].shape)} and {tuple(tensor.shape)}. A method that "
                    "averages parameters needs clients that agree on the tensors they share, for instance --models cnn"
                    "; of one model in several widths, heterofl and fedrolex average slices"
                )
            if key not in weights and travels(buffers, key not in trainable, tensor.dtype):
                weights[key], owner[key] = tensor.clone(), profile
        unshared |= dict.fromkeys(profile.keys.keys() - model.tensors(parts).keys(), profile)
    if astray := sorted(weights.keys() & unshared.keys()):
        first, second = owner[astray[0]], unshared[astray[0]]
        raise ModelError(
            f"{astray[0]} is shared by client {first.id} ({first.architecture}), but client {second.id} "
            f"({second.architecture}) has it on the other side of its fusion cut; cut both models at the same stage"
        )
    return weights


def one_of_each_architecture(clients: Clients) -> list[Profile]:
    """The profile of the first client of every architecture, in the order of clients."""
    found: dict[str, Profile] = {}
    for profile in clients.profiles.values():
        found.setdefault(profile.architecture, profile)
    return list(found.values())


def nothing_in_common(profiles: Mapping[ClientId, Profile], *, apart: bool = False) -> Notice | None:
    """What to say of means that are each over one client; None where there is one over several.

    Args:
        apart: Clients of different architectures have no means in common, whatever their keys.
    """
    holders = Counter((p.architecture if apart else "", key) for p in profiles.values() for key in p.keys)
    if len(profiles) < 2 or max(holders.values(), default=0) > 1:
        return None
    found = "No two clients have one architecture" if apart else "No two clients have a tensor in common"
    remedy = "Give clients one architecture, for instance with --models cnn"
    return Notice(
        f"{found}, so every mean is over one client: each trains alone, and what it sends is of no use to the others.",
        f"{remedy}." if apart else f"{remedy}, or models that have a head in common: --models {ONE_HEAD}.",
    )


def one_a_round(
    profiles: Mapping[ClientId, Profile], participation: float, so: str = "every mean is over one client"
) -> Notice | None:
    """What to say where a fraction of several clients is one of them, and what comes of that."""
    if len(profiles) < 2 or round(participation * len(profiles)) > 1:
        return None
    return Notice(
        f"participation = {participation:g}: of {len(profiles)} clients one takes part in a round, so {so}.",
        f"Let more take part, for instance with --set participation={min(1.0, 2 / len(profiles)):.2g}.",
    )


def by_architecture(clients: Clients, make: Callable[[Profile], M]) -> dict[ClientId, M]:
    """A message for each client, made once for all clients of an architecture: they get the very same one."""
    made: dict[str, M] = {}
    for profile in clients.profiles.values():
        if profile.architecture not in made:
            made[profile.architecture] = make(profile)
    return {client: made[profile.architecture] for client, profile in clients.profiles.items()}


def by_key(weights: Mapping[str, Tensor], profile: Profile) -> Plan:
    """Whole tensors, those that the client's model has."""
    return keys_plan(key for key in weights if key in profile.keys)


def part_of(weights: Mapping[str, Tensor], profile: Profile, holding: Holding = by_key) -> NamedTensors:
    """What a client holds of the server's tensors."""
    return extract(weights, holding(weights, profile))


def held(weights: Mapping[str, Tensor], clients: Clients, holding: Holding = by_key) -> dict[ClientId, Weights]:
    """A message for each client with what it holds of the server's tensors."""
    return by_architecture(clients, lambda profile: Weights(part_of(weights, profile, holding)))


class HeldMean(Mean):
    """The mean of what clients send of what they hold; what none of them holds keeps its value.

    Its :meth:`take` is for ``clients.call(..., each=)``, by way of what a reply has as tensors.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        profiles: Mapping[ClientId, Profile],
        rule: WeightRule,
        holding: Holding = by_key,
    ) -> None:
        super().__init__(weights)
        self._profiles, self._rule, self._holding = profiles, rule, holding

    def take(self, client: ClientId, tensors: Mapping[str, Tensor]) -> None:
        """Add what a client sent.

        Raises:
            ClientError: that is not just what it holds; names the client.
        """
        profile = self._profiles[client]
        weight = float(profile.samples) if self._rule == "samples" else 1.0
        plan = self._holding(self.server, profile)
        with blaming(client, "just what it holds"):
            self.add(tensors, weight, plan)


def averaged(
    weights: Mapping[str, Tensor],
    replies: Mapping[ClientId, Mapping[str, Tensor]],
    profiles: Mapping[ClientId, Profile],
    rule: WeightRule,
    holding: Holding = by_key,
) -> NamedTensors:
    """The :class:`HeldMean` of replies that are all there."""
    mean = HeldMean(weights, profiles, rule, holding)
    for client, tensors in replies.items():
        mean.take(client, tensors)
    return mean.result()
