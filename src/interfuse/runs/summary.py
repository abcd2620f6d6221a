"""What a run says of itself: ``summary.json``, and the lines of ``metrics.jsonl``.

These classes write the files and read them. A file with a key that they do not know, or without one that they need, is
refused by name: it is damaged, or another version of interfuse wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from interfuse.errors import Notice, RunError
from interfuse.evaluation import Evidence, Mode, Side
from interfuse.wire import Volume

NO_COLLABORATION = ("local", "pooled")
"""Methods that are references: they exchange nothing, so nothing is expected of their compositions."""

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number; null in a file, which stands for what JSON has no number for, is unknown."""
Numbers = tuple[Number, ...]
Rows = tuple[Numbers, ...]
Counts = tuple[tuple[int, ...], ...]
Matrix = Float[np.ndarray, "bases modulars"]


def mean(values: Iterable[float]) -> float:
    """Mean over the known values; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def std(values: Iterable[float]) -> float:
    """Standard deviation over the known values; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.std(known)) if known else math.nan


def mean_swapped(matrix: Matrix) -> float:
    """Mean over the pairs whose blocks belong to two clients; NaN where there is one client."""
    return mean(matrix[~np.eye(len(matrix), dtype=bool)])


class Record(BaseModel):
    """A part of such a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def values(self) -> dict[str, Any]:
        """What the file says, as plain values; what was never given is left out."""
        values: dict[str, Any] = without_nan(self.model_dump(exclude_unset=True))
        return values

    def __getitem__(self, key: str) -> Any:
        """What the file says under a key, as plain values: ``summary["gradient_steps"]["clients"]``; unknown is None.

        Raises:
            KeyError: the file says nothing under it.
        """
        return self.values()[key]


R = TypeVar("R", bound=Record)


def read(kind: type[R], text: str | bytes, source: str) -> R:
    """A record of its JSON.

    Raises:
        RunError: it is none; names file and key.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole of it"
        raise RunError(
            f"{source} cannot be read: {place}: {first['msg']}. It is damaged, or another version of interfuse than "
            f"this one, {version('interfuse')}, wrote it"
        ) from None


def without_nan(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not know, and lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


class Failure(Record):
    """A reply that a round went on without."""

    client: int
    kind: str
    reason: str


class Steps(Record):
    """Gradient steps."""

    clients: int
    server: int

    @property
    def total(self) -> int:
        """Of both sides."""
        return self.clients + self.server


class LeftOut(Record):
    """Rows that could not be trained on: each was a batch by itself, which PyTorch refused to normalise.

    Attributes:
        clients: By client, those that had some.
    """

    clients: dict[int, int] = {}
    server: int = 0

    @property
    def total(self) -> int:
        """Of both sides."""
        return sum(self.clients.values()) + self.server


class Point(Record):
    """A point of the curve: scores of the evaluated clients, and of all pairs of blocks; NaN is unknown.

    Attributes:
        own_by_samples: The score over the own test rows of all evaluated clients together: a mean weighted by rows.
        evaluated: Whose scores they are, in this order; empty: of all clients.
        others: Their scores on the test rows of the other evaluated clients; empty where they are not asked for.
        by_task: Their scores on the own test rows of each of their tasks in time, as ``others``.
    """

    own: Numbers
    validation: Numbers
    common: Numbers
    composition: Rows | None
    own_by_samples: Number = math.nan
    evaluated: tuple[int, ...] = ()
    rows: dict[Evidence, int] = {}
    others: Numbers = ()
    by_task: Rows = ()


class Shown(Record):
    """What a method shows of its state after a round, by name; NaN is unknown.

    Attributes:
        clients: A number for each client.
        pairs: A row and a column for each client; of more than 64 clients there is none.
    """

    numbers: dict[str, Number] = {}
    clients: dict[str, Numbers] = {}
    pairs: dict[str, Rows] = {}

    @property
    def means(self) -> dict[str, float]:
        """What has one number, and the mean over clients of what has one for each."""
        return self.numbers | {name: mean(values) for name, values in self.clients.items()}


class Row(Record):
    """A line of ``metrics.jsonl``; bytes and virtual seconds are totals since the start.

    Attributes:
        first_steps: Clients that made their first gradient step in this round.
    """

    round: int
    uplink: Volume
    downlink: Volume
    steps: Steps
    first_steps: tuple[int, ...] = ()
    left_out: LeftOut = LeftOut()
    failures: tuple[Failure, ...]
    outstanding: int
    virtual_seconds: dict[str, Number]
    accuracy: Point | None = None
    similarity: Rows | None = None
    shown: Shown = Shown()
    seconds: dict[str, Number]


class Spread(Record):
    """A measure over the evaluated clients; NaN is unknown."""

    mean: Number
    std: Number
    per_client: Numbers

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of the clients that have a value."""
        each = tuple(values)
        return cls(mean=mean(each), std=std(each), per_client=each)

    @property
    def known(self) -> int:
        """How many clients have a value."""
        return sum(not math.isnan(value) for value in self.per_client)


UNKNOWN = Spread.of(())


class Scores(Record):
    """What was measured of one state; ``metrics`` and ``confusion`` are empty where no metrics are asked for.

    Attributes:
        global_accuracy: The task's score on the common test set.
        own_accuracy: The task's score on the clients' own test shares.
        own_by_samples: The score over the own test rows of all evaluated clients together: a mean weighted by rows.
        others_accuracy: The score of each client on the test rows of the other evaluated clients, a mean over these.
        others_matrix: The scores behind it, own ones on the diagonal: a row for each evaluated client, a column for
            each owner of test rows.
        by_task: The scores of each evaluated client on the own test rows of each of its tasks in time.
        composition_matrix: A row for each base, a column for each modular block.
        evaluated: The clients that have figures, in the order of these; empty: all.
        metrics: By name and side; recall has a row for each client and a number for each class.
        confusion: Samples of all evaluated clients by class and answer; the last column is of those without an answer.
        rows: How many test rows are behind a figure, each counted once; what is not there is unknown.
    """

    global_accuracy: Spread
    own_accuracy: Spread
    composition_matrix: Rows | None
    own_by_samples: Number = math.nan
    evaluated: tuple[int, ...] = ()
    metrics: dict[str, dict[Side, Spread | Rows]] = {}
    confusion: dict[Side, Counts] = {}
    rows: dict[Evidence, int] = {}
    others_accuracy: Spread = UNKNOWN
    others_matrix: Rows = ()
    by_task: Rows = ()

    @property
    def composition(self) -> Matrix | None:
        """The matrix of compositions as an array."""
        return np.array(self.composition_matrix, dtype=float) if self.composition_matrix else None

    @property
    def mean_composition(self) -> float:
        """Mean over all pairs of a base and a modular block, those of one client included."""
        return math.nan if self.composition is None else mean(self.composition.flat)

    @property
    def mean_swapped(self) -> float:
        """Mean over the pairs whose blocks belong to two clients."""
        return math.nan if self.composition is None else mean_swapped(self.composition)

    def metric(self, name: str, on: Side) -> Spread:
        """A metric with one number a client; unknown where it was not measured."""
        found = self.metrics[name][on] if name in self.metrics else UNKNOWN
        assert isinstance(found, Spread), f"{name} has no single number a client"
        return found

    def recalls(self, on: Side) -> list[float]:
        """Recall of each class, a mean over the clients with samples of it; empty where it was not measured."""
        found = self.metrics["recall"][on] if "recall" in self.metrics else ()
        return [] if isinstance(found, Spread) else [mean(of_class) for of_class in zip(*found, strict=True)]


NOTHING = Scores(global_accuracy=UNKNOWN, own_accuracy=UNKNOWN, composition_matrix=None)
"""The scores of what did not run."""


class BestRound(Scores):
    """The round with the best mean validation score, and the scores of its state."""

    round: int
    validation_accuracy: Number


class BestOnTest(Record):
    """The point of the curve with the best own score by samples: chosen on the very test rows that it is of, so it is
    too good, and no headline. HtFLlib and PFLlib report such rounds.

    Attributes:
        own_by_samples: That score; ``own``: the mean over clients at the same point.
    """

    round: int
    own_by_samples: Number
    own: Number


class Downlink(Record):
    """Bytes to clients; ``_broadcast``: where a message that all get counts once."""

    raw: int
    wire: int
    raw_broadcast: int
    wire_broadcast: int


class Moved(Record):
    """Bytes both ways."""

    uplink: Volume
    downlink: Volume


class MovedOfKind(Moved):
    """The same of one kind of message."""

    downlink_broadcast: Volume


class Blocks(Record):
    """Parameters of a model's two blocks."""

    base: int
    modular: int

    @property
    def total(self) -> int:
        """Of the whole model."""
        return self.base + self.modular


class ClientFacts(Record):
    """What is known of a client; None is unknown.

    Attributes:
        groups: The people or tasks that its rows are of, where these have names.
    """

    id: int
    architecture: str
    parameters: Blocks | None
    data: str
    samples: int | None
    groups: tuple[str, ...] = ()


class Stopped(Record):
    """A run that early stopping ended.

    Attributes:
        round: Its last round, the one after ``point``.
        point: The round whose point of the curve decided it.
        since: The round since whose point the validation score had not risen; 0: it was never known.
        patience: So many points were waited for.
    """

    round: int
    point: int
    since: int
    patience: int

    def __str__(self) -> str:
        """In words."""
        return (
            f"early stopping: the mean validation score did not rise in {self.patience} "
            f"point{'s' * (self.patience != 1)} of the curve after round {self.since}; "
            f"round {self.round} was the last"
        )


class What(Record):
    """What ran.

    Attributes:
        score: What the task's score is called, such as accuracy; headings take the word from here.
        note: What a reader of results must know of the data.
        discloses: What clients' messages disclose; None is unknown.
        notice: What the method said of these clients before it began.
        data_notices: What the data sets hardly fit, such as names of classes that differ.
        reading_notices: What was doubtful in the data as they were read.
        model_notices: State of models that does not last, and clients whose rows they cannot train on.
        evaluation: What was measured at all.
        parties: Whether the clients were parties, each at a node of its own.
        simulated: Whether these parties were clients of a simulation, with shares of one data set.
        rounds: How many were carried out.
        protocol: Whose protocol was followed, what it set, and what was set otherwise; empty where there is none.
        stopped: Where early stopping ended the run before its rounds were over; None where it did not.
    """

    interfuse: str
    method: str
    data: str
    seed: int
    rounds: int
    score: str
    seconds: Number
    run: str
    note: str
    codecs: dict[str, str]
    discloses: tuple[str, ...] | None
    notice: Notice | None
    data_notices: tuple[Notice, ...]
    reading_notices: tuple[Notice, ...]
    model_notices: tuple[Notice, ...] = ()
    evaluation: Mode
    parties: bool
    simulated: bool = False
    protocol: str = ""
    stopped: Stopped | None = None


class Diagnosis(Record):
    """Something about a run that needs a look."""

    name: str
    text: str
    remedy: str


class Headline(Record):
    """What collaboration bought, in a sentence, and on which evidence.

    Attributes:
        text: The sentence, with the conditions under which it holds.
        on: What it is read off; None: nothing was measured.
        gain: Points over Local, as printed; NaN where there is no Local to compare to.
        doubts: Why the gain is not to be taken at its word, a few words each; they are part of the text.
        clients: How many clients have a figure.
        rows: How many test rows are behind it; None is unknown.
    """

    text: str
    on: Evidence | None
    gain: Number
    doubts: tuple[str, ...]
    clients: int
    rows: int | None


UNSAID = Headline(text="", on=None, gain=math.nan, doubts=(), clients=0, rows=None)
"""That of a run that is not concluded."""


class Summary(Scores, What):
    """What ``summary.json`` says; docs/run-folder.md describes it.

    Attributes:
        untrained: Clients that made no gradient step in the whole run.
        shown: What the method shows after the last round.
        forgetting: How much of its best score on an earlier task a client has lost at the end, see
            :func:`.summing.forgetting`; unknown where it is not asked for.
    """

    best: BestRound | None
    best_on_test: BestOnTest | None = None
    similarity: dict[Literal["before", "after"], Rows | None]
    stability: Number
    gradient_steps: Steps
    untrained: tuple[int, ...] = ()
    forgetting: Spread = UNKNOWN
    left_out: LeftOut = LeftOut()
    shown: Shown = Shown()
    virtual_seconds: dict[str, Number]
    missing_replies: dict[str, int]
    uplink_bytes: Volume
    downlink_bytes: Downlink
    start_bytes: Moved
    evaluation_bytes: Moved
    bytes_by_kind: dict[str, MovedOfKind]
    seconds_by_phase: dict[str, Number]
    clients: tuple[ClientFacts, ...]
    class_names: tuple[str, ...]
    class_counts: Counts | None
    headline: Headline
    warnings: tuple[Diagnosis, ...]
    beside: dict[str, Summary] = {}

    @property
    def evaluated_clients(self) -> tuple[int, ...]:
        """The clients that have figures, in the order of these."""
        return self.evaluated or tuple(client.id for client in self.clients)

    @property
    def local(self) -> Summary | None:
        """The run of Local beside it."""
        return self.beside.get("local")

    @property
    def is_reference(self) -> bool:
        """Whether this is Local or Pooled itself."""
        return self.method in NO_COLLABORATION

    @property
    def is_coded(self) -> bool:
        """Whether codecs made messages smaller, so that bytes on the wire are other ones than raw bytes."""
        return any(text != "none" for text in self.codecs.values())

    @property
    def composes(self) -> bool:
        """Whether blocks of different clients are meant to work together: features are shared, and no parameters."""
        return self.discloses is None or ("features" in self.discloses and "parameters" not in self.discloses)
