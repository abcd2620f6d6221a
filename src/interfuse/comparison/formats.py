"""Tables in Markdown and LaTeX; in CSV and JSON everything."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

from interfuse.comparison.measures import Anchor, Row
from interfuse.comparison.notes import Footnote, clients_behind
from interfuse.comparison.plan import Plan
from interfuse.comparison.recipe import file_name
from interfuse.comparison.resolution import paired
from interfuse.comparison.table import Cell, Table, chosen, compared_by, references

ONE_COLUMN = 3
"""With more columns beside the names of entries, a table takes both columns of a page."""


def to_markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """All tables, what stands under each, and the notes on all as a list."""
    parts = [f"# {_one_line(title)}"]
    for table in (part for whole in tables for part in whole.pages()):
        heads = [_in_markdown(head) for head in table.heads]
        lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
        lines += ["| " + " | ".join(map(_markdown_cell, line)) + " |" for line in table.lines]
        parts += [f"## {table.title}", _one_line(table.caption), "\n".join(lines)]
        parts += [_one_line(note) for note in table.notes if note]
    if notes:
        parts += ["## What to know", "\n".join(f"- {_one_line(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = _in_markdown(cell.text)
    text = f"**{text}**" if cell.bold else text
    return text + f" [{cell.marks}]" * bool(cell.marks)


def _in_markdown(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


RULES = "\n".join(
    rf"\providecommand{{\{name}}}{{\hline}}" + (" % lines of booktabs, where the paper loads it" if not place else "")
    for place, name in enumerate(("toprule", "midrule", "bottomrule"))
)


def to_latex(plan: Plan, tables: Sequence[Table], notes: Sequence[str]) -> str:
    r"""All tables, each a float of its own with a label; no package is needed, and ``booktabs`` is used where it is.

    The label of the first table is ``tab:NAME``, that of another one has its title behind it.
    """
    title, first = plan.asked.title, f"tab:{file_name(plan.name)}"
    parts = [f"% {_one_line(title)}", RULES]
    for table in tables:
        label = first if table is tables[0] else f"{first}-{file_name(table.title)}"
        for number, part in enumerate(table.pages(), 1):
            caption = part.caption
            if table is not tables[0] or not plan.asked.caption:
                caption = f"{title}: {part.title}. {caption}"
            under = [latex(note) for note in part.notes if note]
            if table is not tables[0] and any(cell.marks for line in part.lines for cell in line):
                under.append(rf"For the marks see Table~\ref{{{first}}}.")
            parts.append(_float(part, caption, label if number == 1 else f"{label}-{number}", under))
    parts += [f"% {_one_line(note)}" for note in notes]
    return "\n\n".join(parts) + "\n"


def _float(table: Table, caption: str, label: str, under: Sequence[str]) -> str:
    head = " & ".join(map(latex, table.heads)) + r" \\"
    body = [" & ".join(map(_latex_cell, line)) + r" \\" for line in table.lines]
    kind = "table" if len(table.heads) - 1 <= ONE_COLUMN else "table*"
    columns = "l" + "r" * (len(table.heads) - 1)
    lines = [rf"\begin{{{kind}}}", r"\centering", rf"\caption{{{latex(caption)}}}", rf"\label{{{label}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    lines += [r"\end{tabular}"]
    if under:
        lines += [r"\par\smallskip{\footnotesize\raggedright", *(rf"{note}\par" for note in under), "}"]
    return "\n".join([*lines, rf"\end{{{kind}}}"])


def _latex_cell(cell: Cell) -> str:
    text = latex(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    return text + rf"$^{{{cell.marks}}}$" * bool(cell.marks)


_NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
_LATEX = {letter: rf"\{letter}" for letter in "{}_%&#$"}
_LATEX |= {"±": r"$\pm$", "−": "$-$", "–": "--", "≈": r"$\approx$"}
_LATEX |= {letter: rf"\text{name}{{}}" for letter, name in _NAMED.items()}


def latex(text: str) -> str:
    """A text in which nothing means anything to LaTeX; what stands between backticks is code."""
    pieces = ["".join(_LATEX.get(letter, letter) for letter in piece) for piece in _one_line(text).split("`")]
    return "".join(rf"\texttt{{{piece}}}" if number % 2 else piece for number, piece in enumerate(pieces))


def to_csv(plan: Plan, rows: Sequence[Row], footnotes: Sequence[Footnote]) -> str:
    """Everything: a line for each entry, for each measure the mean and the standard deviation over seeds.

    For each reference the paired differences to it, and half their interval.
    """
    text = io.StringIO()
    keys = measures(rows)
    from_whom = references(plan, rows)
    pairs = [(reference, key) for reference in from_whom for key in compared_by(plan).values()]
    writer = csv.writer(text, lineterminator="\n")
    heads = ["entry", "method", "chosen", "seeds", "failures", "notes"]
    heads += [f"{key}_minus_{of.name}_{part}" for of, key in pairs for part in ("mean", "half")]
    writer.writerow([*heads, *(f"{key}_{part}" for key in keys for part in ("mean", "std"))])
    for row in rows:
        seeds = " ".join(str(run.seed) for run in row.runs)
        known = [row.name, row.finished.entry.config.method, chosen(row), seeds, "; ".join(_failures(row))]
        known.append(_plain("; ".join(said_of(row, footnotes))))
        for of, key in pairs:
            found = paired(row, of, key) if row.values else None
            known += ["", ""] if found is None else [_number(found.mean), _number(found.half)]
        writer.writerow([*known, *(_number(part.get(key)) for key in keys for part in (row.mean, row.std))])
    return text.getvalue()


def said_of(row: Row, footnotes: Sequence[Footnote]) -> list[str]:
    """The texts of an entry's footnotes."""
    return [note.text for note in footnotes if row.name in note.entries]


def _plain(text: str) -> str:
    """Numbers for programs have the sign that these read."""
    return text.replace("−", "-")


def measures(rows: Sequence[Row]) -> list[str]:
    """The keys of all measures."""
    return list(dict.fromkeys(key for row in rows for values in row.values for key in values))


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(value)


def _failures(row: Row) -> Iterator[str]:
    for label, reason in row.finished.failures.items():
        yield f"{label}: {_one_line(reason)}"


def to_json(
    plan: Plan,
    rows: Sequence[Row],
    anchor: Anchor | None,
    footnotes: Sequence[Footnote],
    notes: Sequence[str],
    out: str,
) -> dict[str, Any]:
    """Everything, with the values of each seed and of each point of the grids."""
    from_whom = references(plan, rows)
    return {
        "title": plan.asked.title,
        "folder": out,
        "seeds": list(plan.asked.seeds),
        "anchor": None if anchor is None else {"entry": plan.asked.anchor, "uplink": anchor.uplink},
        "entries": [_entry(row, from_whom, footnotes, list(compared_by(plan).values())) for row in rows],
        "notes": list(map(_plain, notes)),
    }


def _entry(row: Row, from_whom: Sequence[Row], footnotes: Sequence[Footnote], keys: Sequence[str]) -> dict[str, Any]:
    means, deviations = row.mean, row.std
    return {
        "name": row.name,
        "method": row.finished.entry.config.method,
        "models": list(row.finished.entry.config.models),
        "chosen": None if row.finished.chosen is None else dict(row.finished.chosen),
        "tuning": [{**tried.point, "validation_accuracy": tried.validation} for tried in row.finished.tried],
        "failures": dict(row.finished.failures),
        "refused": row.finished.refused,
        "notes": list(map(_plain, said_of(row, footnotes))),
        "clients_behind": {
            side: {str(run.seed): clients_behind(run, side) for run in row.runs} for side in ("own", "global")
        },
        "rows_behind": {str(run.seed): dict(run.summary.rows) for run in row.runs},
        "differences": {of.name: _differences(row, of, keys) for of in from_whom if row.values and row is not of},
        "mean": means,
        "std": deviations,
        "seeds": {str(run.seed): dict(values) for run, values in zip(row.runs, row.values, strict=True)},
        "composition_matrix": None if row.composition is None else row.composition.tolist(),
    }


def _differences(row: Row, reference: Row, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Paired differences in the unit of the measure; ``half``, the smallest that the seeds tell, is null for one."""
    found = {key: paired(row, reference, key) for key in keys}
    return {
        key: {"mean": one.mean, "half": one.half, "seeds": one.seeds, "told": one.told} for key, one in found.items()
    }
