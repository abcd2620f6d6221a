"""Adapters of different rank on one backbone: how they travel, what is checked of them, who has something in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from interfuse.client import ClientId, Profile
from interfuse.errors import ClientError, ModelError, Notice
from interfuse.families.adapters import AdapterTraining
from interfuse.families.holdings import one_a_round
from interfuse.messages import NamedTensors
from interfuse.method import Fraction
from interfuse.models import SplitModel
from interfuse.models.adapters import OWN, Adapted


@dataclass(frozen=True)
class AdaptersOfAnyRank(AdapterTraining):
    """Methods whose clients share adapters where they have one backbone, each with a rank of its own: a setting of the
    client, as ``client.2.rank=4`` in the shell.

    A client's adapters count alpha / rank times, by its own two settings: who takes a lower rank keeps that factor by a
    lower alpha. What travels has the factor in it, so it means the same at any rank.
    """

    agreed: ClassVar[tuple[str, ...]] = ("linears",)

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        if 1 < len(profiles) == len({profile.backbone for profile in profiles.values()}):
            return Notice(
                "No two clients have one backbone, so each trains alone.", "Give several clients one backbone."
            )
        return one_a_round(profiles, self.participation)


def factors(model: SplitModel) -> NamedTensors:
    """A model's own adapters as they travel: B, and s·A, whose product is what is added to the weights."""
    own = model.tensors([OWN])
    return {key: tensor * _scale(model, key) if _is_a(key) else tensor.clone() for key, tensor in own.items()}


def take_factors(model: SplitModel, tensors: Mapping[str, Tensor]) -> None:
    """Put adapters in place that came as :func:`factors`."""
    model.load({key: tensor / _scale(model, key) if _is_a(key) else tensor for key, tensor in tensors.items()})


def check_factors(profile: Profile, sent: Mapping[str, Tensor]) -> None:
    """Check that a client sent all its own adapters, of its own rank.

    Raises:
        ClientError: it did not; names it.
    """
    wanted = {key: shape for key, shape in profile.keys.items() if f".{OWN}." in key}
    found = {key: tuple(tensor.shape) for key, tensor in sent.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if found.get(key) != wanted.get(key):
            shapes = f"{found.get(key, 'nothing')}, expected {wanted.get(key, 'nothing')}"
            raise ClientError(f"client {profile.id} sent as adapter {key[:80]!r} {shapes}", profile.id)


def pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the path of their linear layer."""
    paths = dict.fromkeys(key.removesuffix(f".{OWN}.A") for key in tensors if _is_a(key))
    return {path: (tensors[f"{path}.{OWN}.A"], tensors[f"{path}.{OWN}.B"]) for path in paths}


def _is_a(key: str) -> bool:
    return key.endswith(f".{OWN}.A")


def _scale(model: SplitModel, key: str) -> float:
    layer = model.get_submodule(key.removesuffix(f".{OWN}.A"))
    if not isinstance(layer, Adapted):
        raise ModelError(f"{key} is no part of an adapter")
    return layer.scale
