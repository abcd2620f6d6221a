"""Two networks at a client: a decoder of its features is trained beside the model, to see what they give away.

interfuse run examples/decoder.py --data digits --models cnn,mlp --rounds 20
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from interfuse import Batch, Client, Clients, Message, Method, Network, Profile, Server, SplitModel, on_client


class Error(Message):
    """Mean squared error of what a decoder makes of features, in the unit of normalised inputs."""

    value: float


def decoder(d: int, inputs: int) -> SplitModel:
    """From features ``[batch, d]`` to inputs ``[batch, inputs]``."""
    return SplitModel({"hidden": nn.Sequential(nn.Linear(d, 128), nn.ReLU()), "pixels": nn.Linear(128, inputs)})


def reconstruction(model: SplitModel, batch: Batch, step: int) -> Tensor:
    return nn.functional.mse_loss(model(batch.x), batch.y)


@dataclass(frozen=True)
class WatchedByDecoder(Method):
    """Every client trains by itself, and a decoder that sees no more than its fusion-layer outputs."""

    steps: int = 10  # steps of the model, and of the decoder, in a round
    lr: float = 0.05  # learning rate of the model
    decoder_lr: float = 1e-3  # of the decoder, by Adam

    def networks(self, owner: Profile | None, dims: Mapping[str, int]) -> Mapping[str, Network]:
        return {} if owner is None else {"decoder": Network(partial(decoder, dims["d"], math.prod(owner.sample)))}

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train)

    @on_client
    def train(self, client: Client) -> Error:
        client.fit(client.loss, steps=self.steps, lr=self.lr)
        pairs = [client.batch(32) for _ in range(self.steps)]
        with client.model.evaluating():
            pairs = [Batch(client.model.base(own.x), own.x.flatten(1)) for own in pairs]
        adam = {"optimizer": "adam", "keep_optimizer": "decoder"}
        return Error(client.fit(reconstruction, pairs, network="decoder", lr=self.decoder_lr, **adam).loss)
