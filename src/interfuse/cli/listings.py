"""Tables of what there is: methods, data sets, models."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Sequence

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from interfuse import data, models, report
from interfuse.cli.configuration import method_names
from interfuse.cli.kinds import as_given, in_words
from interfuse.handler import handlers
from interfuse.messages import Leaf, disclosed, leaves
from interfuse.method import Method, disclosures_of, retained, settings
from interfuse.methods import find
from interfuse.result import Result


def methods() -> RenderableType:
    """All methods that have a name, with what their clients' messages disclose."""
    found = [(name, find(name)) for name in method_names()]
    return table(
        ("method", "a client discloses", "others get", "what it is"),
        [(name, _disclosed(kind), _told(kind), _first_sentence(kind)) for name, kind in found],
    )


def method(name: str) -> RenderableType:
    """One method: what it is, its settings, and what each of its messages carries.

    Raises:
        ConfigError: there is no such method.
    """
    kind = find(name)
    rows = [(s.name, in_words(s.type), as_given(s.default), s.source, s.comment) for s in settings(kind)]
    paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    return Group(
        *(f"{' '.join(paragraph.split())}\n" for paragraph in paragraphs),
        f"A client discloses, in what it sends: {_disclosed(kind)}\n",
        f"Others get, in what the server sends, of these or made of them: {_told(kind)}\n",
        f"Kept beyond its round, by the server or other clients: {_kept(kind)}\n",
        table(("setting", "values", "default", "from", "meaning"), rows, title="Settings (--set NAME=VALUE)"),
        table(("handler", "", "carries", "discloses"), _messages(kind), title="Messages (down: to a client)"),
    )


def datasets() -> RenderableType:
    """The named data sets, and whether they are here."""
    infos = data.available()
    rows = [
        (i.name, i.state, f"{_count(i.rows_train)} + {_count(i.rows_test)}", _shape(i.shape), str(i.classes))
        for i in infos
    ]
    notes = [f"{i.name}: {i.licence}{f'; {i.note}' if i.note else ''}" for i in infos]
    lacking = [
        f"{i.name} is incomplete, first use downloads {', '.join(i.missing)}" for i in infos if i.state == "incomplete"
    ]
    return Group(table(("data set", "state", "train + test", "shape", "classes"), rows), *lacking, *notes)


def _shape(shape: data.Shape) -> str:
    if isinstance(shape, tuple):
        return "×".join(map(str, shape))
    return ", ".join(f"{name} {_shape(one)}" for name, one in shape.items())


def _count(rows: int | None) -> str:
    return "?" if rows is None else f"{rows:,}"


def facts(found: data.DataFacts) -> RenderableType:
    """How a data set was read."""
    made = table(("", ""), found)
    made.show_header = False
    return made


def zoo() -> RenderableType:
    """The models of the zoo."""
    rows = [*((info.name, info.summary) for info in models.available()), *models.backbones.NAMES.items()]
    default = f"Without --models the clients get, in turn: {', '.join(models.DEFAULT_MODELS)}."
    several = [f"{name} stands for {', '.join(members)}." for name, members in models.FEDERATIONS.items()]
    variants = (
        "Behind the name of a ResNet may follow -group or -static (its normalisation), -exits1 to -exits4 (an exit "
        "behind each of the first groups) and @0.5 (the rate at which channels are kept)."
    )
    quarter = (
        "Behind the name of a model that begins with tv- or htfl- may follow -narrow (a quarter of all widths) and "
        "-h256 (a hidden layer of 256 in the modular block)."
    )
    transformers = (
        "hf:FOLDER is a model that transformers has saved, hf:NAME?revision=COMMIT one of a hub (docs/model.md)."
    )
    return Group(table(("model", "what it is"), rows), default, *several, variants, quarter, transformers)


def table(heads: Sequence[str], rows: Iterable[Sequence[str | Text]], title: str | None = None) -> Table:
    """A plain table whose first column is never broken."""
    made = Table(*heads, box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    made.columns[0].no_wrap = True
    for row in rows:
        made.add_row(*row)
    return made


def _first_sentence(kind: type[Method]) -> str:
    paragraph = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return " ".join(re.split(r"(?<=\.) (?=[A-Z])", " ".join(paragraph.split()))[:1])


def _disclosed(kind: type[Method]) -> str:
    return ", ".join(sorted(disclosures_of(kind))) or "nothing"


def _told(kind: type[Method]) -> str:
    """What the server's messages carry, as their fields say."""
    sent = (h.message_type for h in handlers(kind).values() if h.message_type is not None)
    return ", ".join(sorted({str(one) for message in sent for one in disclosed(message)})) or "nothing"


def _kept(kind: type[Method]) -> str:
    """What speaks of single samples and outlives its round, with the settings as they are."""
    return ", ".join(sorted(map(str, retained(kind.configure({}))))) or "nothing"


def _messages(kind: type[Method]) -> Iterable[Sequence[str]]:
    for name, handler in handlers(kind).items():
        for direction, message in (("down", handler.message_type), ("up", handler.reply_type)):
            for leaf in () if message is None else leaves(message):
                yield name, direction, _carried(leaf), str(leaf.disclosure)


def _carried(leaf: Leaf) -> str:
    if leaf.scalar is not None:
        return f"{leaf.path}: {leaf.scalar.__name__}"
    if leaf.named:
        return f"{leaf.path}: tensors of the client's model"
    return f"{leaf.path} [{', '.join(leaf.dims or ('...',))}]"


def show_result(result: Result, *, as_json: bool) -> None:
    """Print what a run gave, as text or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(result.summary.values()))
    else:
        Console(markup=False, emoji=False, highlight=False).print(report.console_summary(result.summary))
