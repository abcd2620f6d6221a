"""IFL whose clients send places in a codebook of their own, which they keep and send anew now and then."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.errors import ClientError
from interfuse.families.checks import check_batch
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.families.product_quantisation import (
    EXPONENTS,
    Codebook,
    CodedOutputs,
    decoded,
    fitted,
    pieces_of,
    places,
)
from interfuse.families.replay import Remembered, Replaying
from interfuse.handler import on_client
from interfuse.messages import State
from interfuse.method import Count
from interfuse.server import Server


class Coding(Remembered):
    """What a client keeps: its codebook, once it has one, and how often it has sent outputs."""

    books: tuple[Codebook, ...]
    uploads: int


class Codebooks(State):
    """The codebook of each client that has sent one, as the server knows it."""

    books: dict[int, Codebook]


@dataclass(frozen=True)
class IFLQuantised(Replaying):
    """IFL with product quantisation of what goes up, and a replay window. Not from the paper.

    A client's codebook is fitted to what its base block makes of its own rows, sent with its first outputs and with
    every ``refresh``-th after them, each time from where it was. Between, codes alone travel. Blocks themselves work on
    features as they are: nothing is rounded in evaluation, composition or use.
    """

    agreed: ClassVar[Collection[str]] = ("length", "codewords")

    length: Count = 16  # numbers that one code stands for
    codewords: Annotated[int, Ge(2), Le(256)] = 64  # of a codebook
    refresh: Count = 10  # uploads from one codebook to the next
    fitted_rows: Count = 256  # own rows that a codebook is fitted to
    sweeps: Count = 10  # of Lloyd's algorithm, each time

    def start(self, server: Server[Codebooks], clients: Clients) -> Codebooks:
        return Codebooks({})

    def new_client(self, client: Client[Any]) -> Coding:
        return Coding((), (), 0)

    def round(self, server: Server[Codebooks], clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        sent = chosen.call(self.encode)
        books, width = dict(server.state.books), server.dims["d"]
        for client, coded in sent.items():
            check_batch(client, coded.y, chosen.profiles[client].samples)
            if coded.books:
                books[client] = coded.books[0]
            self._check(client, coded, books.get(client), width)
        server.state = Codebooks(books)
        pairs = (FusionOutputs(decoded(coded.codes, books[client], width), coded.y) for client, coded in sent.items())
        chosen.call(self.train_modular, FusionPairs(tuple(pairs)))

    @on_client
    def encode(self, client: Client[Coding]) -> CodedOutputs:
        """The base phase, and a minibatch as codes."""
        self.fit_base(client)
        batch, state = client.batch(self.batch_size), client.state
        with client.model.evaluating():
            z = client.model.base(batch.x)
            new = (self._fitted(client),) if state.uploads % self.refresh == 0 else ()
        books = new or state.books
        client.state = replace(state, books=books, uploads=state.uploads + 1)
        return CodedOutputs(places(z, books[0]), batch.y, new)

    def _fitted(self, client: Client[Coding]) -> Codebook:
        drawn = torch.randperm(client.data.arrived, generator=client.generator)[: self.fitted_rows]
        z = client.model.base(client.data.train(drawn.numpy()).x)
        before = client.state.books[0] if client.state.books else None
        return fitted(pieces_of(z, self.length), self.codewords, self.sweeps, before, client.generator)

    def _check(self, client: ClientId, coded: CodedOutputs, book: Codebook | None, width: int) -> None:
        """Refuse what cannot be decoded.

        Raises:
            ClientError: names the client.
        """
        if book is None or len(coded.books) > 1:
            raise ClientError(f"client {client} sent {len(coded.books)} codebooks; its first outputs need one", client)
        wanted, found = (self.codewords, self.length), tuple(book.numbers.shape)
        if found != wanted or not EXPONENTS[0] <= int(book.exponent) <= EXPONENTS[1]:
            raise ClientError(f"client {client} sent a codebook of shape {found} and 2^{int(book.exponent)}", client)
        pieces = -(-width // self.length)
        if coded.codes.shape[1] != pieces or int(coded.codes.max()) >= self.codewords:
            raise ClientError(f"client {client} sent other codes than {pieces} a row below {self.codewords}", client)

    def rows_of_an_upload(self, samples: int) -> Mapping[str, int]:
        return {"encode": max(min(self.batch_size, samples), self.codewords)}
