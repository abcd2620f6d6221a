"""Co-LoRA with one architecture, no Q, one mean for all with the own in it, no gate, every layer a carrier: Fed-SB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import worlds
from torch import Tensor, nn
from worlds import federation, live_model, llama2

from interfuse.client import Client
from interfuse.families.relevance import Relevance
from interfuse.methods.fed_sb import FedSB
from interfuse.methods.fedmosaic import FedMosaic
from interfuse.models.adapters import Adapted, CoLoRALinear, Gate
from interfuse.training import Fitted, Objective

TRAINING: dict[str, Any] = {
    "local_steps": 2, "batch_size": 6, "lr": 0.5, "optimizer": "sgd", "dropout": 0.0, "clip": 0.0,
    "rank": 3, "alpha": 6.0, "keep_optimizer": False,
}  # fmt: skip


class NoGate(Gate):
    """All is the own adapter's."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(())


@dataclass(frozen=True)
class Corner(FedMosaic):
    """FedMosaic whose clients begin each round at a mean that is equal for all."""

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        made = super().adapter(layer, layers, linear, base)
        assert isinstance(made, CoLoRALinear)
        made.gate = NoGate()
        made.own.Q.requires_grad_(False)
        return made

    def fit(self, client: Client[Any], losses: Objective | Mapping[str, Objective], **options: Any) -> Fitted:
        came = client.model.tensors(["received"])
        client.model.load({key.replace(".received.", ".own."): tensor for key, tensor in came.items()})
        return super().fit(client, losses, **options)

    def mixture(self, known: Relevance, among: Tensor | None = None) -> Tensor:
        return torch.full_like(known.matrix, 1 / len(known.matrix))


def test_they_agree() -> None:
    settings: dict[str, Any] = {**TRAINING, "probe": f"{worlds.__file__}:llama2"}
    corner = federation(Corner(**settings, blocks=2, core_scale=1.0), models=[llama2], clients=3)
    fed_sb = federation(FedSB(**TRAINING), models=[llama2], clients=3)
    basis = live_model(corner, 0).tensors(["basis"])
    for client in fed_sb.clients:
        assert all(torch.equal(t, basis[k]) for k, t in live_model(corner, client).tensors(["basis"]).items())
        live_model(fed_sb, client).load(basis)
    for _ in range(3):
        corner.run_round()
        fed_sb.run_round()
    for client in fed_sb.clients:
        own, square = (live_model(f, client).tensors(["own"]) for f in (corner, fed_sb))
        assert not any(tensor.any() for key, tensor in own.items() if key.endswith(".Q"))
        assert all(tensor.abs().max() > 1e-3 for tensor in square.values())
        for key, tensor in square.items():
            torch.testing.assert_close(own[key.removesuffix("R") + "P"], tensor, atol=1e-6, rtol=0)
