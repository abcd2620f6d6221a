"""FedKD: a model and a small common network teach each other by answers and features; the latter travels compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from interfuse.aggregation import Mean
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ConfigError
from interfuse.families.averaging import Global
from interfuse.families.checks import blaming, check_size
from interfuse.families.factors import Factored, factored, multiplied
from interfuse.families.memes import MEME, MODEL, MemeLearning
from interfuse.families.mutual import Over, divergence
from interfuse.handler import on_client
from interfuse.messages import Dims, Message
from interfuse.method import Fraction, Network
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import Objective, Rate

PROJECTION = "projection"


class Compressed(Message):
    """The meme, and how much of its energy the clients are to keep when they send theirs."""

    meme: Factored
    energy: float


def distilled(model: SplitModel, batch: Batch, step: int, *, over: Over, floor: float) -> Tensor:
    """CE(m) + CE(g) + (KL(g ‖ m) + KL(m ‖ g) + MSE(z, W z_g) each way) / (CE(m) + CE(g)), of model m and meme g.

    Who teaches is held fixed, and so is what is divided by, which is ``floor`` at least; W learns with the meme.
    """
    own, meme = model.inner(MODEL), model.inner(MEME)
    z, z_meme = own.base(batch.x), meme.base(batch.x)
    answers, of_meme = own.modular(z), meme.modular(z_meme)
    entropy = functional.cross_entropy(answers, batch.y) + functional.cross_entropy(of_meme, batch.y)
    aligned = model.inner(PROJECTION)(z_meme)
    features = functional.mse_loss(z, aligned.detach()) + functional.mse_loss(aligned, z.detach())
    taught = divergence(answers, of_meme, over) + divergence(of_meme, answers, over) + features
    return entropy + taught / entropy.detach().clamp(min=floor)


@dataclass(frozen=True)
class FedKD(MemeLearning):
    """Federated mutual distillation (Wu et al., Nature Communications 2022), with the defaults of HtFLlib.

    A client trains its model, the meme, and a projection W from the meme's features to the model's in one step. What
    travels are the memes' matrices as truncated singular value decompositions, those of convolutions with the output
    channels as rows; of a growing part of their energy, the sum of squared singular values. As in HtFLlib the tensors
    themselves are decomposed, not their changes as in the authors' code: so a client that missed a round lacks nothing,
    but of a network that is hardly trained yet all singular values count, and next to nothing is saved.

    Not taken over: there the teacher is trained by what it teaches, and by what is divided by; at energy 1 nothing is
    kept of a matrix. Of clients that have one class the cross entropies go to 0, so there is a floor under them.
    """

    origin = "HtFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.01, "weights": "uniform"}

    divergence: Over = "elements"  # a mean over the batch, or over batch and classes [FedKD's code]
    energy_start: Fraction = 0.95  # T_start: part of the energy that is kept in the first round
    energy_end: Fraction = 0.98  # T_end: the part after the last one; it grows evenly from round to round
    clip: Rate = 10.0  # largest norm of the gradient of a step
    floor: Rate = 1e-3  # least sum of both cross entropies that distances are divided by [interfuse]

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        if owner is None:
            return {}
        if owner.fusion_width is None:
            who = f"client {owner.id} ({owner.architecture})"
            raise ConfigError(f"{who}: its fusion layer is no vector; give it a width")
        build = partial(projection, self.width(dims), owner.fusion_width)
        return {**super().networks(owner, dims), PROJECTION: Network(build)}

    def objective(self, client: Client[Any]) -> Objective:
        return partial(distilled, over=self.divergence, floor=self.floor)

    def energy(self, server: Server[Any]) -> float:
        """The part of the energy that is kept in this round."""
        grown = self.energy_end - self.energy_start
        return self.energy_start + (grown and grown * (server.round - 1) / max(1, server.rounds))

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, mean, energy = clients.sample(self.participation), Mean(server.state.weights), self.energy(server)
        shapes = {key: tuple(tensor.shape) for key, tensor in mean.server.items()}

        def add(client: ClientId, reply: Factored) -> None:
            with blaming(client, "its meme"):
                sent = multiplied(reply, shapes)
                for tensor in sent.values():
                    check_size(client, tensor.double().norm(), "a tensor with a norm")
                self.take(mean, chosen.profiles[client], sent)

        chosen.call(self.distil, Compressed(factored(mean.server, energy), energy), each=add)
        server.state = Global(mean.result())

    @on_client
    def distil(self, client: Client[Any], received: Compressed) -> Factored:
        meme = client.network(MEME)
        meme.load(multiplied(received.meme, {key: tuple(tensor.shape) for key, tensor in meme.tensors().items()}))
        self.train_together(client, clip=self.clip)
        return factored(self.shared(meme), received.energy)


def projection(inputs: int, outputs: int) -> SplitModel:
    """W: one linear layer without a bias."""
    return SplitModel({PROJECTION: nn.Linear(inputs, outputs, bias=False)})
