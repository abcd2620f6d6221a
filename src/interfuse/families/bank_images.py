"""What is learned, sent and drawn in place of samples: pixels from 0 to 1, or values as they are normalised.

Samples that are stored as uint8 are pixels: they travel and are kept as uint8, 255 for what their data set scales to 1.
Others are float32, normalised as their data set is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from interfuse.data import ClientData
from interfuse.data.inputs import ONLY, Shape, shape_text
from interfuse.errors import ClientError
from interfuse.families.checks import check_tensors
from interfuse.messages import NamedTensors
from interfuse.method import Network
from interfuse.models import run_with

_BRIGHTEST = 255
_LARGEST = 1e4
"""No normalised value of real data is so far from 0."""


def to_learn(data: ClientData) -> tuple[Float32[Tensor, "rows *sample"], bool]:
    """A client's own rows, and whether they are pixels, in [0, 1], or else normalised.

    Raises:
        DataError: such samples cannot be drawn.
    """
    pixels, raw = data.bounds is not None, data.raw()
    found = (raw.features.float() / _scale(data)).clamp(max=1) if pixels else data.inputs(raw.x)
    assert isinstance(found, Tensor)
    return found, pixels


def to_keep(x: Float[Tensor, "n *sample"], pixels: bool) -> Shaped[Tensor, "n *sample"]:
    """What was learned or drawn, as it travels and is kept: pixels as uint8."""
    return (x.clamp(0, 1) * _BRIGHTEST).round().to(torch.uint8) if pixels else x


def normalised(data: ClientData, x: Shaped[Tensor, "n *sample"]) -> Float[Tensor, "n *sample"]:
    """What was kept, as a client's model takes it."""
    found = data.inputs(x.float() * (_scale(data) / _BRIGHTEST)) if x.dtype == torch.uint8 else x
    assert isinstance(found, Tensor)
    return found


def pixel_bounds(data: ClientData) -> Float[Tensor, "2 channels"] | None:
    """The normalised values of pixels 0 and 1, by channel; None: samples are no pixels.

    Raises:
        DataError: such samples cannot be drawn.
    """
    if data.bounds is None:
        return None
    ends = torch.tensor([0.0, _scale(data)], device=data.bounds.device)
    return data.dataset.normalisation[ONLY](ends[:, None].expand_as(data.bounds))


def check_images(x: Shaped[Tensor, "n ..."], sample: Shape, sender: str, client: int | None = None) -> None:
    """Check images that somebody sent, or that were drawn with what they sent.

    Raises:
        ClientError: they have not the shape of samples, or values that no samples have.
    """
    if tuple(x.shape[1:]) != sample or x.dtype not in (torch.uint8, torch.float32):
        found = f"{shape_text(tuple(x.shape[1:]))} of {x.dtype}"
        raise ClientError(f"images of {sender} are {found}, but samples are {shape_text(sample)}", client)
    if x.is_floating_point() and len(x) and not float(x.abs().max()) <= _LARGEST:
        raise ClientError(
            f"images of {sender} have values beyond {_LARGEST:g}, or no numbers; samples have none", client
        )


def outputs_of(
    network: Network, part: str, sent: NamedTensors, inputs: Iterable[Float[Tensor, "n inputs"]], client: int
) -> Float[Tensor, "m *sample"]:
    """What a part of a network (``"all"``: the whole) makes of inputs with the tensors that a client sent for it.

    Raises:
        ClientError: they are not the tensors of this part; names the first that is wrong.
    """
    with torch.device("meta"):
        built = network.build()
    module = built if part == "all" else built.only(part)
    check_tensors(client, sent, module.tensors(), "what draws images")
    device = next(iter(sent.values())).device
    with torch.no_grad():
        return torch.cat([run_with(module, sent, x.to(device)) for x in inputs])


def _scale(data: ClientData) -> float:
    """The stored value of 1."""
    return data.dataset.normalisation[ONLY].scale
