"""FedMosaic's alignment of A and B, once before the first round, so that P and Q mean the same in models that differ.

One client of the smallest architecture, the anchor, runs public data through its frozen backbone and tells what its
random A reads of some tokens, and what finds its B. One client of each other architecture fits its own A and B to that
and hands them to the server, which hands them to all clients of the architecture. So nobody hands over a backbone: what
is told of a token are ``rank`` numbers for each matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.errors import ModelError
from interfuse.families.adapters import AdapterTraining, Basis, carrying
from interfuse.families.alignment_maps import (
    aligned_reading,
    coordinates,
    least_squares,
    mapped_writing,
    shares,
    whitening_map,
)
from interfuse.families.landmarks import Landmarks, check_basis, check_landmarks
from interfuse.families.matching import Tokens, matches, reads
from interfuse.families.public_tokens import Seen, chosen_rows, chosen_tokens, layer_of, observed, vocabulary
from interfuse.handler import on_client
from interfuse.messages import NamedTensors
from interfuse.method import Count
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import Rate

Alignments = Literal["residual", "gradients", "base_outputs", "released", "none"]
"""By what B of one model corresponds to B of another:

* ``residual``: the least-squares map of the residual stream where a linear layer writes into it, else of what it puts
  out (own work);
* ``gradients``: equal effects on the models' outputs, Bᵀg ≈ B_sᵀg_s for gradients g of random sums of these. With equal
  A h, a P has then the same gradient in both models, token by token. For models of one origin (own work);
* ``base_outputs``: the least-squares map of what all linear layers put out;
* ``released``: FedMosaic's code, which turns B inside the space of its random columns;
* ``none``: nothing, and A stays random too.
"""
WRITE_TO_STREAM = ("o", "down")
"""The linear layers whose outputs are added to the residual stream."""


@dataclass(frozen=True)
class Alignment(AdapterTraining):
    """Methods whose clients have a frozen A and B in some layers, which are aligned before the first round."""

    origin = "FedMosaic's release"

    blocks: Count = 4  # N_B: layers that carry P and Q
    align: Alignments = "residual"  # by what B corresponds between models; none leaves A random too [interfuse]
    align_samples: Count = 5000  # rows of the public data, evenly spread, or all
    align_tokens: Count = 4096  # tokens of these rows, evenly spread, or all [interfuse]
    align_ridge: Rate = 1e-2  # of the least squares, in mean variances of what is mapped [interfuse]

    def align_bases(self, server: Server[Any], clients: Clients) -> dict[ClientId, Basis]:
        """A and B of every architecture, by the client that found them: the first of those that have it.

        Raises:
            ConfigError: the run has no public data.
            ClientError: a client found what nobody can have found; names it.
        """
        profiles = clients.profiles
        first: dict[str, ClientId] = {}
        for client in clients:
            first.setdefault(profiles[client].architecture, client)
        anchor = min(first.values(), key=lambda client: (profiles[client].size, client))
        others = [client for client in first.values() if client != anchor]
        if self.align == "none" or not others:
            found = dict(clients.only(first.values()).call(self.own_basis))
        else:
            rows = chosen_rows(server.public, self.align_samples)
            marks = clients.only([anchor]).call(self.describe)[anchor]
            check_landmarks(anchor, marks, rows, (self.blocks, len(self.linears), self.rank), self.align != "released")
            found = dict(clients.only(others).call(self.find_basis, marks))
            found |= clients.only([anchor]).call(self.own_basis)
        for client, basis in found.items():
            check_basis(client, basis.tensors, self.blocks * len(self.linears), self.rank)
        return found

    def hand_bases(self, clients: Clients, bases: Mapping[ClientId, Basis]) -> None:
        """Give every client the A and B of its architecture, as somebody of it has found them."""
        profiles = clients.profiles
        of = {profiles[client].architecture: basis for client, basis in bases.items()}
        clients.call(self.take_basis, {client: of[profiles[client].architecture] for client in clients})

    @on_client
    def describe(self, client: Client[Any]) -> Landmarks:
        rows = chosen_rows(client.public, self.align_samples)
        tokens = chosen_tokens(client.model, client.public, rows, self.align_tokens)
        weights, shape = shares(tokens.answer.double()), (self.blocks, len(self.linears))
        read, written = [], []
        for path, seen in self._observed(client, tokens).items():
            A, B = basis_of(client.model, path)
            read.append((seen.inputs.double() @ A.T).float())
            if self.align == "gradients":
                written.append((seen.outputs.double() @ B).float())
            elif self.align != "released":
                written.append(coordinates(seen.outputs, B, weights, self.align_ridge).float())
        none = torch.zeros(*shape, 0, self.rank)
        return Landmarks(
            row=tokens.row,
            place=tokens.place,
            answer=tokens.answer,
            read=torch.stack(read).reshape(*shape, -1, self.rank),
            written=torch.stack(written).reshape(*shape, -1, self.rank) if written else none,
            vocabulary=vocabulary(client.model),
            reads=reads(client.model, client.public),
        )

    @on_client
    def find_basis(self, client: Client[Any], marks: Landmarks) -> Basis:
        own = vocabulary(client.model), reads(client.model, client.public)
        if own != (marks.vocabulary, marks.reads) and not matches(client.public):
            raise ModelError(
                f"client {client.id}'s model knows {own[0]} tokens, the smallest one {marks.vocabulary}, or it reads "
                "others: they have different tokenizers, and A and B are aligned token by token; take models of one "
                "tokenizer, public data that say where the tokens of both end, or align = 'none'"
            )
        read, written = (sent.flatten(0, 1).cpu().double() for sent in (marks.read, marks.written))
        tokens = Tokens(marks.row.cpu(), marks.place.cpu(), marks.answer.cpu())
        weights, seen_at = shares(tokens.answer.double()), self._observed(client, tokens)
        found: NamedTensors = {}
        for number, (path, seen) in enumerate(seen_at.items()):
            A = aligned_reading(seen.inputs, read[number], weights, self.align_ridge)
            if self.align == "released":
                B = basis_of(client.model, path)[1] @ whitening_map(read[number], seen.inputs.double() @ A.T)
            elif self.align == "gradients":
                B = least_squares(seen.outputs, written[number], weights, self.align_ridge)
            else:
                B = mapped_writing(seen.outputs, written[number])
            found |= {f"{path}.A": A.float(), f"{path}.B": B.float()}
        return Basis(found)

    @on_client
    def own_basis(self, client: Client[Any]) -> Basis:
        paths = [path for block in carrying(client.model, self.blocks, self.linears) for path in block]
        return Basis(client.model.live(f"{path}.{name}" for path in paths for name in "AB"))

    @on_client
    def take_basis(self, client: Client[Any], basis: Basis) -> None:
        client.model.load(basis.tensors)

    def _observed(self, client: Client[Any], tokens: Tokens) -> dict[str, Seen]:
        """What the carriers see of these tokens, by their paths."""
        model, sources = client.model, {}
        for block in carrying(model, self.blocks, self.linears):
            for linear, path in zip(self.linears, block, strict=True):
                stream = self.align == "residual" and linear in WRITE_TO_STREAM
                sources[path] = layer_of(path, model) if stream else f"{path}.base"
        seen = observed(model, client.public, tokens, sources, gradients=self.align == "gradients")
        return {path: seen[path] for path in sources}


def basis_of(model: SplitModel, path: str) -> tuple[Tensor, Tensor]:
    """A and B of a linear layer, in float64. What is fitted to them is, on the processor, whatever the model is on."""
    live = model.live([f"{path}.A", f"{path}.B"])
    return live[f"{path}.A"].cpu().double(), live[f"{path}.B"].cpu().double()
