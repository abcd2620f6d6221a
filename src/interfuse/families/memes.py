"""A small network, the meme, that all clients have beside models of their own: it alone travels and is averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float32
from torch import Tensor

from interfuse.aggregation import Mean, keys_plan
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Shape
from interfuse.errors import ConfigError, ModelError, Notice
from interfuse.families.averaging import Global
from interfuse.families.checks import blaming
from interfuse.families.holdings import WeightRule, one_a_round, one_of_each_architecture
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import Dims, Disclosure, Message, NamedTensors
from interfuse.method import BUFFERS, NOTHING, Count, Fraction, Network
from interfuse.models import SplitModel, resolve
from interfuse.references import is_reference
from interfuse.server import Server
from interfuse.training import Objective

MODEL, MEME = "model", "meme"
AUTO = "auto"


class MemeWeights(Message):
    """Tensors of the meme by key."""

    tensors: dict[str, Annotated[Float32[Tensor, "..."], Disclosure.PARAMETERS]]


@dataclass(frozen=True)
class MemeLearning(OwnTraining):
    """Methods whose clients train a small network together with their models, in one step, and share it alone.

    The server averages the memes. Statistics of normalisation in a meme are averaged like parameters, or stay with each
    client. Models may differ in everything.
    """

    usual: ClassVar[Mapping[str, Any]] = {"local_epochs": 1, "keep_optimizer": False}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]
    weights: WeightRule = "uniform"  # clients count by their samples, or uniform
    meme: str = AUTO  # the small network, a model of the zoo; auto: cnn, or logistic where cnn takes no such samples
    meme_width: Count | None = None  # width of its fusion layer; none: that of the clients' models
    buffers: Literal["aggregate", "local"] = "aggregate"  # its statistics: averaged, or each client's own [interfuse]

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_reference(self.meme):  # no node runs code that a coordinator names
            raise ConfigError(f"meme = {self.meme!r}: name a model of the zoo, such as cnn or mlp")
        if self.meme != AUTO:
            resolve(self.meme)

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        if owner is None:
            return {}
        keeps = frozenset({BUFFERS}) if self.buffers == "local" else NOTHING
        build = partial(small_network, self.meme, owner.sample, dims["classes"], self.width(dims))
        return {MEME: Network(build, keeps)}

    def width(self, dims: Dims) -> int:
        """Width of the meme's fusion layer.

        Raises:
            ConfigError: it is to be that of the clients' models, and these differ.
        """
        if self.meme_width is None and "d" not in dims:
            raise ConfigError(
                "the clients' fusion layers differ in width, so the width of the meme must be said, for instance with "
                "--set meme_width=128"
            )
        return self.meme_width or dims["d"]

    def start(self, server: Server[Any], clients: Clients) -> Global:
        classes, found = server.dims["classes"], dict[str, NamedTensors]()
        for profile in one_of_each_architecture(clients):
            self.networks(profile, server.dims)  # refuses what a client could not have
            if (shape := str(profile.sample)) not in found:
                made = small_network(self.meme, profile.sample, classes, self.width(server.dims))
                found[shape] = self.shared(made)
        first, *others = found.values()
        for other in others:
            if {key: tensor.shape for key, tensor in other.items()} != {key: t.shape for key, t in first.items()}:
                raise ModelError(
                    f"samples of shape {' and '.join(found)} need memes of different shape, so these have no mean"
                )
        return Global(first)

    def shared(self, meme: SplitModel) -> NamedTensors:
        """What of the meme travels: live tensors by key."""
        return meme.tensors(buffers=self.buffers == "aggregate")

    def take(self, mean: Mean, client: Profile, sent: Mapping[str, Tensor]) -> None:
        """Add what a client sent to the mean of the memes.

        Raises:
            ModelError: that is not the meme's tensors, all of them.
        """
        mean.add(sent, float(client.samples) if self.weights == "samples" else 1.0, keys_plan(mean.server))

    def train_together(self, client: Client[Any], **options: Any) -> None:
        """Train the model, the meme and what else the client has, side by side."""
        networks = (MODEL, *self.networks(client.profile, client.dims))
        self.fit(client, self.objective(client), network=networks, **options)

    def objective(self, client: Client[Any]) -> Objective:
        """What a client minimises in its networks, which lie side by side."""
        raise NotImplementedError

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation)


@dataclass(frozen=True)
class AveragedMemes(MemeLearning):
    """Methods whose memes travel as they are."""

    def round(self, server: Server[Any], clients: Clients) -> None:
        chosen, mean = clients.sample(self.participation), Mean(server.state.weights)

        def add(client: ClientId, reply: MemeWeights) -> None:
            with blaming(client, "its meme"):
                self.take(mean, chosen.profiles[client], reply.tensors)

        chosen.call(self.train, MemeWeights(server.state.weights), each=add)
        server.state = Global(mean.result())

    @on_client
    def train(self, client: Client[Any], received: MemeWeights) -> MemeWeights:
        meme = client.network(MEME)
        meme.load(received.tensors)
        self.train_together(client)
        return MemeWeights(self.shared(meme))


def small_network(name: str, sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """A model of the zoo.

    Raises:
        ModelError: it does not take such samples; says what to do.
    """
    try:
        return resolve("cnn" if name == AUTO else name)(sample_shape, classes, width)
    except ModelError as error:
        if name == AUTO:
            return resolve("logistic")(sample_shape, classes, width)
        raise ModelError(f"meme = {name!r}: {error}; take another meme, for instance --set meme=mlp") from error
