"""``interfuse.compare``: a comparison in one call from Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from interfuse import recipes
from interfuse.api import plain_settings
from interfuse.comparison.outcome import compare as carry_out
from interfuse.comparison.plan import resolve
from interfuse.comparison.progress import shown
from interfuse.comparison.recipe import Recipe, override, parse, read, seeded
from interfuse.errors import ConfigError, RunError, nearest
from interfuse.method import Method
from interfuse.methods import name_of
from interfuse.opening import content, json_in
from interfuse.references import IN_MEMORY, short_name
from interfuse.result import Result
from interfuse.runs import RunSettings
from interfuse.runs.config import absolute_paths, settings_of
from interfuse.runs.differences import Difference, points
from interfuse.runs.words import counts, percents, size

Methods = str | Method | type[Method]
_OTHERS = "others, %"
SHOWN = {
    "own, %": ("own_last", percents),
    _OTHERS: ("others_last", percents),
    "global, %": ("global_last", percents),
    "composition, %": ("composition_last", percents),
    "uplink": ("uplink", size),
    "client steps": ("steps_clients", counts),
}
"""Columns of the short table, by their heads."""


def compare(
    methods: str | Path | Sequence[Methods] | Mapping[str, Methods],
    *,
    seeds: Sequence[int] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    skip_refused: bool = False,
    quiet: bool = False,
    **values: Unpack[RunSettings],
) -> ComparisonResult:
    """Compare methods over several seeds, each with its own tuned settings; write tables, plots and a page.

    The same call again goes on with what is not finished.

    Args:
        methods: Methods, each a name, a class or an object with settings of its own, or several under names of yours;
            or a recipe: its name, or a path ending in ``.toml``.
        seeds: Of every entry; None: those of the recipe, 0, 1, 2 where there is none.
        grid: Values to try by setting, chosen by validation score for each method that has it; ``"base_lr,lr"`` gives
            several settings the same value.
        out: The folder; None: ``comparisons/NAME``.
        jobs: Runs side by side; None: one a core. Results do not depend on it.
        skip_refused: Go on without entries that cannot work, and name them.
        quiet: Show no progress.
        values: The settings of all runs, as :func:`interfuse.run` takes them. All must be found again by name, for each
            run has a process and ``comparison.toml`` says all of it.

    Raises:
        InterfuseError: an entry cannot work (said before anything trains), or the folder holds another comparison.
    """
    recipe = _recipe(methods)
    run, axes = _named(plain_settings(values), "interfuse.compare"), {k: list(v) for k, v in (grid or {}).items()}
    recipe = override(recipe, absolute_paths(run, Path.cwd()), axes)
    if seeds is not None:
        recipe = seeded(recipe, seeds, "interfuse.compare")
    folder = Path(out) if out is not None else Path("comparisons") / recipe.name
    with shown(quiet) as follower:
        carry_out(resolve(recipe), folder, jobs=jobs, follower=follower, skip_refused=skip_refused)
    return ComparisonResult.of(folder)


def _recipe(methods: str | Path | Sequence[Methods] | Mapping[str, Methods]) -> Recipe:
    if isinstance(methods, str | Path):
        path = Path(methods) if str(methods).endswith(".toml") else recipes.find(str(methods))
        if path is None:
            raise ConfigError(f"no recipe {methods!r}: {nearest(str(methods), recipes.names())}; methods go in a list")
        return read(path)
    named = methods.items() if isinstance(methods, Mapping) else [(None, method) for method in methods]
    entries = [_entry(name, method) for name, method in named]
    name = "-".join(str(entry["name"]) for entry in entries).lower()
    return parse({"entry": entries}, name, "interfuse.compare", Path.cwd())


def _entry(name: str | None, method: Methods) -> dict[str, Any]:
    """The table of an entry; an object decides all its settings itself."""
    if isinstance(method, str):
        return {"name": name or short_name(method), "method": method}
    kind = method if isinstance(method, type) else type(method)
    entry: dict[str, Any] = {"name": name or short_name(name_of(kind)), "method": name_of(kind)}
    if isinstance(method, Method):
        own = settings_of(method)
        entry["settings"] = {key: value for key, value in own.items() if value is not None}
        entry["unset"] = [key for key, value in own.items() if value is None]
    return _named(entry, f"interfuse.compare, {entry['name']}")


def _named(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The same values, none of which has to be given as an object."""
    for text in _texts(values):
        if text.startswith(IN_MEMORY):
            name = text.removeprefix(IN_MEMORY)
            raise ConfigError(
                f"{source}: {name} is here only in memory, and a comparison has to find it by name: put it into a "
                f"file, and give 'mine.py:{short_name(text)}'; data goes into an .npz"
            )
    return values


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


@dataclass(frozen=True)
class ComparedEntry:
    """An entry of a comparison with all its measures by key, as ``comparison.json`` has them; NaN is unknown.

    Attributes:
        chosen: Settings that the grid decided; None where there was no choice, or all failed.
        mean, std: Over seeds; that of a sample (n − 1).
        seeds: The measures of each seed.
        failures: Reasons by what failed.
        notes: What its runs know of these figures.
        differences: By the entry that it is compared to, then by measure: what the seeds tell, paired.
    """

    name: str
    method: str
    chosen: Mapping[str, Any] | None
    mean: Mapping[str, float]
    std: Mapping[str, float]
    seeds: Mapping[int, Mapping[str, float]]
    failures: Mapping[str, str]
    notes: tuple[str, ...]
    differences: Mapping[str, Mapping[str, Difference]]


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """What came of a comparison.

    Attributes:
        path: Its folder, with ``table.md``, ``table.tex``, ``table.csv`` and ``report.html``.
        rows: The entries in their order.
        notes: What has to be said of all of them.
        table: All tables as text.
    """

    path: Path
    title: str
    rows: tuple[ComparedEntry, ...]
    notes: tuple[str, ...]
    table: str

    @classmethod
    def of(cls, path: Path) -> ComparisonResult:
        """Read the folder of a finished comparison.

        Raises:
            RunError: it cannot be read.
        """
        try:
            return cls._of(path, json_in(path / "comparison.json"), content(path / "table.md").decode("utf-8"))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(f"{path} holds no comparison that can be read: {error!r}") from error

    @classmethod
    def _of(cls, path: Path, found: Any, table: str) -> ComparisonResult:
        rows = tuple(
            ComparedEntry(
                row["name"],
                row["method"],
                row["chosen"],
                _known(row["mean"]),
                _known(row["std"]),
                {int(seed): _known(values) for seed, values in row["seeds"].items()},
                row["failures"],
                tuple(row["notes"]),
                {of: {key: _difference(one) for key, one in by.items()} for of, by in row["differences"].items()},
            )
            for row in found["entries"]
        )
        return cls(path, found["title"], rows, tuple(found["notes"]), table)

    def __getitem__(self, name: str) -> ComparedEntry:
        """The entry of a name.

        Raises:
            ConfigError: there is none.
        """
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise ConfigError(f"no entry {name!r}: {nearest(name, found)}")
        return found[name]

    def result(self, name: str, seed: int) -> Result:
        """The run of an entry with a seed.

        Raises:
            ConfigError: there is no such entry, or no finished run of it with this seed.
        """
        if seed not in self[name].seeds:
            raise ConfigError(f"{name} has no run with seed {seed}: {nearest(str(seed), map(str, self[name].seeds))}")
        return Result(self.path / "runs" / name / f"seed-{seed}")

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and lines: figures, then the own score minus that of each reference with what the seeds tell."""
        references = list(dict.fromkeys(name for row in self.rows for name in row.differences))
        asked = any("others_last" in row.mean for row in self.rows)
        shown = {head: of for head, of in SHOWN.items() if head != _OTHERS or asked}
        lines = [
            [
                row.name + " *" * bool(row.notes),
                *(form(row.mean.get(k, math.nan), row.std.get(k, math.nan)) for k, form in shown.values()),
                *(_told(row.differences.get(name, {}).get("own_last")) for name in references),
            ]
            for row in self.rows
        ]
        return ["", *shown, *(f"own − {name}, ± 95 %" for name in references)], lines

    def _said(self) -> list[str]:
        """What stands beside figures, then the notes on all."""
        names: dict[str, list[str]] = {}
        for row in self.rows:
            for note in row.notes:
                names.setdefault(note, []).append(row.name)
        return [*(f"* {', '.join(of)}: {note}" for note, of in names.items()), *self.notes]

    def __repr__(self) -> str:
        heads, rows = self._table()
        lines = [heads, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.title, *text, *(f"- {note}" for note in self._said()), str(self.path)])

    def _repr_html_(self) -> str:
        from interfuse.report.html import render

        heads, lines = self._table()
        return render("table.html", title=self.title, heads=heads, lines=lines, notes=self._said(), path=self.path)


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in values.items()}


def _difference(found: Mapping[str, Any]) -> Difference:
    mean, half = (math.nan if found[key] is None else found[key] for key in ("mean", "half"))
    return Difference(mean, half, found["seeds"])


def _told(found: Difference | None) -> str:
    return "" if found is None else points(found) + " ≈" * found.untold
