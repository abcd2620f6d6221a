"""The task's score of every client, and of every base block with every modular block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.data import Batch, ClientData, Inputs, Task, spread, stratified_subset
from interfuse.data.inputs import named, together
from interfuse.data.task import answers
from interfuse.equals import BLOCKS, same_bits
from interfuse.errors import ClientError, DataError
from interfuse.evaluation.drawn import drawing
from interfuse.evaluation.metrics import Measurements, OwnMetric, Statistics, log_prior, statistics
from interfuse.federation import Federation
from interfuse.handler import Program, on_client
from interfuse.messages import Data, Disclosure, Features, Message
from interfuse.method import Method, whole
from interfuse.randomness import numpy_generator
from interfuse.setup import Setup

T = TypeVar("T")

Mode = Literal["shared", "own", "none"]
"""What is measured: everything, on a test set that all clients have; clients' own counts alone; nothing."""
Evidence = Literal["compositions", "own", "global", "others"]
"""What a figure is of: pairs of blocks on the common test set, clients on their own test shares, clients on the common
test set, clients on the test shares of others."""

CURVE_ROWS = 1000
"""Images of the common test set behind each point of a curve."""
CURVE_OWN_ROWS = 250
"""At most so many rows of a client's own validation and test share behind each point of a curve."""
MOST_CLIENTS = 100
"""In larger federations so many clients, evenly spread over their numbers, stand for all."""
MOST_COMPOSED = 64
"""Federations up to this size have a composition matrix."""
FULL_CALLS = 1000
"""Where calls of an evaluation on everything begin to count: the curve has been at the same round before."""
METRIC_CALLS = 2000
"""Where those of the metrics begin, for the same reason."""
LARGEST_COMPOSITION = 1 << 29
"""Bytes of fusion outputs above which the composition matrix uses the rows of the curve at the end too."""


class Scope(Message):
    """How much to evaluate on: everything or the fixed rows of the curve; with the common test set or without; whether
    compositions are measured on the same rows of it; all of the clients' own rows in any case."""

    full: bool
    common: bool
    composed: bool = False
    all_own: bool = False


Sums = Annotated[Float64[Tensor, "sums"], Disclosure.STATISTICS]


class Counted(Message):
    """The task's sums over the client's test share, its validation share, and the common test set.

    The last are zeros where compositions tell them: the client answers with its own.
    """

    own: Sums
    validation: Sums
    common: Sums


class Owners(Message):
    """Whose own test rows are asked for: all of them, or some of each, evenly spread."""

    clients: tuple[int, ...]
    full: bool

    @property
    def limit(self) -> int | None:
        """At most so many rows of each: about as many of all of them as the common test set has behind a curve."""
        return None if self.full else min(CURVE_OWN_ROWS, max(1, CURVE_ROWS // len(self.clients)))


class CountedOfOthers(Message):
    """The task's sums on the own test rows of each of some clients; zeros where their samples have another shape."""

    by_owner: Annotated[Float64[Tensor, "owners sums"], Disclosure.STATISTICS]


class CountedByTask(Message):
    """The task's sums on the client's own test rows of each of its tasks in time, in their order."""

    by_task: Annotated[Float64[Tensor, "tasks sums"], Disclosure.STATISTICS]


class FusedTest(Message):
    """Fusion-layer outputs of a base block on rows of the common (public) test set."""

    z: Features


class FusedTests(Message):
    """The outputs of all base blocks that differ, by the first client that has them."""

    outputs: dict[int, FusedTest]
    full: bool


class Composition(Message):
    """The task's sums of one modular block behind the base blocks that differ, in the order of clients."""

    by_base: Annotated[Float64[Tensor, "bases sums"], Disclosure.STATISTICS]


@dataclass(frozen=True, eq=False)
class CommonTest:
    """What everybody knows of a common test set: its targets, and the rows behind each point of a curve."""

    y: Shaped[Tensor, "n *target"]
    curve_rows: Int64[Tensor, "rows"]

    def same(self, other: CommonTest) -> bool:
        """Whether equal outputs on both are worth the same."""
        return self is other or (torch.equal(self.y, other.y) and torch.equal(self.curve_rows, other.curve_rows))

    def labels(self, *, full: bool) -> Shaped[Tensor, "asked *target"]:
        """Of all rows, or of those of the curve."""
        return self.y if full else self.y[self.curve_rows]


class PredictionRequest(Message):
    """Inputs of one block of a client by name: normalised samples, or features."""

    x: dict[str, Data]


class Prediction(Message):
    """What a block answers."""

    y: Annotated[Float32[Tensor, "batch ..."], Disclosure.LOGITS]


@dataclass(frozen=True, eq=False)
class Evaluation(Program):
    """The handlers behind every accuracy.

    Attributes:
        tests: The common test set of each client, that of its data set; none where there is none in common.
        own_metrics: Those of the user by name; between parties there are none.
        across: Which of :data:`.metrics.ACROSS_TASKS` are measured; between parties none.
        data_of: A client's data; between parties nobody has another one's.
    """

    method: Method
    tests: Mapping[ClientId, CommonTest]
    mode: Mode
    own_metrics: Mapping[str, OwnMetric]
    across: frozenset[str] = frozenset()
    data_of: Callable[[ClientId], ClientData] | None = None

    @property
    def _of_the_model(self) -> bool:
        """Whether answers depend on nothing of a client but its model."""
        return type(self.method).predict is Method.predict

    @property
    def composes(self) -> bool:
        """Whether a client answers with the composition of its own two blocks."""
        return self._of_the_model and self.method.predictor() is whole

    @property
    def by_task(self) -> bool:
        """Whether own scores are wanted for each task in time."""
        return "forgetting" in self.across

    @on_client
    def count(self, client: Client, scope: Scope) -> Counted:
        """The sums of what the method predicts."""
        limit = None if scope.full or scope.all_own else CURVE_OWN_ROWS
        wanted = scope.common and not (scope.composed and self.composes)
        if scope.composed:  # the model is in place now, and may not be again
            client.equals.note(client.id, client.profile.architecture, client.model)
        return Counted(
            self._sums(client, client.data.test(limit)),
            self._sums(client, client.data.validation(limit)),
            self._of_common("count", client, self._sums, full=scope.full) if wanted else self._sums(client, ()),
        )

    def _of_common(self, name: str, client: Client, work: Callable[[Client, Iterable[Batch]], T], *, full: bool) -> T:
        """What ``work`` makes of a client's answers on the common test set."""

        def asked() -> T:
            return work(client, self._common(client, full=full))

        if not self._of_the_model:
            return asked()
        return self._once(name, client, BLOCKS, (full, self.method.predictor()), asked)

    def _once(self, name: str, client: Client, blocks: Sequence[str], on: Sequence[object], work: Callable[[], T]) -> T:
        """Work on blocks of a client, and on test rows, that has the same result for every client with such blocks."""
        seen = (client.data.dataset, self.tests[client.id], *on)
        kind = client.profile.architecture
        return client.equals.once(name, client.id, kind, lambda: client.model, blocks, seen, work)

    def _common(self, client: Client, *, full: bool) -> Iterable[Batch]:
        return client.data.common_test(None if full else self.tests[client.id].curve_rows)

    def _sums(self, client: Client, batches: Iterable[Batch]) -> Tensor:
        with client.model.evaluating():
            found = [client.task.sums(self.method.predict(client, batch.x), batch.y) for batch in batches]
        return torch.stack(found).sum(0) if found else torch.zeros(client.task.size, dtype=torch.float64)

    @on_client
    def count_of_others(self, client: Client, owners: Owners) -> CountedOfOthers:
        """The sums on the own test rows of some clients, normalised as theirs are."""

        def found() -> CountedOfOthers:
            return CountedOfOthers(
                torch.stack([self._sums(client, self._test_of(owner, client, owners)) for owner in owners.clients])
            )

        if not self._of_the_model:
            return found()
        return self._once("others", client, BLOCKS, (owners, self.method.predictor()), found)

    def _test_of(self, owner: ClientId, client: Client, owners: Owners) -> Iterable[Batch]:
        assert self.data_of is not None, "rows of others are there in a simulation alone"
        data = self.data_of(owner)
        if data.dataset.shape != client.profile.sample:
            return ()
        return data.test_at(spread(data.tests, owners.limit))

    @on_client
    def count_by_task(self, client: Client, scope: Scope) -> CountedByTask:
        """The sums on the client's own test rows by task, at most as many of a task as else of a client."""
        limit = None if scope.full or scope.all_own else CURVE_OWN_ROWS
        places = client.data.tests_by_task()
        by_task = [self._sums(client, client.data.test_at(own[spread(len(own), limit)])) for own in places]
        return CountedByTask(torch.stack(by_task))

    @on_client
    def measurements(self, client: Client) -> Measurements:
        """Statistics of the method's scores on everything; the scores themselves stay here."""
        counts = torch.bincount(client.data.labels().cpu(), minlength=client.dims["classes"])
        scores, y = self._scores(client, client.data.test())
        return Measurements(
            statistics(scores, y, self.own_metrics),
            self._of_common("measurements", client, self._statistics, full=True),
            int((answers(scores + log_prior(counts)) == y).sum()),
            counts > 0,
        )

    def _statistics(self, client: Client, batches: Iterable[Batch]) -> Statistics:
        return statistics(*self._scores(client, batches), self.own_metrics)

    def _scores(self, client: Client, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """What the method makes of samples ``[n, classes]``, and their labels ``[n]``, on the CPU."""
        scores, labels = [torch.zeros(0, client.dims["classes"])], [torch.zeros(0, dtype=torch.int64)]
        with client.model.evaluating():
            for batch in batches:
                scores.append(self.method.predict(client, batch.x).cpu())
                labels.append(batch.y.cpu())
        return torch.cat(scores), torch.cat(labels)

    @on_client
    def fused(self, client: Client, scope: Scope) -> FusedTest:
        """The base block's outputs on the common test set."""

        def outputs() -> FusedTest:
            batches = self._common(client, full=scope.full)
            with client.model.evaluating():
                return FusedTest(torch.cat([client.model.base(batch.x) for batch in batches]))

        return self._once("fused", client, ["base"], [scope.full], outputs)

    @on_client
    def composed(self, client: Client, tests: FusedTests) -> Composition:
        """The sums of the modular block behind every base block."""

        def sums() -> Composition:
            with client.model.evaluating():
                found = [
                    client.task.sums(client.model.modular(test.z), self.tests[base].labels(full=tests.full))
                    for base, test in sorted(tests.outputs.items())
                ]
            return Composition(torch.stack(found))

        return self._once("composed", client, ["modular"], [tests], sums)

    @on_client
    def base(self, client: Client, request: PredictionRequest) -> Prediction:
        """The base block on given inputs."""
        with client.model.evaluating():
            return Prediction(client.model.base(together(request.x)))

    @on_client
    def modular(self, client: Client, request: PredictionRequest) -> Prediction:
        """The modular block on given fusion-layer outputs."""
        with client.model.evaluating():
            return Prediction(client.model.modular(together(request.x)))


def evaluation(
    setup: Setup,
    mode: Mode = "shared",
    own_metrics: Mapping[str, OwnMetric] = MappingProxyType({}),
    across: Iterable[str] = (),
) -> Callable[[Method], dict[str, Program]]:
    """The evaluation on the data sets of the clients, and what draws pictures of them, for the method with the
    hyperparameters that a client has: in a simulation."""
    found = {id(data): common_test(data.task, data.y_test, data.name) for data in setup.domains}
    tests = {client: found[id(data)] for client, data in enumerate(setup.datasets)}
    asked = frozenset(across)
    return lambda method: (
        {"evaluation": Evaluation(method, tests, mode, own_metrics, asked, setup.data_of)} | drawing(method)
    )


def evaluation_on(tests: Mapping[ClientId, CommonTest], mode: Mode) -> Callable[[Method], dict[str, Program]]:
    """The evaluation on given common test sets, where nobody has anybody else's rows."""
    return lambda method: {"evaluation": Evaluation(method, tests, mode, MappingProxyType({}))}


def common_test(task: Task, labels: Shaped[Tensor, "n *target"], name: str) -> CommonTest:
    """A test set with a fixed, stratified choice of rows for the curve; the choice depends on labels and name."""
    rows = stratified_subset(task.strata(labels), CURVE_ROWS, numpy_generator(0, "curve", name))
    return CommonTest(labels, torch.from_numpy(rows))


@dataclass(frozen=True)
class Accuracies:
    """The task's scores of the evaluated clients, such as accuracies between 0 and 1; NaN where nothing can be said.

    ``evaluated`` says who they are, in the order of the lists; empty: all clients of the federation.
    ``composition`` has a row for each base block and a column for each modular block, both in the order of clients,
    on the common test set (that of the base block's client); None where the fusion layers of the clients differ, and in
    large federations. ``own_by_samples`` is the score over the own rows of all evaluated clients together. ``rows`` has
    how many rows (places, for tokens) are behind the figures, each counted once, as far as they are known.

    Where they are asked for: ``others`` is the mean score of each client on the test rows of the other evaluated
    clients, each of these counting the same; ``others_matrix`` has a row for each client and a column for each owner of
    rows, and is there for everything alone, not for a point of the curve; ``by_task`` has a row for each client, with
    its score on its own test rows of each of its tasks in time.
    """

    own: list[float]
    validation: list[float]
    common: list[float]
    composition: list[list[float]] | None
    own_by_samples: float = math.nan
    evaluated: list[ClientId] = field(default_factory=list)
    rows: dict[Evidence, int] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    others_matrix: list[list[float]] = field(default_factory=list)
    by_task: list[list[float]] = field(default_factory=list)


def evaluate(federation: Federation, *, full: bool, all_own: bool = False) -> Accuracies:
    """Evaluate all clients as the method predicts, and all compositions of their blocks.

    Args:
        full: On everything, not on the rows of the curve; ``all_own``: on all own rows of the clients in any case.
    """
    program = federation.exchange.programs["evaluation"]
    assert isinstance(program, Evaluation)
    if program.mode == "none":
        return Accuracies([], [], [], None)
    composed = _composable(federation, program, full=full)
    shared, as_asked = program.mode == "shared", composed is Composed.AS_ASKED
    calls = FULL_CALLS if full else 0
    with federation.evaluating(MOST_CLIENTS, calls, first=calls) as clients:
        counted = clients.call(program.count, Scope(full, shared, as_asked, all_own))
        matrix = None
        if composed is not Composed.NOT_AT_ALL:
            matrix = _composition(federation, program, clients, full and as_asked)
        by_owner = _by_owner(program, clients, full=full)
        by_task = clients.call(program.count_by_task, Scope(full, False, all_own=all_own)) if program.by_task else {}
    for client, sums in counted.items():
        _check_counted(federation, program, client, sums, full=full)
    score = federation.setup.task.score
    common = {client: score(sums.common) for client, sums in counted.items()}
    if matrix is not None and as_asked:
        common |= {client: matrix[client][client] for client, sums in counted.items() if not sums.common.any()}
    across = {of: [score(sums) for sums in found.by_owner] for of, found in by_owner.items()}
    rows = _rows(federation, program, counted, full=full, composed=None if matrix is None else composed)
    if by_owner:
        rows["others"] = _rows_of_others(federation.setup.task, list(by_owner.values()))
    return Accuracies(
        own=[score(sums.own) for sums in counted.values()],
        validation=[score(sums.validation) for sums in counted.values()],
        common=[*common.values()],
        own_by_samples=score(torch.stack([sums.own for sums in counted.values()]).sum(0)) if counted else math.nan,
        composition=None if matrix is None else [_of_all(federation, row) for row in _rows_of_all(federation, matrix)],
        evaluated=some_of(federation, counted),
        rows=rows,
        others=[_mean_of_others(values, place) for place, values in enumerate(across.values())],
        others_matrix=[*across.values()] if full else [],
        by_task=[[score(sums) for sums in found.by_task] for found in by_task.values()],
    )


def _by_owner(program: Evaluation, clients: Clients, *, full: bool) -> Mapping[ClientId, CountedOfOthers]:
    """The sums of each evaluated client on the own test rows of each; of nobody, where they are not asked for."""
    if "others" not in program.across:
        return {}
    return clients.call(program.count_of_others, Owners(tuple(clients.ids), full))


def _mean_of_others(values: Sequence[float], own: int) -> float:
    known = [value for place, value in enumerate(values) if place != own and not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _rows_of_others(task: Task, found: Sequence[CountedOfOthers]) -> int:
    """How many test rows somebody else than their owner answered: each once."""
    counts = [[task.answered(sums) for sums in of.by_owner] for of in found]
    owners = range(len(found))
    return sum(max((counts[client][owner] for client in owners if client != owner), default=0) for owner in owners)


def _rows(
    federation: Federation,
    program: Evaluation,
    counted: Mapping[ClientId, Counted],
    *,
    full: bool,
    composed: Composed | None,
) -> dict[Evidence, int]:
    """How many rows are behind each figure, those of a test set once for all clients that are measured on it.

    Test sets with the same targets are one: several data sets that were made with one public test set have it each.
    """
    task = federation.setup.task
    several = {id(test): test for client, test in program.tests.items() if client in counted}.values()
    tests = {test.y.cpu().numpy().tobytes(): test for test in several}.values()

    def common(*, full: bool) -> int:
        return sum(task.counted(test.labels(full=full)) for test in tests)

    own = sum(task.answered(sums.own) for sums in counted.values())
    found: dict[Evidence, int] = {"own": own} if own else {}
    if program.mode == "shared":
        found["global"] = common(full=full)
        if composed is not None:
            found["compositions"] = common(full=full and composed is Composed.AS_ASKED)
    return found


def some_of(federation: Federation, evaluated: Iterable[ClientId]) -> list[ClientId]:
    """The clients that were evaluated; none named where they are all."""
    found = [*evaluated]
    return [] if len(found) == len(federation.setup.profiles) else found


def measure(federation: Federation) -> Mapping[ClientId, Measurements]:
    """What the metrics of all evaluated clients follow from, as the method predicts, on everything."""
    program = federation.exchange.programs["evaluation"]
    assert isinstance(program, Evaluation)
    with federation.evaluating(MOST_CLIENTS, calls=METRIC_CALLS) as clients:
        return clients.call(program.measurements)


def _of_all(federation: Federation, found: Mapping[ClientId, float]) -> list[float]:
    return [found.get(client, math.nan) for client in federation.setup.profiles]


def _rows_of_all(
    federation: Federation, matrix: Mapping[ClientId, Mapping[ClientId, float]]
) -> Iterable[Mapping[ClientId, float]]:
    return (matrix.get(client, {}) for client in federation.setup.profiles)


class Composed(Enum):
    """On how many rows the composition matrix can be had."""

    NOT_AT_ALL = 0
    ON_CURVE_ROWS = 1
    AS_ASKED = 2


def _composable(federation: Federation, program: Evaluation, *, full: bool) -> Composed:
    dims, rows = federation.setup.dims, [len(test.y) for test in program.tests.values()]
    if program.mode != "shared" or "d" not in dims or not all(rows) or dims["clients"] > MOST_COMPOSED:
        return Composed.NOT_AT_ALL
    small = not full or sum(rows) * dims["d"] * 4 <= LARGEST_COMPOSITION
    return Composed.AS_ASKED if small else Composed.ON_CURVE_ROWS


def _composition(
    federation: Federation, program: Evaluation, clients: Clients, full: bool
) -> dict[ClientId, dict[ClientId, float]]:
    """Score by base block and modular block."""
    task, outputs = federation.setup.task, fused_outputs(federation, program, clients, full=full)
    alike = _alike(program, outputs)
    differing = {base: outputs[base] for base in alike.values()}
    columns = clients.call(program.composed, FusedTests(differing, full))
    found: dict[ClientId, dict[ClientId, float]] = {base: {} for base in differing}
    for client, column in columns.items():
        if len(column.by_base) != len(differing):
            problem = f"by_base: expected {len(differing)} rows, found {len(column.by_base)}"
            raise _impossible(federation, client, program.composed.name, problem)
        for base, sums in zip(differing, column.by_base, strict=True):
            labels = program.tests[base].labels(full=full)
            _check_sums(federation, client, program.composed.name, f"by_base, base {base}", sums, labels)
            found[base][client] = task.score(sums)
    return {base: found[first] for base, first in alike.items()}


def _alike(program: Evaluation, outputs: Mapping[ClientId, FusedTest]) -> dict[ClientId, ClientId]:
    """For each client the first one whose base block has the very same outputs on the very same test set."""
    found: dict[ClientId, ClientId] = {}
    for client, test in outputs.items():
        known = (
            first
            for first in dict.fromkeys(found.values())
            if program.tests[first].same(program.tests[client]) and same_bits({"z": outputs[first].z}, {"z": test.z})
        )
        found[client] = next(known, client)
    return found


def fused_outputs(
    federation: Federation, program: Evaluation, clients: Clients, *, full: bool
) -> dict[ClientId, FusedTest]:
    """The base blocks' outputs on the common test set, as many rows of each as were asked for.

    Raises:
        ClientError: a client sent more or fewer; names it.
    """
    outputs = dict(clients.call(program.fused, Scope(full, True)))
    for client, test in outputs.items():
        if len(test.z) != (rows := len(program.tests[client].labels(full=full))):
            raise _impossible(federation, client, program.fused.name, f"z: expected {rows} rows, found {len(test.z)}")
    return outputs


def _check_counted(
    federation: Federation, program: Evaluation, client: ClientId, counted: Counted, *, full: bool
) -> None:
    """Check the sums of a client. Targets of the common test set are known, those of its own rows are not."""
    labels = program.tests[client].labels(full=full)
    for side, sums in vars(counted).items():
        _check_sums(federation, client, program.count.name, side, sums, labels if side == "common" else None)


def _check_sums(
    federation: Federation, client: ClientId, handler: str, field: str, sums: Tensor, y: Tensor | None
) -> None:
    try:
        federation.setup.task.check_sums(sums, y)
    except DataError as error:
        raise _impossible(federation, client, handler, f"{field}: {error}") from None


def _impossible(federation: Federation, client: ClientId, handler: str, problem: str) -> ClientError:
    """The failure of a client whose reply no honest one can give."""
    return ClientError(f"client {client} failed in {handler}, round {federation.round}: {problem}", client)


def compose(federation: Federation, base: ClientId, modular: ClientId, x: Inputs) -> Tensor:
    """Outputs of client ``modular``'s modular block behind client ``base``'s base block, for normalised inputs."""
    program = federation.exchange.programs["evaluation"]
    assert isinstance(program, Evaluation)
    with federation.evaluating() as clients:
        z = clients.only([base]).call(program.base, PredictionRequest(dict(named(x))))[base].y
        return clients.only([modular]).call(program.modular, PredictionRequest(dict(named(z))))[modular].y
