"""What the anchor of an alignment tells, and what is checked of that and of the bases that are fitted to it."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from interfuse.client import ClientId
from interfuse.errors import ClientError
from interfuse.families.checks import check_size
from interfuse.messages import Disclosure, Message, NamedTensors, Precision

_DEFECTIVE = 1e-6
"""A singular value below this part of the largest is none."""


class Landmarks(Message):
    """What the anchor's carriers make of tokens of the public data.

    Attributes:
        row, place, answer: See :class:`.Tokens`.
        read: A h.
        written: What finds B, of the same tokens; of none where A is enough.
        vocabulary: How many tokens the model knows.
        reads: Which of the inputs it reads tokens from; see :func:`.reads`.
    """

    row: Annotated[Int64[Tensor, "landmarks"], Disclosure.FEATURES]
    place: Annotated[Int64[Tensor, "landmarks"], Disclosure.FEATURES]
    answer: Annotated[Bool[Tensor, "landmarks"], Disclosure.FEATURES]
    read: Annotated[Float32[Tensor, "blocks linears landmarks rank"], Disclosure.FEATURES, Precision.ROUNDED]
    written: Annotated[Float32[Tensor, "blocks linears written rank"], Disclosure.FEATURES, Precision.ROUNDED]
    vocabulary: int
    reads: int


def check_landmarks(
    client: ClientId, marks: Landmarks, rows: Int64[Tensor, "rows"], shape: tuple[int, int, int], finds_b: bool
) -> None:
    """Check what an anchor tells.

    Args:
        rows: Of the public data, among which the tokens are.
        shape: Blocks, linear layers, rank.
        finds_b: There is to be something that finds B.

    Raises:
        ClientError: it is of another shape, of no or other tokens, too large, or of fewer dimensions than the rank;
            names the client.
    """
    blocks, linears, rank = shape
    tokens = len(marks.row)
    wanted = (blocks, linears, tokens, rank), (blocks, linears, tokens if finds_b else 0, rank)
    if (found := (tuple(marks.read.shape), tuple(marks.written.shape))) != wanted:
        raise ClientError(f"client {client} sent landmarks of shapes {found}, expected {wanted}", client)
    order = torch.stack([marks.row, marks.place], 1)
    if tokens < rank or not bool(torch.isin(marks.row.cpu(), rows).all()) or int(marks.place.min()) < 0:
        raise ClientError(
            f"client {client} sent landmarks of {tokens} tokens, of which some are none, or too few", client
        )
    if not torch.equal(order, torch.unique(order, dim=0)):
        raise ClientError(f"client {client} sent landmarks of tokens that are out of order, or there twice", client)
    check_size(client, marks.read, "a landmark")
    check_size(client, marks.written, "a landmark")
    for sent in (marks.read, marks.written) if finds_b else (marks.read,):
        if defective(sent.flatten(0, 1)):
            text = f"client {client} sent landmarks of a rank below {rank}: take more public data, or a lower rank"
            raise ClientError(text, client)


def check_basis(client: ClientId, tensors: NamedTensors, linears: int, rank: int) -> None:
    """Check A and B of a client, of which the engine has seen to it that their shapes are those of its model.

    Raises:
        ClientError: some are missing, rows of an A are not orthonormal, or a B is too large or of a rank below that of
            A; names the client.
    """
    paths = sorted({key.rpartition(".")[0] for key in tensors})
    if len(paths) != linears or tensors.keys() != {f"{path}.{name}" for path in paths for name in "AB"}:
        text = f"client {client} sent A and B of {len(paths)} linear layers, or others, expected {linears}"
        raise ClientError(text, client)
    for path in paths:
        A, B = tensors[f"{path}.A"].cpu(), tensors[f"{path}.B"].cpu()
        if float((A @ A.T - torch.eye(rank)).abs().max()) > 1e-3:
            raise ClientError(f"client {client} sent an A whose rows are not orthonormal", client)
        check_size(client, B, "a B")
        if defective(B[None]):
            text = f"client {client} sent a B of a rank below {rank}: take more public data, or a lower rank"
            raise ClientError(text, client)


def defective(matrices: Float[Tensor, "n rows columns"]) -> bool:
    """Whether one of them is of less than full rank."""
    values = torch.linalg.svdvals(matrices.cpu().double())
    return bool((values[:, -1] <= _DEFECTIVE * values[:, 0]).any())
