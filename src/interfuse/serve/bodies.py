"""Tensors as they come and go over HTTP: as safetensors, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Len
from pydantic import AllowInfNan, BaseModel, ConfigDict, ValidationError
from torch import Tensor

from interfuse.artefacts import TensorForm
from interfuse.data.inputs import Inputs, named, together
from interfuse.errors import ConfigError, MessageError
from interfuse.messages import Disclosure
from interfuse.serve.faults import ServiceError
from interfuse.wire import NO_CODEC, Codec, Limits, Pieces
from interfuse.wire.body import chunks, laid_out, metadata_of, read, shown, signature

SAFETENSORS = "application/x-safetensors"
"""The media type; the format has none that is registered."""
JSON = "application/json"
EXACT = 2.0**53
"""Whole numbers up to here are exact in JSON."""
_OF_BODIES = "request"

Size = Annotated[int, Ge(0)]


class JsonTensor(BaseModel):
    """A tensor: ``data`` are its numbers, row after row, as many as the product of ``shape``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dtype: Literal["uint8", "int64", "float32"]
    shape: Annotated[list[Size], Len(1, 16)]
    data: list[Annotated[float, AllowInfNan(False)]]


class JsonTensors(BaseModel):
    """What goes into a block: tensors by name, ``x`` where there is one, each with a row for each sample.

    Attributes:
        contract: The key of the fusion contract that features were made under; only features have one.
        block, discloses: What a base block's answer has beside, which may be sent on as it is; nothing goes by them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    contract: str | None = None
    tensors: Annotated[dict[str, JsonTensor], Len(1, 16)]
    block: str = ""
    discloses: str = ""


class JsonAnswer(BaseModel):
    """What a block makes of samples.

    Attributes:
        block: Which block it was, ``NAME/VERSION``.
        discloses: What the tensors tell of the samples.
        contract: The key of the fusion contract that features are under; scores have none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    block: str
    discloses: Disclosure
    contract: str | None
    tensors: dict[str, JsonTensor]


@dataclass(frozen=True, eq=False)
class Received:
    """Tensors, and the key of the contract that came with them."""

    contract: str | None
    tensors: Mapping[str, Tensor]


def read_safetensors(body: bytes, forms: Mapping[str, TensorForm], rows: int) -> Received:
    """Tensors of a safetensors file; with the codec that its metadata name, where they name one.

    Args:
        forms, rows: What is expected, which bounds what a codec may unfold.

    Raises:
        ServiceError: it is none.
    """
    limits = Limits(max_bytes=max(len(body), 1), max_tensors=16, max_header_bytes=1 << 16, max_name=256)
    pieces = Pieces.of(body)
    try:
        found = read(_OF_BODIES, pieces, None, limits, finite=False, metadata=True)
        said = metadata_of(_OF_BODIES, pieces, limits)
        if "codec" in said:
            found = _decoded(found, _codec(said["codec"]), forms, rows)
    except MessageError as error:
        message = f"the safetensors file is damaged: expected {error.expected}, found {error.found}"
        raise ServiceError("malformed", message, error.field) from None
    return Received(contract=said.get("contract"), tensors=found)


def read_json(body: bytes) -> Received:
    """Tensors of JSON.

    Raises:
        ServiceError: it is none.
    """
    try:
        found = JsonTensors.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        message = f"the JSON is not as it should be: {shown(first['msg'])}"
        raise ServiceError("malformed", message, ".".join(map(str, first["loc"]))) from None
    tensors = {}
    for name, one in found.tensors.items():
        numbers = np.asarray(one.data, np.float64)
        count = 1
        for size in one.shape:
            count *= size  # whole numbers of Python: no shape is too large
        if count != len(numbers):
            raise ServiceError("wrong_shape", f"shape {shown(str(one.shape))} has not {len(numbers)} numbers", name)
        tensors[name] = _typed(numbers, one.dtype, name).reshape(one.shape)
    return Received(contract=found.contract, tensors=tensors)


def check(tensors: Mapping[str, Tensor], forms: Mapping[str, TensorForm], rows: int) -> Inputs:
    """The tensors as a block takes them.

    Raises:
        ServiceError: they are others; says what was expected, and what was found.
    """
    if tensors.keys() != forms.keys():
        found = shown(", ".join(tensors)) or "none"
        raise ServiceError("wrong_tensors", f"expected the tensors {', '.join(forms)}, found {found}")
    counts = {len(tensor) if tensor.dim() else 0 for tensor in tensors.values()}
    if len(counts) != 1 or counts == {0}:
        raise ServiceError("wrong_shape", "tensors have a row for each sample, one at least, all the same number")
    if (count := counts.pop()) > rows:
        raise ServiceError(
            "too_many_rows", f"{count} rows, and at most {rows} are taken at a time: send several requests"
        )
    for name, form in forms.items():
        tensor = tensors[name]
        found = str(tensor.dtype).removeprefix("torch.")
        if found != form.dtype:
            raise ServiceError("wrong_dtype", f"expected {form.dtype}, found {found}", name)
        if tensor.shape[1:] != form.shape:
            wanted = f"[rows, {', '.join(map(str, form.shape))}]"
            raise ServiceError("wrong_shape", f"expected {wanted}, found {shown(str(list(tensor.shape)))}", name)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ServiceError("not_finite", "NaN or an infinity", name)
    return together({name: tensors[name] for name in forms})


def as_safetensors(answer: Mapping[str, Tensor], metadata: Mapping[str, str], codec: Codec = NO_CODEC) -> bytes:
    """Tensors as a safetensors file; with a codec other than none each is that codec's bytes."""
    tensors = dict(answer)
    said = dict(metadata)
    if codec != NO_CODEC:
        tensors = {name: packed(tensor, codec) for name, tensor in tensors.items()}
        said["codec"] = str(codec)
    layout = laid_out("answer", signature(tensors), tuple(said.items()))
    return b"".join(chunks("answer", tensors, layout))


def packed(x: Tensor, codec: Codec) -> Tensor:
    """A tensor as bytes of a codec. Where it rounds at random, it draws the same numbers each time."""
    rounded = codec.round(x, torch.Generator().manual_seed(0))
    return torch.frombuffer(bytearray(codec.pack(rounded)), dtype=torch.uint8)


def as_json(answer: Inputs) -> dict[str, JsonTensor]:
    """Tensors as JSON has them."""
    return {
        name: JsonTensor.model_construct(
            dtype=str(tensor.dtype).removeprefix("torch."), shape=list(tensor.shape), data=tensor.flatten().tolist()
        )
        for name, tensor in named(answer).items()
    }


def known_codec(text: str) -> Codec:
    """The codec of a text, for an answer.

    Raises:
        ServiceError: there is none of that name.
    """
    try:
        return _codec(text)
    except ServiceError as error:
        raise ServiceError("wrong_parameter", str(error), "codec") from None


def _codec(text: str) -> Codec:
    try:
        if len(text) > 64:
            raise ConfigError("no codec has so long a name")
        found = Codec.parse(text)
    except ConfigError as error:
        raise ServiceError("malformed", shown(str(error)), "codec") from None
    if found.feedback or found.ordered:
        raise ServiceError(
            "malformed",
            "error feedback (ef) needs a memory of what was sent, which no request has; sorted is for labels",
            "codec",
        )
    return found


def _decoded(
    tensors: Mapping[str, Tensor], codec: Codec, forms: Mapping[str, TensorForm], rows: int
) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.uint8 or tensor.dim() != 1:
            raise ServiceError("malformed", f"with the codec {codec} a tensor is a row of bytes, uint8 [bytes]", name)
        form = forms.get(name)
        if form is None:
            raise ServiceError("wrong_tensors", f"expected the tensors {', '.join(forms)}", name)
        width = int(np.prod(form.shape, dtype=np.int64)) * getattr(torch, form.dtype).itemsize
        found[name] = codec.unpack(tensor.numpy(), rows * width, _OF_BODIES, name)
    return found


def _typed(numbers: np.ndarray, dtype: str, name: str) -> Tensor:
    """Numbers of a type that can hold them all."""
    if dtype == "float32":
        with np.errstate(over="ignore"):
            return torch.from_numpy(numbers.astype(np.float32))
    low, high = (0.0, 255.0) if dtype == "uint8" else (-EXACT, EXACT)
    if len(numbers) and not ((numbers == np.floor(numbers)) & (numbers >= low) & (numbers <= high)).all():
        raise ServiceError("wrong_dtype", f"{dtype} has whole numbers from {low:.0f} to {high:.0f}", name)
    return torch.from_numpy(numbers.astype(dtype))


def contract_of(said: str | None, wanted: str | None) -> None:
    """Check the key of a contract that came with tensors.

    Args:
        wanted: None where a block takes samples, which are under none.

    Raises:
        ServiceError: it is another, or lacks.
    """
    if wanted == said:
        return
    if wanted is None:
        raise ServiceError("wrong_contract", "samples are under no fusion contract: leave it out", "contract")
    found = "none" if said is None else shown(said)
    message = (
        f"features made under the fusion contract {wanted[:16]}… are needed, found {found[:17]}: both blocks "
        "are of the same run, method, round and features, as GET /v1/blocks shows them"
    )
    raise ServiceError("wrong_contract", message, "contract")
