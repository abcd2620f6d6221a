"""The tables: in Markdown and LaTeX what fits on a page, in CSV and JSON everything."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from interfuse.clock import LINKS, OWN
from interfuse.comparison.measures import Anchor, Row, newcomers_of, score_of
from interfuse.comparison.plan import Plan
from interfuse.report.text import UNKNOWN, bare_percent, capital, megabytes, with_article


@dataclass(frozen=True)
class Column:
    """A measure under its heading."""

    head: str
    key: str
    form: Callable[[float], str]


@dataclass(frozen=True)
class Table:
    """A part of all there is to say, made of text: a line for each entry, the first cell its name."""

    title: str
    caption: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]


def tables(plan: Plan, rows: Sequence[Row], anchor: Anchor | None) -> list[Table]:
    """The tables for people."""
    asked, score = plan.asked, score_of(rows)
    word, a_score, runs = capital(score), with_article(score), [run for row in rows for run in row.runs]
    coded, found = any(run.summary.codecs for run in runs), []

    def add(title: str, caption: str, columns: Sequence[Column]) -> None:
        lines = [(_name(row), *(_cell(row, column) for column in columns)) for row in rows]
        found.append(Table(title, caption, ("entry", *(column.head for column in columns)), lines))

    count = len(asked.seeds)
    over = f"Mean ± standard deviation over {count} seeds" if count > 1 else f"Seed {asked.seeds[0]} alone"
    text = f"{over}. {word} in %, after the last round and after that of the best validation {score}."
    reached = [a for a in asked.accuracies if any(row.values and row.known(f"uplink_to_{a:g}") for row in rows)]
    missed = ", ".join(f"{100 * a:g} %" for a in asked.accuracies if a not in reached)
    if missed and any(row.values for row in rows):
        text += f" On no curve is the mean global {score} ever {missed}."
    add(f"{word} and cost", text, _MAIN)
    if coded:
        text = "MB of all clients before and after codecs, headers of messages included; and how many times less."
        add("On the wire", text, _WIRE)
    beside = any(row.name == "local" for row in rows)
    text = "Spread in points: over modular blocks of other clients, and over the last ten points of the curve."
    if beside:
        text = f"Differences to local with the same seed, in points. {text}"
    add("Differences and spread", text, _BESIDE * beside + _SPREAD)
    if late := newcomers_of(plan):
        text = f"{word} in % behind all modular blocks of the incumbents. Newcomers are the last {late} in every entry."
        add("Newcomers", text, _NEWCOMERS)
    if reached:
        text = f"Raw MB until the mean global {score} on the curve is there for the first time; – is never."
        add(f"Bytes until {a_score}", text, _until(reached, coded))
        text = "Virtual seconds until then, on the clients' devices, and if all links had one rate; "
        add(f"Virtual time until {a_score}", f"{text}– is never or unknown.", _until_when(reached))
    if reached and asked.baseline is not None:
        text = f"The first evaluated round where the mean global {score} is there; – is never. "
        text += f"Speed is that of {asked.baseline} with the same seed divided by it."
        add(f"Rounds until {a_score}", text, _rounds(reached))
    limits = [f"{uplink:.0f}" for uplink in asked.uplinks] + ["anchor"] * (anchor is not None)
    if limits:
        counted = "on the wire, headers included" if coded else "raw"
        text = f"{word} in % at the last point of the curve within an uplink: of all clients together, or of each. "
        text += f"Bytes are {counted}."
        if anchor is not None:
            text += (
                f" {asked.anchor} first has 95 % of its final global {score} at {megabytes(anchor.uplink)} MB of its "
                f"{anchor.clients} clients together."
            )
        sizes = {run.clients for run in runs}
        add(f"{word} within an uplink", text, _within(limits, asked.anchor, len(sizes) > 1))
    return found


def _known(form: str, end: str = "") -> Callable[[float], str]:
    """Numbers in this form, a dash for what is unknown."""
    return lambda value: UNKNOWN if math.isnan(value) else format(value, form).removesuffix(end)


_count, _times, _seconds = _known(",.0f"), _known(".1f"), _known(",.1f")
_round = _known(",.1f", ".0")  # or between two: means over seeds are no whole numbers


def _tera(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{value / 1e12:.3g}"


# Memory and seconds come last: they are all that differs between two equal comparisons.
_MAIN = (
    Column("own", "own_last", bare_percent),
    Column("own, best", "own_best", bare_percent),
    Column("global", "global_last", bare_percent),
    Column("global, best", "global_best", bare_percent),
    Column("composition", "composition_last", bare_percent),
    Column("composition, best", "composition_best", bare_percent),
    Column("uplink, MB", "uplink", megabytes),
    Column("client steps", "steps_clients", _count),
    Column("TFLOP", "flops", _tera),
    Column("chosen", "", str),
    Column("peak memory, MB", "peak_memory", megabytes),
    Column("seconds", "seconds", _seconds),
)
_NEWCOMERS = (
    Column("newcomers' base blocks", "newcomers_last", bare_percent),
    Column("best", "newcomers_best", bare_percent),
    Column("incumbents' base blocks", "incumbents_last", bare_percent),
    Column("difference", "newcomers_minus_incumbents", bare_percent),
    Column("uplink of newcomers, MB", "newcomers_uplink", megabytes),
    Column("downlink of newcomers, MB", "newcomers_downlink", megabytes),
)
_BESIDE = (
    Column("own − local", "own_minus_local", bare_percent),
    Column("composition − local", "composition_minus_local", bare_percent),
)
_SPREAD = (
    Column("swapped blocks, %", "swapped_last", bare_percent),
    Column("over modular blocks", "spread_last", bare_percent),
    Column("over the end", "stability", bare_percent),
    Column("uplink of a client, MB", "uplink_per_client", megabytes),
    Column("downlink, MB", "downlink", megabytes),
    Column("downlink of a client, MB", "downlink_per_client", megabytes),
    Column("server steps", "steps_server", _count),
    Column("virtual seconds", "virtual_seconds", _seconds),
    Column("missing replies", "missing", _count),
)


_WIRE = (
    Column("global", "global_last", bare_percent),
    Column("composition", "composition_last", bare_percent),
    Column("uplink", "uplink", megabytes),
    Column("uplink on the wire", "uplink_wire", megabytes),
    Column("times less", "uplink_ratio", _times),
    Column("downlink", "downlink", megabytes),
    Column("downlink on the wire", "downlink_wire", megabytes),
    Column("chosen", "", str),
)


def _until(accuracies: Sequence[float], coded: bool) -> list[Column]:
    heads = [("uplink", "uplink", ""), ("of a client", "uplink", "_per_client"), ("downlink", "downlink", "")]
    heads += [("on the wire, uplink", "uplink_wire", "")] * coded
    return [
        Column(f"{head} to {100 * accuracy:g} %", f"{key}_to_{accuracy:g}{rule}", megabytes)
        for accuracy in accuracies
        for head, key, rule in heads
    ]


def _until_when(accuracies: Sequence[float]) -> list[Column]:
    return [
        Column(f"to {100 * accuracy:g} %, {name}", f"virtual_{name}_to_{accuracy:g}", _seconds)
        for accuracy in accuracies
        for name in (OWN, *LINKS)
    ]


def _rounds(accuracies: Sequence[float]) -> list[Column]:
    return [
        Column(f"{key} to {100 * accuracy:g} %", f"{key}_to_{accuracy:g}", form)
        for accuracy in accuracies
        for key, form in (("rounds", _round), ("speed", _times))
    ]


def _within(limits: Sequence[str], anchor: str | None, sizes_differ: bool) -> list[Column]:
    """Under both rules of counting. At the anchor's uplink both say the same unless numbers of clients differ."""
    names = {limit: f"that of {anchor}" if limit == "anchor" else f"{megabytes(float(limit))} MB" for limit in limits}
    return [
        Column(f"{kind} at {name}, {words}", f"{kind}_at_{limit}{rule}", bare_percent)
        for limit, name in names.items()
        for rule, words in (("", "all"), ("_per_client", "each"))
        for kind in ("global", "composition")
        if limit != "anchor" or not rule or sizes_differ
    ]


def _name(row: Row) -> str:
    asked = len(row.values) + len(row.finished.failures)
    if not row.values:
        return f"{row.name} (failed)"
    return row.name if not row.finished.failures else f"{row.name} ({len(row.values)} of {asked} seeds)"


def _cell(row: Row, column: Column) -> str:
    if not column.key:
        return chosen(row) or UNKNOWN
    if not row.values:
        return UNKNOWN
    known = row.known(column.key)
    if 0 < known < len(row.values):
        return f"{UNKNOWN} ({known} of {len(row.values)})"
    return with_spread(row.mean[column.key], row.std[column.key], column.form)


def with_spread(mean: float, std: float, form: Callable[[float], str]) -> str:
    """Mean ± standard deviation; the mean alone where all seeds have the same, as of bytes, or there is one seed."""
    alike = math.isnan(std) or (std == 0 and form is not bare_percent)
    return form(mean) if alike else f"{form(mean)} ± {form(std)}"


def chosen(row: Row) -> str:
    """The point of the grid that was chosen, in words; empty where there was no choice."""
    point = row.finished.chosen
    return row.finished.entry.label(point) if point else ""


def to_markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """All tables, and the notes under them as a list."""
    parts = [f"# {_one_line(title)}"]
    for table in tables:
        heads = [_in_markdown(head) for head in table.heads]
        lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
        lines += ["| " + " | ".join(map(_in_markdown, line)) + " |" for line in table.lines]
        parts += [f"## {table.title}", _one_line(table.caption), "\n".join(lines)]
    if notes:
        parts.append("\n".join(f"- {_one_line(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _in_markdown(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def to_latex(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    r"""All tables, each an environment ``table`` of its own, without any package."""
    parts = [f"% {_one_line(title)}"]
    for table in tables:
        head, *body = [" & ".join(map(latex, line)) + r" \\" for line in (table.heads, *table.lines)]
        caption = latex(f"{title}: {table.title}. {table.caption}")
        columns = "l" + "r" * (len(table.heads) - 1)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}"]
        lines += [r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines))
    parts += [f"% {_one_line(note)}" for note in notes]
    return "\n\n".join(parts) + "\n"


_NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
_LATEX = {letter: rf"\{letter}" for letter in "{}_%&#$"} | {"±": r"$\pm$", "−": "$-$", "–": "--"}
_LATEX |= {letter: rf"\text{name}{{}}" for letter, name in _NAMED.items()}


def latex(text: str) -> str:
    """A text in which nothing means anything to LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in _one_line(text))


def to_csv(rows: Sequence[Row]) -> str:
    """Everything: a line for each entry, for each measure the mean and the standard deviation over seeds."""
    text = io.StringIO()
    keys = measures(rows)
    writer = csv.writer(text, lineterminator="\n")
    heads = ("entry", "method", "chosen", "seeds", "failures")
    writer.writerow([*heads, *(f"{key}_{part}" for key in keys for part in ("mean", "std"))])
    for row in rows:
        seeds = " ".join(str(run.seed) for run in row.runs)
        known = (row.name, row.finished.entry.config.method, chosen(row), seeds, "; ".join(_failures(row)))
        writer.writerow([*known, *(_number(part.get(key)) for key in keys for part in (row.mean, row.std))])
    return text.getvalue()


def measures(rows: Sequence[Row]) -> list[str]:
    """The keys of all measures."""
    return list(dict.fromkeys(key for row in rows for values in row.values for key in values))


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def _failures(row: Row) -> Iterator[str]:
    for label, reason in row.finished.failures.items():
        yield f"{label}: {_one_line(reason)}"


def to_json(plan: Plan, rows: Sequence[Row], anchor: Anchor | None, notes: Sequence[str], out: str) -> dict[str, Any]:
    """Everything, with the values of each seed and of each point of the grids."""
    return {
        "title": plan.asked.title,
        "folder": out,
        "seeds": list(plan.asked.seeds),
        "anchor": None if anchor is None else {"entry": plan.asked.anchor, "uplink": anchor.uplink},
        "entries": [_entry(row) for row in rows],
        "notes": list(notes),
    }


def _entry(row: Row) -> dict[str, Any]:
    means, deviations = row.mean, row.std
    return {
        "name": row.name,
        "method": row.finished.entry.config.method,
        "models": list(row.finished.entry.config.models),
        "chosen": None if row.finished.chosen is None else dict(row.finished.chosen),
        "tuning": [{**tried.point, "validation_accuracy": tried.validation} for tried in row.finished.tried],
        "failures": dict(row.finished.failures),
        "mean": means,
        "std": deviations,
        "seeds": {str(run.seed): dict(values) for run, values in zip(row.runs, row.values, strict=True)},
        "composition_matrix": None if row.composition is None else row.composition.tolist(),
    }
