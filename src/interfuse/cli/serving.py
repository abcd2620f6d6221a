"""Commands for what a run leaves: artefacts, and answers of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, cast, get_args

import numpy as np
import torch
import typer

from interfuse import api, artefacts
from interfuse.artefacts import Mean, Owner, Part
from interfuse.artefacts.registry import Registry
from interfuse.artefacts.signing import sign, signer
from interfuse.cli.options import AFTER, Json, argument, option
from interfuse.data.likeness import Range
from interfuse.data.readers import tables
from interfuse.data.readers.arrays import HoldsObjectsError, check_array
from interfuse.data.reading import UNREADABLE
from interfuse.data.samples import as_stored
from interfuse.engines.parties.leaving import trained
from interfuse.engines.parties.vendor import read_vendor
from interfuse.errors import ConfigError, DataError, RunError, nearest
from interfuse.opening import content, opened

PARTS: tuple[Part, ...] = ("base", "modular")
"""What is written where nobody says."""
OWNER = "Said of it"


def export(
    source: Annotated[Path, argument("RUN|VENDOR.toml")],
    out: Annotated[Path, option(AFTER, "FOLDER", "Where folders of artefacts go, one each.", show_default=False)],
    part: Annotated[
        list[str] | None, option(None, "PART", "base, modular or model; may be repeated (default: base and modular).")
    ] = None,
    client: Annotated[
        list[int] | None, option(None, "N", "A client; may be repeated (default: all of them).", "--client")
    ] = None,
    best: Annotated[
        bool, option(None, None, "Of a run: the round with the best validation accuracy, not the last.", "--best")
    ] = False,
    run: Annotated[str | None, option(None, "NAME", "Of a node that took part in several runs: which one.")] = None,
    round: Annotated[
        int | None, option(None, "N", "Of a node: after which round; it has the last, and what could be gone back to.")
    ] = None,
    onnx: Annotated[bool, option(None, None, "Also as ONNX, for other runtimes.", "--onnx")] = False,
    owner: Annotated[str, option(OWNER, "NAME", "Whose it is.")] = "",
    licence: Annotated[str, option(OWNER, "TEXT", "What it may be used for.")] = "",
    about: Annotated[str, option(OWNER, "TEXT", "Anything else.")] = "",
    expires: Annotated[str | None, option(OWNER, "YYYY-MM-DD", "From this day on it is refused.")] = None,
) -> None:
    """Write the clients' models as artefacts, which need neither the run nor its data nor the models' code.

    RUN: a run folder. VENDOR.toml: a vendor's file, for the model that its node trained; nobody else is asked, and what
    is written is signed by the node's key.
    """
    said, parts, ends = Owner(name=owner, licence=licence, about=about), _parts(part), _day(expires)
    if source.suffix == ".toml":
        if client or best:
            raise ConfigError("a node has one client, and knows no best round: leave out --client and --best")
        vendor = read_vendor(source)
        keys = vendor.key_files()
        state, named = trained(vendor, run, round), said.model_copy(update={"name": owner or vendor.name})
        for one in parts:
            path = out / f"{vendor.name}-{one}"
            artefacts.write(path, *artefacts.make(state, one, named, ends), onnx=onnx)
            if keys is not None:
                key, certificate, _ = keys.read()
                sign(path, key, certificate)
            typer.echo(f"wrote {path}" + (", signed" if keys is not None else ""))
        return
    if run is not None or round is not None:
        raise ConfigError("--run and --round are for a vendor's file; a run folder has the last round, and --best")
    with warnings.catch_warnings(record=True):  # what they say is among the notices
        result = api.load_run(source)
        for number in client if client else range(result.config.clients):
            for one in parts:
                path = out / f"client-{number}-{one}"
                result.export(path, number, one, best=best, owner=said, expires=ends, onnx=onnx)
                typer.echo(f"wrote {path}")
    _say(result.notices)


def predict(
    what: Annotated[list[Path], argument("[RUN] INPUT")],
    base: Annotated[
        str | None, option(None, "ARTEFACT|CLIENT", "Whose base block: a folder, or with RUN a number.")
    ] = None,
    modular: Annotated[
        list[str] | None,
        option(None, "ARTEFACT|CLIENT", "Whose modular block; several folders answer together.", "--modular"),
    ] = None,
    model: Annotated[Path | None, option(None, "ARTEFACT", "A whole model in the place of two blocks.")] = None,
    mean: Annotated[
        str, option(None, "OF", "What several modular blocks answer: the mean of their scores, or of probabilities.")
    ] = "scores",
    authority: Annotated[
        Path | None,
        option(None, "CA.crt", "Take artefacts only that somebody signed whom this authority certified."),
    ] = None,
    out: Annotated[Path | None, option(AFTER, "SCORES.npy", "Write the scores to a file.")] = None,
    as_json: Json = False,
) -> None:
    """Classify samples with the base block of one client and the modular block of another.

    RUN: a run folder; without it blocks are artefacts, see `interfuse export`.
    INPUT: samples as the data set stores them, batch first, in an .npy; of a table also a CSV or Parquet file with its
    columns.
    """
    if len(what) not in (1, 2):
        raise ConfigError(f"expected INPUT, or RUN and INPUT, found {len(what)} paths")
    notices: Sequence[str] = ()
    if len(what) == 2:
        with warnings.catch_warnings(record=True):
            names, scores, notices = _of_run(what[0], what[1], base, modular or [])
    else:
        names, scores = _of_artefacts(what[0], base, modular or [], model, _mean(mean), authority)
    if not names:
        raise ConfigError("predict names classes, and this task has none; in Python interfuse.artefacts gives scores")
    found = [names[best] for best in scores.argmax(axis=1)]
    if out is not None:
        _write_scores(out, scores)
    if as_json:
        typer.echo(json.dumps({"classes": found, "scores": scores.tolist(), "notices": notices}))
    else:
        typer.echo("\n".join(found))
    _say(notices)


def _say(notices: Sequence[str]) -> None:
    for text in notices:
        typer.echo(f"notice: {text}", err=True)


def _of_run(
    run: Path, samples: Path, base: str | None, modular: Sequence[str]
) -> tuple[Sequence[str], np.ndarray, Sequence[str]]:
    numbers = [base or "", *modular]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ConfigError(
            "with a run, --base and --modular are numbers of clients, one each, such as --base 0 --modular 2"
        )
    result = api.load_run(run)
    first, second = map(int, numbers)
    names = result.class_names(first)
    if not names:
        return (), np.zeros((0, 0)), result.notices
    return names, result.compose(first, second)(_samples(samples)).numpy(), result.notices


def _of_artefacts(
    samples: Path,
    base: str | None,
    modular: Sequence[str],
    model: Path | None,
    mean: Mean,
    authority: Path | None,
) -> tuple[Sequence[str], np.ndarray]:
    if (model is None) == (base is None) or bool(modular) != (base is not None):
        raise ConfigError("name two artefacts, --base FOLDER --modular FOLDER, or a whole model, --model FOLDER")
    first, *others = [artefacts.load(path) for path in ([model] if model is not None else [base or "", *modular])]
    for one in (first, *others) if authority is not None else ():
        signer(one.path, [_certificate(authority)])
    for one in others:
        artefacts.check_fit(first, one)
    if model is not None and first.manifest.part != "model":
        raise ConfigError(
            f"{model} is a {first.manifest.part} block, where a whole model is needed: --part model makes one"
        )
    forms = {name: (getattr(torch, form.dtype), form.shape) for name, form in first.manifest.takes.items()}
    ranges = {name: Range(np.array([low]), np.array([high])) for name, (low, high) in first.manifest.ranges.items()}
    x = as_stored(_samples(samples), forms, first.manifest.columns, ranges)
    scores = artefacts.composed(first, others, x, mean) if others else artefacts.mean_of([first], x)
    answers = (others or [first])[0].manifest.answers
    return answers.classes if answers is not None else (), scores.numpy()


def _certificate(path: Path | None) -> bytes:
    try:
        return b"" if path is None else content(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _parts(texts: Sequence[str] | None) -> Sequence[Part]:
    known = get_args(Part)
    if unknown := [text for text in texts or () if text not in known]:
        raise ConfigError(f"no part {unknown[0]!r}: {nearest(unknown[0], known)}")
    return [part for part in known if part in texts] if texts else PARTS


def _mean(text: str) -> Mean:
    for known in get_args(Mean):
        if text == known:
            return cast(Mean, known)
    raise ConfigError(f"no mean of {text!r}: {nearest(text, get_args(Mean))}")


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no day: write it as 2027-12-31") from None


def _samples(path: Path) -> np.ndarray | Mapping[str, np.ndarray]:
    if tables.recognises(path):
        return tables.read_features(path)
    try:
        with opened(path) as file:
            if file.peek(2)[:2] == b"PK":
                raise DataError(f"{path} holds several arrays; save one with numpy.save")
            check_array(file, path.stat().st_size)
            file.seek(0)
            return np.asarray(np.load(file, allow_pickle=False))
    except UNREADABLE as error:
        reason = "it holds Python objects" if isinstance(error, HoldsObjectsError) else error
        raise DataError(f"cannot read {path} as an array of numbers (.npy): {reason}") from error


def _write_scores(path: Path, scores: np.ndarray) -> None:
    try:
        with open(path, "wb") as file:
            np.save(file, scores)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


registry = typer.Typer(no_args_is_help=True, help="Keep artefacts by name and version, and see which fit together.")
_Address = Annotated[str, argument("REGISTRY")]
_Name = Annotated[str, argument("NAME[/VERSION]")]


@registry.command("add", no_args_is_help=True)
def add_artefact(
    address: _Address,
    folder: Annotated[Path, argument("ARTEFACT")],
    name: Annotated[str | None, option(None, "NAME", "Under which name (default: the folder's).")] = None,
) -> None:
    """Put an artefact into a registry, beside earlier versions of its name.

    REGISTRY: a folder, or an address that fsspec knows. ARTEFACT: the folder of an artefact.
    """
    added = Registry(address).add(artefacts.load(folder), name or folder.resolve().name)
    typer.echo(f"added {added.address}")


@registry.command("list", no_args_is_help=True)
def list_artefacts(address: _Address) -> None:
    """Show what there is, by what fits together: a base block goes with each modular block of its group."""
    found = Registry(address)
    for fusion, group in found.by_contract():
        if fusion is None:
            typer.echo("whole models")
        else:
            width = ", ".join("x".join(map(str, form.shape)) for form in fusion.features.values())
            typer.echo(f"run {fusion.run}, {fusion.method}, round {fusion.round}, width {width}")
        for one in group:
            typer.echo(f"  {one.manifest.part:8} {one.address}  {one.manifest.owner.name}".rstrip())
    for one in found.artefacts():
        if one.revoked is not None:
            typer.echo(f"revoked: {one.address}: {one.revoked}")


@registry.command("show", no_args_is_help=True)
def show_artefact(address: _Address, name: _Name) -> None:
    """Print the manifest of an artefact: its newest version, or VERSION."""
    with Registry(address).fetched(*_versioned(name)) as found:
        typer.echo(found.manifest.model_dump_json(indent=2))


@registry.command("verify", no_args_is_help=True)
def verify_artefacts(address: _Address) -> None:
    """Read everything, and say what is damaged, expired or revoked; exit with 1 if anything is."""
    found = Registry(address).verify()
    for one, wrong in found.items():
        typer.echo(f"{one}: {wrong or 'good'}")
    if any(found.values()):
        raise typer.Exit(1)


@registry.command("revoke", no_args_is_help=True)
def revoke_artefact(
    address: _Address, name: _Name, reason: Annotated[str, option(None, "TEXT", "Told to whoever reads it.")] = ""
) -> None:
    """Have readers refuse all versions of an artefact, or VERSION, from now on."""
    only, version = _versioned(name)
    for number in Registry(address).revoke(only, version, reason):
        typer.echo(f"revoked {only}/{number}")


def _versioned(text: str) -> tuple[str, int | None]:
    name, _, version = text.partition("/")
    if version and not version.isdecimal():
        raise ConfigError(f"{text!r} is no artefact of a registry: NAME, or NAME/VERSION with a number")
    return name, int(version) if version else None
