"""What a federation is made of, before anything runs: data, shares, models, method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from interfuse.client import ClientId, Profile
from interfuse.data import Dataset, Share
from interfuse.errors import ConfigError, ModelError
from interfuse.handler import Program, programs
from interfuse.message import Dims
from interfuse.method import Method
from interfuse.models import Builder, SplitModel, measure
from interfuse.randomness import seeded

Layout = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Numerics:
    """Settings that bits may depend on, beside build and processor type. Part of every run's configuration."""

    dtype: Literal["float32"] = "float32"
    layout: Layout = "contiguous"
    threads: Literal[1] = 1

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format


@dataclass(frozen=True, eq=False)
class Setup:
    """A federation ready to be hosted by an engine.

    Attributes:
        builders: One model builder a client, in order.
        architectures: Name of the builder of each client; equal names mean equal architectures.
        overrides: Hyperparameters that differ for a client.
        extra_programs: Programs beside a method, such as the evaluation, by path.
    """

    method: Method
    dataset: Dataset
    shares: Sequence[Share]
    builders: Sequence[Builder]
    architectures: Sequence[str]
    width: int
    seed: int
    device: str = "cpu"
    numerics: Numerics = Numerics()
    overrides: Mapping[ClientId, Mapping[str, Any]] = field(default_factory=dict)
    extra_programs: Callable[[Method], Mapping[str, Program]] = lambda method: {}

    def build(self, architecture: str, *key: str | int) -> SplitModel:
        """A new model of an architecture; its initial values are a function of seed and key."""
        if architecture not in self.architectures:
            raise ModelError(f"no client has the architecture {architecture!r}")
        builder = self.builders[self.architectures.index(architecture)]
        with seeded(self.seed, "model", *key):
            model = builder(self.dataset.shape, self.dataset.classes, self.width)
        model.to(self.device)
        if self.numerics.layout == "channels_last":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs
        return model

    @cached_property
    def profiles(self) -> dict[ClientId, Profile]:
        """Profiles of all clients.

        Raises:
            ModelError: a model does not fit the data, or two fusion layers differ in width; names the clients.
        """
        facts = {}
        for client, architecture in enumerate(self.architectures):
            if architecture in facts:
                continue
            try:
                model = self.build(architecture, "measure")
                measured = measure(model, self.dataset.shape)
            except ModelError as error:
                raise ModelError(f"client {client} ({architecture}): {error}") from error
            if measured.classes != self.dataset.classes:
                raise ModelError(
                    f"client {client} ({architecture}): the model has {measured.classes} outputs, "
                    f"but {self.dataset.name} has {self.dataset.classes} classes"
                )
            keys = {key: tuple(tensor.shape) for key, tensor in model.tensors().items()}
            facts[architecture] = (keys, measured.fusion_width)
        return {
            client: Profile(client, name, facts[name][0], len(self.shares[client].train), facts[name][1])
            for client, name in enumerate(self.architectures)
        }

    @cached_property
    def dims(self) -> Dims:
        """Sizes bound for the run. ``d`` is there when all clients agree on the width of the fusion layer."""
        widths = {profile.fusion_width for profile in self.profiles.values()}
        width = widths.pop() if len(widths) == 1 else None
        return {"classes": self.dataset.classes, "clients": len(self.shares)} | ({} if width is None else {"d": width})

    def inputs(self, x: Tensor) -> Tensor:
        """Normalised inputs of samples as stored, in the memory layout of the run."""
        normal = self.dataset.normalise(x)
        return normal.contiguous(memory_format=self.numerics.memory_format) if normal.ndim == 4 else normal

    def method_of(self, client: ClientId) -> Method:
        """The method with this client's overrides."""
        own = self.overrides.get(client)
        if not own:
            return self.method
        everybody = {f.name: getattr(self.method, f.name) for f in fields(self.method)}
        return type(self.method).configure(everybody | dict(own))

    def programs_of(self, client: ClientId) -> dict[str, Program]:
        """All programs by path as this client runs them."""
        return self.programs_with(self.method_of(client))

    def programs_with(self, method: Method) -> dict[str, Program]:
        """All programs by path, for a method with these hyperparameters."""
        return programs(method, "method") | dict(self.extra_programs(method))


def check_fusion(setup: Setup) -> None:
    """Check that all fusion layers have one width, for methods whose messages carry features of it.

    Raises:
        ModelError: naming two clients that differ.
    """
    first = setup.profiles[0]
    for profile in setup.profiles.values():
        if profile.fusion_width is None:
            raise ModelError(
                f"client {profile.id} ({profile.architecture}): its fusion layer is no vector; give it a width"
            )
        if profile.fusion_width != first.fusion_width:
            raise ModelError(
                f"fusion width d: client 0 ({first.architecture}) has {first.fusion_width}, client {profile.id} "
                f"({profile.architecture}) has {profile.fusion_width}; all must agree"
            )


def check_device(device: str) -> None:
    """Check that tensors can be made on a device.

    Raises:
        ConfigError: they cannot, with PyTorch's reason.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device = {device!r} cannot be used here: {reason}") from None


def check_setup(setup: Setup) -> None:
    """Everything that can be known to be wrong before training.

    Raises:
        ConfigError, ModelError: naming the client and the field.
    """
    if not setup.shares:
        raise ConfigError("clients = 0: a federation needs at least one client")
    for client in setup.overrides:
        if client not in range(len(setup.shares)):
            raise ConfigError(f"settings for client {client}, but clients are 0 to {len(setup.shares) - 1}")
        try:
            setup.method_of(client)
        except ConfigError as error:
            raise ConfigError(f"client {client}: {error}") from error
    _ = setup.profiles
