"""How data is to be read where its files leave it open, and how it was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layout = Literal["images", "images-last", "signals", "table", "tokens"]
"""What the axes of ``x`` are: ``[n, channels, height, width]``, ``[n, height, width, channels]``,
``[n, channels, time]``, ``[n, columns]``, numbers of tokens ``[n, time]``. Images may lack their channel axis.
"""


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
    """

    label: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    task: str | None = None
    group: str | None = None
    drop: tuple[str, ...] = ()
    layout: Layout | None = None


@dataclass(frozen=True)
class Reading:
    """How a source was understood, for people: what :func:`interfuse describe` prints and reports show.

    Attributes:
        format: What kind of source it is, such as ``CSV``, ``LEAF JSON``.
        facts: What was taken for what, by subject (``columns``, ``label``, ``classes``, ``left out``), in order.
    """

    format: str
    facts: tuple[tuple[str, str], ...] = ()
