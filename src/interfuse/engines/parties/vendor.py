"""``vendor.toml``: what a vendor brings to a federation, and what it allows the federation to ask."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from interfuse.data import (
    Dataset,
    Layout,
    ReadOptions,
    family_of,
    format_of,
    is_path,
    is_read,
    load_with,
    numbered,
    read_path,
)
from interfuse.data.inputs import each
from interfuse.engines.parties.contract import Contract, JoinError, names
from interfuse.engines.parties.keys import KeyFiles
from interfuse.engines.parties.limits import LimitsTable
from interfuse.engines.parties.words import Name
from interfuse.errors import ConfigError
from interfuse.evaluation import Mode
from interfuse.messages import Disclosure
from interfuse.models import Builder, resolve, split_at
from interfuse.references import is_reference, load_reference, whole_path
from interfuse.setup import with_class_names
from interfuse.toml import read_toml

MODES: tuple[Mode, ...] = ("none", "own", "shared")
"""What evaluations ask for, in ascending order."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelTable(_Table):
    """``[model]``: a builder (``build``), or anybody's module and where to cut it (``module``, ``split_at``).

    ``public`` tells the coordinator the name ``architecture``, the shapes of all tensors, and that of a sample.
    """

    build: Name | None = None
    module: Name | None = None
    split_at: Name | None = None
    architecture: Name | None = None
    public: bool = False

    def builder(self, folder: Path) -> Builder:
        """What makes the model.

        Raises:
            ConfigError: not exactly one of ``build`` and ``module`` is given, or it cannot be found.
        """
        if self.build is not None and self.module is None and self.split_at is None:
            return resolve(_located(self.build, folder))
        if self.module is None or self.split_at is None or self.build is not None:
            raise ConfigError("[model] needs either build, or module and split_at")
        given, cut = load_reference(_located(self.module, folder)), self.split_at

        def build(sample_shape: tuple[int, ...], classes: int, width: int) -> object:
            module = copy.deepcopy(given) if isinstance(given, nn.Module) else given() if callable(given) else given
            if not isinstance(module, nn.Module):
                raise ConfigError(f"[model] module: {self.module} is neither a module nor makes one")
            return split_at(module, cut, width, sample_shape)

        return resolve(build)


class DataTable(_Table):
    """``[data]``: where the vendor's own rows are, and the public test set, if it has one.

    Attributes:
        source: A name of ``interfuse datasets``, the path of a file or folder of any format (docs/data.md), or
            ``file.py:function``. Rows that the source sets aside for testing are not used.
        label: The column of labels of a table, or several.
        classes: Names of the classes in the order of their numbers, as all parties agreed on them.
        task, group, drop, layout: How files are read otherwise, see :class:`interfuse.data.ReadOptions`.
        tasks, rows, place, tokenizer, length, side, revision: What is read of a named set that is made of tasks, and
            how; see the same.
        test: The public test set, as ``source``; its test rows, or all of its rows where it has none.
        public: The public data that a method uses, as ``source``; its training rows.
    """

    source: Name
    label: Name | tuple[Name, ...] | None = None
    classes: tuple[str, ...] | None = None
    task: Name | None = None
    group: Name | None = None
    drop: tuple[Name, ...] = ()
    layout: Layout | None = None
    tasks: tuple[Name, ...] = ()
    rows: int | tuple[int, ...] | None = None
    place: int | None = None
    tokenizer: Name | tuple[Name, ...] | None = None
    length: int | None = None
    side: int | None = None
    revision: Name | None = None
    test: Name | None = None
    public: Name | None = None

    @property
    def options(self) -> ReadOptions:
        """How its files are to be read."""
        return ReadOptions.of(self.model_dump(exclude={"source", "test", "public"}))

    def _check_read(self, sources: Sequence[str]) -> None:
        """Refuse options that nothing is read by."""
        if not any(map(is_read, sources)):
            replace(self.options, classes=None).only(format=f"[data] source = {self.source!r}, which is no file")

    def load_public(self, folder: Path) -> Dataset | None:
        """The public data, where the vendor has some."""
        return None if self.public is None else self._read(_located(self.public, folder), folder)

    def load(self, folder: Path) -> Dataset:
        """The vendor's rows as training rows, with the public test set as test rows (none where there is none)."""
        self._check_read([_located(one, folder) for one in (self.source, self.test, self.public) if one is not None])
        own = with_class_names(self._read(_located(self.source, folder), folder), self.classes or ())
        own = replace(own, test_groups=None)  # its test rows will be others
        if self.test is None:
            return replace(own, x_test=each(lambda x: x[:0], own.x_train), y_test=own.y_train[:0])
        if self.test == self.source:
            own = public = own.with_held_out()
        else:
            public = self._read(_located(self.test, folder), folder)
        other_order = own.class_names[: public.classes] != public.class_names
        if (
            public.class_names == numbered(public.classes)
            and other_order
            and {*public.class_names} <= {*own.class_names}
        ):
            raise ConfigError(
                f"[data] test: {public.name} has the numbers 0 to {public.classes - 1}, which may be positions "
                f"among the classes {', '.join(own.class_names)} of {own.name}, or names; give both in one format"
            )
        if public.class_names not in (own.class_names, numbered(public.classes)):
            raise ConfigError(
                f"[data] test: {public.name} calls its classes {', '.join(public.class_names)}, {own.name} calls them "
                f"{', '.join(own.class_names)}; `classes` under [data] names those that have numbers only"
            )
        if not len(public.y_test):
            return replace(own, x_test=public.x_train, y_test=public.y_train)
        return replace(own, x_test=public.x_test, y_test=public.y_test)

    def _read(self, source: str, folder: Path) -> Dataset:
        own = _located(self.source, folder)
        said = self.options
        said = replace(said, tokenizer=tuple(_located(name, folder) for name in said.tokenizer))
        if not is_path(source):
            alike = is_read(source) and family_of(source) == family_of(own)
            return load_with(source, (said if source == own else said.for_others()) if alike else ReadOptions())
        alike = not is_path(own) or format_of(Path(source)) == format_of(Path(own))
        return read_path(Path(source), said if alike else ReadOptions())


class AllowTable(_Table):
    """``[allow]``: what the coordinator may ask. Methods by the names that the contract uses.

    ``draws_from = "seed"`` lets the contract say in which order rows are drawn, so that a run has the bits of a
    simulation: whoever has the contract then knows which row of a batch is which of another one.
    """

    methods: tuple[Name, ...]
    disclosures: tuple[Disclosure, ...]
    evaluation: Mode = "none"
    retention: bool = False
    draws_from: Literal["secret", "seed"] = "secret"


class Vendor(_Table):
    """A vendor's whole file. Paths are relative to it; ``proxy`` is the ``HOST:PORT`` of an HTTP proxy."""

    name: Name
    coordinator: Name = "127.0.0.1:8443"
    device: Name = "cpu"
    state: Path = Path("state")
    proxy: Annotated[str, Field(pattern=r"^[^/@\s]+:\d+$")] | None = None
    model: ModelTable
    data: DataTable
    allow: AllowTable
    limits: LimitsTable = LimitsTable()
    keys: KeyFiles | None = None
    folder: Path = Field(default=Path(), exclude=True)

    @model_validator(mode="after")
    def _memory_can_be_bounded(self) -> Vendor:
        if self.limits.memory is not None and self.device != "cpu":
            raise ValueError(
                f"limits.memory bounds what a process takes of the processor's memory; with device = {self.device!r} "
                "drivers reserve more of that than they use. Leave it out, and bound the node from outside, as a "
                "container can"
            )
        return self

    @property
    def architecture(self) -> str:
        """What it calls its model."""
        return self.model.architecture or (self.model.build if self.model.public else None) or self.name

    @property
    def state_folder(self) -> Path:
        """Where the node keeps what must outlive it: saved states, logs, the audit log."""
        return self.folder / self.state

    def key_files(self) -> KeyFiles | None:
        """Key, certificate and authority, or None."""
        return None if self.keys is None else self.keys.below(self.folder)

    def check(self, contract: Contract) -> None:
        """Refuse what the vendor does not allow.

        Raises:
            JoinError: naming the field.
        """
        allow = self.allow
        self.limits.check_sizes(contract)
        if contract.method not in allow.methods:
            raise JoinError("method", f"one of {', '.join(allow.methods)}", contract.method)
        if too_much := set(contract.discloses) - set(allow.disclosures):
            raise JoinError("discloses", f"at most {names(allow.disclosures)}", names(too_much))
        if contract.retains and not allow.retention:
            raise JoinError("retention", "nothing kept beyond its round", names(contract.retains))
        if MODES.index(contract.evaluation) > MODES.index(allow.evaluation):
            raise JoinError("evaluation", f"at most {allow.evaluation}", contract.evaluation)
        if contract.sampling.draws_from == "seed" and allow.draws_from != "seed":
            raise JoinError("sampling.draws_from", 'secret, or `draws_from = "seed"` under [allow]', "seed")


def read_vendor(path: Path) -> Vendor:
    """Read a vendor's file.

    Raises:
        ConfigError: it is missing, no TOML, or says something unknown or impossible; names the key.
    """
    values = read_toml(path)
    try:
        return Vendor.model_validate(values | {"folder": path.parent.resolve()})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _located(name: str, folder: Path) -> str:
    """A name, or the whole path of what lies in the vendor's folder: ``model.py:build``, ``rows.npz``, ``images``."""
    place, _, rest = name.partition(":")
    if is_reference(name) and not place.endswith(".py"):
        return whole_path(name, folder)
    return str(folder / place) + (f":{rest}" if rest else "") if (folder / place).exists() else name
