"""Sub-models: clients hold slices of the server's model, which is that of the largest client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from interfuse.aggregation import BufferPolicy, Plan
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ModelError
from interfuse.families.averaging import Averaging, Global, merged
from interfuse.families.holdings import Holding, initial_weights, one_of_each_architecture
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, NamedTensors, Parameters, Weights
from interfuse.models import SplitModel
from interfuse.models.plans import width_plan, with_rows
from interfuse.server import Server
from interfuse.training import Rate


class TrainedOnClasses(Message):
    """A trained sub-model, and which classes it was trained on."""

    tensors: Parameters
    present: Annotated[Bool[Tensor, "classes"], Disclosure.STATISTICS]


def masked_cross_entropy(model: SplitModel, batch: Batch, step: int, *, present: Bool[Tensor, "classes"]) -> Tensor:
    """Mean cross entropy with the logits of absent classes at 0, so that training does not push these away."""
    return functional.cross_entropy(model(batch.x).masked_fill(~present, 0), batch.y)


@dataclass(frozen=True)
class SubModels(Averaging):
    """Averaging where clients hold the first channels of every layer of the server's model."""

    origin = "HeteroFL's code"
    usual = {"weights": "uniform"}

    def initial(self, server: Server[Any], clients: Clients) -> NamedTensors:
        return merged({prefix: largest_weights(server, some, self.buffers) for prefix, some in self.groups(clients)})

    def holding(self, round: int) -> Holding:
        return by_width


@dataclass(frozen=True)
class MaskedSubModels(SubModels):
    """Clients train without the logits of classes they have not, and their rows of the classifier do not count there.

    What nobody holds stays as it is.
    """

    origin = "HeteroFL's code"

    clip: Rate | None = 1.0  # largest norm of the gradient of a step, over all parameters
    mask: bool = True  # leave out absent classes, in the loss and in the mean of classifiers

    def round(self, server: Server[Any], clients: Clients) -> None:
        chosen, weights, holding = clients.sample(self.participation), server.state.weights, self.holding(server.round)
        classifiers = {client: classifier(profile) for client, profile in chosen.profiles.items()}
        rows: dict[ClientId, Tensor] = {}

        def trained(weights: Mapping[str, Tensor], profile: Profile) -> Plan:
            return with_rows(holding(weights, profile), classifiers[profile.id], rows[profile.id])

        def add(client: ClientId, reply: TrainedOnClasses) -> None:
            rows[client] = reply.present.nonzero().flatten()
            own = {key: t[rows[client]] for key, t in reply.tensors.items() if key in classifiers[client]}
            mean.take(client, reply.tensors | own)

        mean = self.means(weights, chosen, trained)
        chosen.call(self.train, self.models(weights, chosen, holding), each=add)
        server.state = Global(mean.result())

    @on_client
    def train(self, client: Client, received: Weights) -> TrainedOnClasses:
        client.model.load(received.tensors)
        counts = torch.bincount(client.data.labels(), minlength=client.dims["classes"])
        present = counts > 0 if self.mask else torch.ones_like(counts, dtype=torch.bool)
        self.fit(client, partial(masked_cross_entropy, present=present), clip=self.clip)
        return TrainedOnClasses(client.tensors(buffers=self.buffers), present)


def largest_weights(
    server: Server[Any], clients: Clients, buffers: BufferPolicy = BufferPolicy.AGGREGATE
) -> NamedTensors:
    """Initial values of the tensors of the largest client's model, of which all others must be slices.

    Raises:
        ModelError: a client's model is no part of the largest (names both), or narrower without normalisation.
    """
    different = one_of_each_architecture(clients)
    whole = max(different, key=lambda profile: profile.size)
    for profile in different:
        try:
            width_plan(whole.keys, profile.keys)
        except ModelError as error:
            raise ModelError(
                f"the model of client {profile.id} ({profile.architecture}) should be a part of the largest, that of "
                f"client {whole.id} ({whole.architecture}): {error}. These fit: resnet18, resnet18@0.5, resnet10@0.25"
            ) from None
        if any(whole.keys[key] != shape for key, shape in profile.keys.items()):
            check_normalised(server, profile)
    return initial_weights(server, clients.only([whole.id]), buffers)


def check_normalised(server: Server[Any], profile: Profile) -> None:
    """Check that a model narrower than the largest normalises what goes through it.

    The Scaler of HeteroFL, FedRolex and ScaleFL divides activations by the rate of the width in training. It is left
    out here because normalisation undoes it, and so it does where there is some.

    Raises:
        ModelError: it has none; names the client.
    """
    modules = server.new_model(profile.architecture).modules()
    if not any("Norm" in kind.__name__ for module in modules for kind in type(module).__mro__):
        raise ModelError(
            f"the model of client {profile.id} ({profile.architecture}) is narrower than the largest, and nothing in "
            "it normalises: there the authors divide activations by the rate of the width (Scaler), which is left out "
            "here since normalisation undoes it. Give clients models with normalisation, such as resnet18 and "
            "resnet18@0.5, or models of one width"
        )


def by_width(weights: Mapping[str, Tensor], profile: Profile, shift: int = 0) -> Plan:
    """Slices, of the shapes that the client's model has: :func:`.width_plan`."""
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    return width_plan(shapes, {key: shape for key, shape in profile.keys.items() if key in weights}, shift)


def rolling(shift: int) -> Holding:
    """:func:`by_width` with the windows moved by ``shift``."""
    return partial(by_width, shift=shift)


def classifier(profile: Profile) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of the layer that gives the logits: the last one of the last stage."""
    *_, last = (key for key in profile.keys if key.startswith(f"{profile.stages[-1]}."))
    layer = last.rpartition(".")[0]
    return {key: shape for key, shape in profile.keys.items() if key.rpartition(".")[0] == layer}
