"""The folder of an artefact: a manifest, a program, its tensors, perhaps ONNX, and digests of them all."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interfuse.artefacts.manifest import Manifest, TensorForm
from interfuse.artefacts.onnx import write_onnx
from interfuse.artefacts.programs import Program
from interfuse.data.inputs import Inputs, joined, named, split
from interfuse.errors import ArtefactError, ConfigError
from interfuse.opening import content, opened

MANIFEST, PROGRAM, WEIGHTS, SUMS = "manifest.json", "program.json", "weights.safetensors", "SHA256SUMS"
ONNX, SIGNATURE, REVOKED = "model.onnx", "signature.json", "REVOKED"
_BESIDE = {SUMS, SIGNATURE, REVOKED}
"""Files that no digest covers: what covers the others, who vouches for that, and that nobody does any more."""
ROWS = 512
"""Samples that a program takes at a time."""
DEBRIS = {".ds_store", "thumbs.db", "desktop.ini"}
"""What file browsers leave in a folder, in small letters. Nothing reads it."""
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)", re.ASCII)


@dataclass(frozen=True, eq=False)
class Artefact:
    """A block of a model, or a whole one, that can be used without the run, its data or the model's code."""

    path: Path
    manifest: Manifest
    program: Program = field(repr=False)

    def __call__(self, x: Inputs) -> Inputs:
        """What it makes of samples ``[batch, ...]``, as its manifest describes them.

        Raises:
            ArtefactError: they are others.
        """
        check(x, self.manifest.takes)
        return joined([self.program(piece) for piece in split(x, ROWS)])


def check(x: Inputs, forms: Mapping[str, TensorForm]) -> None:
    """Check tensors against what is expected.

    Raises:
        ArtefactError: says what was expected, and what was found.
    """
    given = named(x)
    if given.keys() != forms.keys():
        raise ArtefactError(f"expected the inputs {', '.join(forms)}, found {', '.join(given) or 'none'}")
    if len({len(tensor) for tensor in given.values() if tensor.dim()}) != 1 or not all(t.dim() for t in given.values()):
        raise ArtefactError("inputs have as many rows as there are samples, all the same number")
    for name, form in forms.items():
        tensor, dtype = given[name], getattr(torch, form.dtype)
        if tensor.shape[1:] != form.shape or tensor.dtype != dtype or not len(tensor):
            wanted = f"{form.dtype} [batch, {', '.join(map(str, form.shape))}]"
            found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise ArtefactError(f"input {name}: expected {wanted}, found {found}")
        if dtype.is_floating_point and not bool(tensor.isfinite().all()):
            raise ArtefactError(f"input {name} has values that are not finite")


def write(out: Path, manifest: Manifest, program: Program, *, onnx: bool = False) -> None:
    """Write an artefact to a folder that is there whole or not at all.

    Args:
        onnx: Also as ONNX, which is compared with the program.

    Raises:
        ConfigError: there is something at ``out`` already, it cannot be written, or ONNX lacks a package.
        ModelError: ONNX cannot say what the program does.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already: name a folder that is not, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            (making / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            (making / PROGRAM).write_text(program.text(), encoding="utf-8")
            save_file(dict(program.tensors), making / WEIGHTS)
            if onnx:
                write_onnx(program, manifest.takes, making / ONNX)
            sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(making.iterdir()))
            (making / SUMS).write_text(sums, encoding="utf-8")
            making.chmod(0o755)
            for path in making.iterdir():
                path.chmod(0o644)
            making.rename(out)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot write the artefact {out}: {error.strerror}") from error


def load(path: str | Path, *, today: date | None = None) -> Artefact:
    """Read an artefact. Nothing of what is in it is run until it is called, and then operations of a closed list alone.

    Args:
        today: The day that its end is compared with; None: this one.

    Raises:
        ArtefactError: there is none, it is damaged, or expired.
    """
    folder = Path(path)
    try:
        _check_files(folder)
        manifest = Manifest.model_validate_json(content(folder / MANIFEST))
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        program = Program.of_text(content(folder / PROGRAM).decode("utf-8"), tensors)
    except OSError as error:
        raise ArtefactError(
            f"{folder} is no artefact: {error.strerror}: {Path(error.filename or folder).name}"
        ) from error
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{folder} is no artefact: a file is no text") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtefactError(f"{folder / MANIFEST}: {where}: {first['msg']}") from error
    except SafetensorError as error:
        raise ArtefactError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    if {*program.inputs} != {*manifest.takes}:
        raise ArtefactError(f"{folder}: program and manifest have other inputs")
    if (why := revoked(folder) or expired(manifest, today)) is not None:
        raise ArtefactError(f"{folder} {why}")
    return Artefact(folder, manifest, program)


def revoked(folder: Path) -> str | None:
    """Why nobody vouches any more for the artefact in a folder, in words that follow its name; None: somebody does.

    Raises:
        ArtefactError: that cannot be known, since there is no artefact, or its folder cannot be read.
    """
    try:
        (folder / MANIFEST).stat()
    except OSError as error:
        raise ArtefactError(f"there is no artefact in {folder}: {error.strerror}") from error
    try:
        (folder / REVOKED).lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtefactError(f"{folder} cannot be read: {error.strerror}") from error
    try:
        return because(content(folder / REVOKED))
    except OSError as error:  # it is there, which is what counts
        return f"was revoked: the reason cannot be read, {error.strerror}"


def because(reason: bytes) -> str:
    """The content of the file ``REVOKED`` in words that follow a name."""
    return f"was revoked: {reason.decode(errors='replace')[:300] or 'no reason was given'}"


def expired(manifest: Manifest, today: date | None = None) -> str | None:
    """That an artefact has come to its end, in words that follow its name; None: it has not."""
    if manifest.expires is None or (today or date.today()) < manifest.expires:
        return None
    return f"has expired on {manifest.expires}: ask {manifest.owner.name or 'its owner'} for a newer one"


def _check_files(folder: Path) -> None:
    """Check that the files are those that were written."""
    *rows, end = content(folder / SUMS).decode().split("\n")
    lines = [_LINE.fullmatch(row) for row in rows]
    sums = {line[2]: line[1] for line in lines if line is not None}
    there = {entry.name for entry in folder.iterdir() if entry.name.lower() not in DEBRIS} - _BESIDE
    if end or None in lines or len(sums) != len(lines) or not {MANIFEST, PROGRAM, WEIGHTS} <= sums.keys():
        raise ArtefactError(f"{folder / SUMS} is damaged: it has a line for each file, digest and name")
    if there != sums.keys():
        raise ArtefactError(f"{folder} has other files than {SUMS} says: {', '.join(sorted(there ^ sums.keys()))}")
    for name, sum in sums.items():
        if (found := _sha256(folder / name)) != sum:
            raise ArtefactError(f"{folder / name} was changed: its SHA-256 is {found[:16]}…, not {sum[:16]}…")


def _sha256(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
