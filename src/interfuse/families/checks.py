"""Checks of what clients send: who sends what nobody can have is named, and a run goes on without it.

An engine has seen to it before that fields have their types and shapes, that values are finite and (but for statistics,
labels and data) not too large to compute with, and that the numbers of classes are below ``classes``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from interfuse.client import ClientId
from interfuse.data import Batch
from interfuse.errors import ClientError, ModelError
from interfuse.messages import Change, NamedTensors
from interfuse.messages.delivery import LARGEST

_MOST = 1e12
"""Of a count. No honest one is near, and its products with squares of features stay finite when these and clients are
summed up."""


class RowsByClass(Protocol):
    """A row for each class that a client has: messages such as class means."""

    @property
    def mean(self) -> Float[Tensor, "present d"]: ...

    @property
    def y(self) -> Shaped[Tensor, "present"]: ...


def rows_of_all(replies: Mapping[ClientId, RowsByClass]) -> Batch:
    """What all clients sent, a row for each client and class, in the order of clients.

    Raises:
        ClientError: as :func:`check_rows`.
    """
    for client, sent in replies.items():
        check_rows(client, sent.mean, sent.y)
    sent_by_all = replies.values()
    return Batch(torch.cat([sent.mean for sent in sent_by_all]), torch.cat([sent.y.long() for sent in sent_by_all]))


def check_rows(
    client: ClientId,
    mean: Float[Tensor, "present d"],
    y: Shaped[Tensor, "present"],
    count: Float[Tensor, "present"] | None = None,
) -> None:
    """Check rows of classes, and how many samples each is of.

    Raises:
        ClientError: there is none, a class is there twice, a count is not above 0, or a value is too large to compute
            with; names the client.
    """
    if not len(y):
        raise ClientError(
            f"client {client} sent statistics of no class; each client has samples of one at least", client
        )
    if len(set(y.tolist())) < len(y):
        raise ClientError(f"client {client} sent statistics of a class twice: {_some(y)}", client)
    if count is not None:
        check_row_counts(client, count)
    check_size(client, mean, "a mean")


def check_statistics(
    client: ClientId,
    mean: Float[Tensor, "present d"],
    y: Shaped[Tensor, "present"],
    count: Float[Tensor, "present"],
    variance: Float[Tensor, "..."],
    shape: tuple[int, ...],
) -> None:
    """Check rows of classes with the variances within these, which are of this shape, or covariances.

    Raises:
        ClientError: as :func:`check_rows`, or variances are of another shape, one is below 0 (of a covariance, on the
            diagonal), or too large; names the client.
    """
    check_rows(client, mean, y, count)
    if tuple(variance.shape) != shape:
        raise ClientError(f"client {client} sent variances of shape {tuple(variance.shape)}, expected {shape}", client)
    least = variance if variance.ndim < 3 else variance.diagonal(dim1=1, dim2=2)
    if bool((least < 0).any()):
        raise ClientError(f"client {client} sent a variance below 0: {float(least.min()):g}", client)
    check_size(client, variance, "a variance", power=2)


def check_row_counts(client: ClientId, count: Float[Tensor, "present"]) -> None:
    """Check how many samples each row is of.

    Raises:
        ClientError: one is not above 0, or too large; names the client.
    """
    if not bool((count > 0).all()):
        raise ClientError(f"client {client} sent counts that are not above 0: {_some(count)}", client)
    if count.numel() and float(count.amax()) > _MOST:
        raise ClientError(f"client {client} sent a count above {_MOST:.0e}", client)


def check_size(client: ClientId, values: Float[Tensor, "..."], what: str, power: int = 1) -> None:
    """Check that values, of this power of features, are not too large to compute with.

    Raises:
        ClientError: one is; names the client.
    """
    if values.numel() and float(values.abs().amax()) > LARGEST**power:
        raise ClientError(f"client {client} sent {what} above {LARGEST**power:.0e}", client)


def check_counts(client: ClientId, counts: Float[Tensor, "classes"]) -> None:
    """Check how many samples of each class a client says that it has.

    Raises:
        ClientError: a count is below 0 or too large, or no class has one; names the client.
    """
    if not bool((counts >= 0).all()) or not bool((counts > 0).any()) or float(counts.amax()) > _MOST:
        raise ClientError(
            f"client {client} sent label counts that nobody can have, of which none is above 0, or one below it or "
            f"above {_MOST:.0e}: {_some(counts)}",
            client,
        )


def check_tensors(client: ClientId, sent: NamedTensors, declared: NamedTensors, what: str) -> None:
    """Check that a client sent just the tensors of a network, in their shapes.

    Raises:
        ClientError: it did not; names the client and the first tensor.
    """
    shapes, wanted = ({key: tuple(t.shape) for key, t in tensors.items()} for tensors in (sent, declared))
    for key in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(key) != wanted.get(key):
            found, expected = shapes.get(key, "nothing"), wanted.get(key, "nothing")
            raise ClientError(f"client {client} sent as {what} {key[:80]!r} {found}, expected {expected}", client)


def check_change(client: ClientId, sent: Change, held: NamedTensors, statistics: Collection[str]) -> None:
    """Check that a client sent the change of just those tensors that it holds and that are no statistics, and the rest.

    Raises:
        ClientError: as :func:`check_tensors`.
    """
    check_tensors(client, sent.change, {k: t for k, t in held.items() if k not in statistics}, "its change")
    check_tensors(client, sent.statistics, {k: t for k, t in held.items() if k in statistics}, "its statistics")


def check_batch(client: ClientId, y: Shaped[Tensor, "batch ..."], most: int | None = None, least: int = 1) -> None:
    """Check how many rows a client sent; ``most`` None: however many there may be.

    Raises:
        ClientError: they are fewer or more; names the client.
    """
    if not least <= len(y) <= (len(y) if most is None else most):
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise ClientError(f"client {client} sent {len(y)} rows, expected {expected}", client)


def check_number(client: ClientId, value: float, what: str) -> None:
    """Check a number that counts something, and may be 0.

    Raises:
        ClientError: it is below 0, or too large to compute with; names the client.
    """
    if not 0 <= value <= LARGEST:
        raise ClientError(f"client {client} sent {value:g} as {what}, expected 0 to {LARGEST:g}", client)


@contextmanager
def blaming(client: ClientId, what: str) -> Iterator[None]:
    """Inside the block, tensors that do not fit are what a client sent as this.

    Raises:
        ClientError: names the client.
    """
    try:
        yield
    except ModelError as error:
        raise ClientError(f"client {client} sent what is not {what}: {str(error)[:500]}", client) from error


def _some(values: Tensor) -> str:
    """The first of them."""
    shown = ", ".join(f"{value:g}" for value in values[:20].tolist())
    return shown if len(values) <= 20 else f"{shown}, ..."
