"""SplitFed with a local loss: clients train with a head of their own, the server on what they upload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.func import functional_call

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch, Inputs
from interfuse.families.checks import check_batch
from interfuse.families.heads import check_common_head
from interfuse.families.split_learning import Global, Smashed, SplitLearning, Tail
from interfuse.handler import on_client
from interfuse.messages import Weights
from interfuse.server import Server
from interfuse.training import LearningRate, cross_entropy, modular_cross_entropy


@dataclass(frozen=True)
class SplitFedLocal(SplitLearning):
    """Split learning with auxiliary heads (the idea of CSE-FSL, arXiv:2507.15816), one upload a round as in IFL.

    A client trains its base block together with an auxiliary head, its modular block, which it never sends; then it
    sends a minibatch of fusion-layer outputs, and the server takes a step of its own head on them. No gradient comes
    back. With several server heads their mean is the server's, so clients with different modular blocks have nothing
    of the server in common.

    A client predicts with its base block and the server's head, which it gets for the evaluation; the composition
    matrix is that of the auxiliary heads.
    """

    usual = {"local_steps": 10, "average_clients": False}  # tau: steps of a client between two uploads

    server_lr: LearningRate = 0.01  # learning rate of the server's head
    server_copies: Literal["each", "one"] = "each"  # a head for each client and their mean, or one in turns

    def keeps(self) -> frozenset[str]:
        return super().keeps() | {"modular"}

    def start(self, server: Server[Global], clients: Clients) -> Global:
        if self.server_copies == "one":
            check_common_head(server, clients)
        return super().start(server, clients)

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        self.hand_out_fronts(server, chosen)
        sent = chosen.call(self.train)
        for client, outputs in sent.items():
            check_batch(client, outputs.y, chosen.profiles[client].samples)
        if self.server_copies == "each":
            copies = self.tail_of_each(server, chosen)
            for client, outputs in sent.items():
                self.serve(server, copies[client], outputs)
            tails = self.averaged_tails(server, chosen, copies)
        else:
            one = self.one_tail(server, clients)
            for client in self.turns(server, chosen):
                self.serve(server, one, sent[client])
            tails = one.weights()
        server.state = Global(self.averaged_fronts(server, chosen), tails)

    @on_client.continuing
    def train(self, client: Client) -> Smashed:
        self.fit(client, cross_entropy)
        batch = client.batch(self.batch_size)
        with client.model.evaluating():
            return Smashed(client.model.base(batch.x), batch.y)

    def serve(self, server: Server[Global], tail: Tail, sent: Smashed) -> None:
        batches, how = [Batch(sent.z, sent.y.long())], self.how(tail.name) | {"lr": self.server_lr}
        server.fit(modular_cross_entropy, batches, network=tail.name, train="modular", **how)

    @on_client
    def deploy(self, client: Client, message: Weights) -> None:
        fronts = client.model.keys_of("base")
        client.model.load({key: tensor for key, tensor in message.tensors.items() if key in fronts})
        client.scratch["head"] = {key: tensor for key, tensor in message.tensors.items() if key not in fronts}

    def predict(self, client: Client, x: Inputs) -> Tensor:
        scores: Tensor = functional_call(client.model, client.scratch["head"], (x,))
        return scores
