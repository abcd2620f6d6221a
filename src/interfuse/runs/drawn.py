"""``drawn.safetensors``: samples that clients drew at the end of a run, beside real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int64, Shaped
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from interfuse.client import ClientId, part_of
from interfuse.errors import RunError
from interfuse.evaluation import Pictures
from interfuse.wire.files import write_file

DRAWN_FILE = "drawn.safetensors"


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a client drew, as its data set stores samples, and the first training row of each class that it has."""

    client: ClientId
    drawn: Shaped[Tensor, "drawn *sample"]
    drawn_y: Int64[Tensor, "drawn"]
    real: Shaped[Tensor, "real *sample"]
    real_y: Int64[Tensor, "real"]


def write_drawn(folder: Path, pictures: Mapping[ClientId, Pictures]) -> None:
    """Write the file of a run folder; where nothing was drawn there is none.

    Raises:
        RunError: it cannot be written.
    """
    (folder / DRAWN_FILE).unlink(missing_ok=True)
    if pictures:
        tensors = {
            f"{part_of(client)}/{name}": tensor.cpu().clone()
            for client, found in pictures.items()
            for name, tensor in vars(found).items()
        }
        data = save(tensors)
        write_file(folder / DRAWN_FILE, [data], len(data))


def read_drawn(data: bytes, path: Path) -> Sequence[Drawn]:
    """What is in such a file, by client.

    Args:
        path: Where it lies, for errors.

    Raises:
        RunError: it is damaged.
    """
    try:
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in sorted(load(data).items()):
            client, name = key.split("/")
            found.setdefault(client, {})[name] = tensor.long() if name.endswith("_y") else tensor
        return [Drawn(int(client.removeprefix("client-")), **tensors) for client, tensors in found.items()]
    except (SafetensorError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}; delete it, and the report goes without pictures") from None
