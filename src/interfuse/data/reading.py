"""How data is to be read where its files leave it open, and how it was read."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from interfuse.errors import ConfigError, nearest

Layout = Literal["images", "images-last", "signals", "signals-last", "table", "tokens", "volumes", "volumes-last"]
"""What the axes of ``x`` are: ``[n, channels, height, width]``, ``[n, height, width, channels]``,
``[n, channels, time]``, ``[n, time, channels]``, ``[n, columns]``, numbers of tokens ``[n, time]``,
``[n, channels, depth, height, width]``, ``[n, depth, height, width, channels]`` (pictures of a film are its depth).
Images and volumes may lack their channel axis.
"""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, NumPy and Pillow raise at damaged files."""


@dataclass(frozen=True)
class ReadOptions:
    """What a user says of a source whose files do not say it; every reader takes all, and refuses what it cannot use.

    Attributes:
        label: The columns of targets of a table.
        classes: Names of the classes in the order of their numbers; None: as the source has them.
        task: A name of :data:`.task.TASKS`; None: what targets look like.
        group: The column (or array) that says whose a row is: a person, a device, a site. Its rows stay together.
        drop: Columns that are no features, such as identifiers.
        layout: What the axes of ``x`` are; None: as the source says, refused where two readings are likely.
        tasks: Which tasks a named set is made of, in the order of its groups; empty: those that it usually has. A task
            that is named twice is two groups, with other rows of it.
        rows: Training rows of a task: one number for all, or one each; empty: all that it has.
        test_rows: Test rows of a task; None: as many as the set usually has.
        place: The one of these tasks, from 0, that is read alone, with the rows that it has among them: what a vendor
            has where others have the rest. None: all of them.
        tokenizer: What makes tokens of texts, see :func:`.tokenizing.tokenizer_named`; of several, a sample has an
            input each, by their names.
        length: Tokens of a text.
        side: Points of a picture's side.
        revision: The commit of a hub's repository, where a set is downloaded from one: branches move.
    """

    label: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    task: str | None = None
    group: str | None = None
    drop: tuple[str, ...] = ()
    layout: Layout | None = None
    tasks: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    test_rows: int | None = None
    place: int | None = None
    tokenizer: tuple[str, ...] = ()
    length: int | None = None
    side: int | None = None
    revision: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ReadOptions:
        """Options by name; several names are a list, or one text with commas; numbers may be texts; None is not given.

        Raises:
            ConfigError: there is no such option, or it cannot have this value.
        """
        known = [field.name for field in fields(cls)]
        found: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"no option {name!r} of reading: {nearest(name, known)}")
            if value is None:
                continue
            if name == "rows":
                value = tuple(_count(name, one) for one in _parted(value))
            elif name in ("test_rows", "length", "place", "side"):
                value = _count(name, value, least=0 if name == "place" else 1)
            elif name in ("label", "classes", "drop", "tasks", "tokenizer"):
                parts = _parted(value)
                if isinstance(value, int | float) or not isinstance(parts, Sequence) or not all(map(str, parts)):
                    raise ConfigError(f"option {name} of reading is {value!r}, must be one or several names")
                # a blank is a name where the classes are characters
                value = tuple(str(part).strip() or str(part) for part in parts)
                if name == "classes" and len(set(value)) < len(value):
                    raise ConfigError(f"option classes of reading has a name twice: {listed(value)}")
            elif not isinstance(value, str):
                raise ConfigError(f"option {name} of reading is {value!r}, must be a text")
            found[name] = value
        if found.get("layout") not in (None, *LAYOUTS):
            raise ConfigError(f"layout {found['layout']!r}: {nearest(found['layout'], LAYOUTS)}")
        return cls(**found)

    def values(self) -> dict[str, str | list[str]]:
        """The inverse of :meth:`of`: what was said, as plain values."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: [str(one) for one in v] if isinstance(v, tuple) else str(v)
            for name, v in given.items()
            if v not in (None, ())
        }

    def for_others(self) -> ReadOptions:
        """What goes for another source of the same kind too: not which tasks are taken, and how many rows."""
        return replace(self, tasks=(), rows=(), test_rows=None, place=None)

    def only(self, *usable: str, format: str) -> None:
        """Refuse what a format cannot use.

        Raises:
            ConfigError: another option was given.
        """
        for name in self.values():
            if name not in usable:
                takes = f"; it takes {', '.join(usable)}" if usable else ""
                raise ConfigError(f"{name} means nothing for {format}: leave it out{takes}")


def _parted(value: Any) -> Any:
    """Several values, which a text has commas between; one number is itself."""
    return value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value


def _count(name: str, value: Any, least: int = 1) -> int:
    text = str(value).strip()
    if not (text.isdecimal() and int(text) >= least):
        raise ConfigError(f"option {name} of reading has {value!r}, must be whole numbers from {least}")
    return int(text)


@dataclass(frozen=True)
class Reading:
    """How a source was understood, for people: what :func:`interfuse describe` prints and reports show.

    Attributes:
        format: What kind of source it is, such as ``CSV``, ``LEAF's JSON``.
        facts: What was taken for what, by subject (``columns``, ``label``, ``classes``, ``left out``), in order.
    """

    format: str
    facts: tuple[tuple[str, str], ...] = ()

    def saying(self, subject: str, text: str) -> Reading:
        """The same and one fact more; none where the text is empty."""
        return replace(self, facts=(*self.facts, (subject, text))) if text else self


def listed(names: Sequence[object], most: int = 8) -> str:
    """Some names in words: the first of them, and how many there are more."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
