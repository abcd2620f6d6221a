"""How training rows are divided between clients, and each client's own training, validation and test rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

from interfuse.data.dataset import Dataset
from interfuse.errors import ConfigError, DataError, nearest
from interfuse.randomness import numpy_generator, seeded

DIRICHLET_TRIES = 1000

Rows = Int64[np.ndarray, "rows"]
Labels = Int64[np.ndarray, "n"]
Counts = Int64[np.ndarray, "classes clients"]
Proportions = Float64[np.ndarray, "classes clients"]


class Partition(Protocol):
    """A rule that divides the rows of a training set between clients."""

    def split(self, labels: Labels, clients: int, rng: np.random.Generator, groups: Labels | None) -> list[Rows]:
        """The rows of each client, in client order: sorted, disjoint, a function of the arguments only.

        Models and data sets are dealt to clients in turn, so over the seeds no client should have more rows, or other
        ones, than another: what goes by order goes by one that is drawn.

        :param labels: class of each row; 0 where the task has no classes.
        :param clients: number of clients, at least 1.
        :param groups: natural client of each row; None where the data set has none.
        Raises:
            ConfigError: the rule cannot be asked of this number of clients or classes.
            DataError: the rows do not suffice.
        """
        ...


@dataclass(frozen=True)
class IID:
    """Every client gets rows at random, in shares whose sizes differ by at most one; which are larger is drawn."""

    def split(self, labels: Labels, clients: int, rng: np.random.Generator, groups: Labels | None) -> list[Rows]:
        """See :meth:`Partition.split`."""
        return [np.sort(rows) for rows in _evenly(rng.permutation(len(labels)), clients, rng)]


@dataclass(frozen=True)
class Dirichlet:
    """Each class is divided in proportions drawn from a Dirichlet distribution (Hsu et al., arXiv:1909.06335).

    Proportions of a class become rows by largest remainders. Those of all classes are drawn anew until the smallest
    share has ``minimum`` rows, at most 1,000 times. If that fails (many clients, small ``alpha``), rows move in the
    last draw: the smallest share takes from the class that the largest share has most of, until every share has
    ``minimum``. Where equals compete, one is drawn.

    :param alpha: concentration; small values give each client few classes, large ones approach IID.
    :param minimum: fewest rows a share may have.
    :param balanced: the rule of NIID-Bench (arXiv:2102.02079, ``partition_data``), which PFLlib, HtFLlib and InCo took
        over: classes are divided one after the other, and a client that has its n-th part of all rows, of n clients,
        gets none of the following ones.
    """

    alpha: float = 0.5
    minimum: int = 10
    balanced: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"Dirichlet: alpha is {self.alpha}, must be positive and finite")
        if self.minimum < 0:
            raise ConfigError(f"Dirichlet: minimum is {self.minimum}, must be 0 or more")
        if not isinstance(self.balanced, bool):
            raise ConfigError(f"Dirichlet: balanced is {self.balanced!r}, must be true or false")

    def split(self, labels: Labels, clients: int, rng: np.random.Generator, groups: Labels | None) -> list[Rows]:
        """See :meth:`Partition.split`."""
        if clients * self.minimum > len(labels):
            raise DataError(
                f"Dirichlet: {clients} clients with at least {self.minimum} rows each need {clients * self.minimum} "
                f"rows, but there are {len(labels)}; take fewer clients or a smaller minimum"
            )
        classes, sizes = np.unique(labels, return_counts=True)
        counts = self._counts(sizes, clients, rng)
        shares: list[list[Rows]] = [[] for _ in range(clients)]
        for label, of_class in zip(classes, counts, strict=True):
            pieces = np.split(rng.permutation(np.flatnonzero(labels == label)), np.cumsum(of_class)[:-1])
            for share, piece in zip(shares, pieces, strict=True):
                share.append(piece)
        return [_joined(share) for share in shares]

    def _counts(self, sizes: Int64[np.ndarray, "classes"], clients: int, rng: np.random.Generator) -> Counts:
        counts = np.zeros((len(sizes), clients), np.int64)
        for _ in range(DIRICHLET_TRIES):
            proportions = rng.dirichlet(np.full(clients, self.alpha), size=len(sizes))
            counts = (_capped if self.balanced else apportioned)(proportions, sizes, rng)
            if counts.sum(axis=0).min() >= self.minimum:
                return counts
        return self._levelled(counts, rng)

    def _levelled(self, counts: Counts, rng: np.random.Generator) -> Counts:
        counts = counts.copy()
        totals = counts.sum(axis=0)
        while totals.min() < self.minimum:
            poor, rich = _largest(-totals, rng), _largest(totals, rng)
            label = _largest(counts[:, rich], rng)
            moved = min(self.minimum - totals[poor], totals[rich] - self.minimum, counts[label, rich])
            for table in (counts[label], totals):
                table[rich] -= moved
                table[poor] += moved
        return counts


def apportioned(proportions: Proportions, sizes: Int64[np.ndarray, "classes"], rng: np.random.Generator) -> Counts:
    """So many rows of each class to each client, in proportion: rounded down, the rest to the largest remainders.

    Of equal remainders those that get a row more are drawn, so nobody is favoured by their number.
    """
    quotas = proportions * sizes[:, np.newaxis]
    counts = np.floor(quotas).astype(np.int64)
    order = np.lexsort((rng.random(quotas.shape), counts - quotas), axis=1)
    owed = sizes - counts.sum(axis=1)
    # argsort of an order is the place of each in it
    more: Counts = counts + (np.argsort(order, axis=1) < owed[:, np.newaxis])
    return more


def _capped(proportions: Proportions, sizes: Int64[np.ndarray, "classes"], rng: np.random.Generator) -> Counts:
    """As :func:`apportioned`, class after class, only to those who have less than an equal part of all rows so far."""
    counts = np.zeros(proportions.shape, np.int64)
    for label, drawn in enumerate(proportions):
        open_to = counts.sum(axis=0) * len(drawn) < sizes.sum()
        weights = np.where(open_to, drawn, 0.0)
        if weights.sum() == 0:  # a small alpha draws zeros
            weights = open_to.astype(np.float64)
        counts[label] = apportioned(weights[np.newaxis] / weights.sum(), sizes[label : label + 1], rng)[0]
    return counts


def _evenly(rows: Rows, parts: int, rng: np.random.Generator) -> list[Rows]:
    """The rows cut into so many parts of equal size; which have one more where it does not come out even is drawn."""
    sizes = np.full(parts, len(rows) // parts)
    sizes[rng.permutation(parts)[: len(rows) % parts]] += 1
    return np.split(rows, np.cumsum(sizes)[:-1])


def _largest(values: Int64[np.ndarray, "n"], rng: np.random.Generator) -> int:
    """Where the largest value is, one of them at random."""
    return int(rng.choice(np.flatnonzero(values == values.max())))


@dataclass(frozen=True)
class Pathological:
    """Every client has exactly k classes (after McMahan et al., arXiv:1602.05629, and NIID-Bench, arXiv:2102.02079).

    Clients choose in an order that is drawn, each the k classes that the fewest clients hold so far, at random among
    equals. So the classes are held equally often (to within one), and all are used when ``clients * k >= classes``;
    otherwise the rows of the classes nobody chose belong to no client. The rows of a class are divided evenly between
    its holders.

    With ``alike`` and ``uneven`` it is what HtFLlib and PFLlib call pathological, but that who gets which classes, and
    who the most rows, is drawn.

    :param classes_per_client: k.
    :param alike: clients come in groups, as large as can be, whose clients have the same classes.
    :param uneven: of the rows of a class a holder, drawn, gets what the others leave; each of these gets a number that
        is drawn evenly from a tenth of the equal part up to it, and at least ``minimum`` divided by all classes.
    :param minimum: see ``uneven``.
    """

    classes_per_client: int = 2
    alike: bool = False
    uneven: bool = False
    minimum: int = 40

    def __post_init__(self) -> None:
        if self.classes_per_client < 1:
            raise ConfigError(f"Pathological: classes_per_client is {self.classes_per_client}, must be 1 or more")
        if self.minimum < 0:
            raise ConfigError(f"Pathological: minimum is {self.minimum}, must be 0 or more")
        for name in ("alike", "uneven"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"Pathological: {name} is {getattr(self, name)!r}, must be true or false")

    def split(self, labels: Labels, clients: int, rng: np.random.Generator, groups: Labels | None) -> list[Rows]:
        """See :meth:`Partition.split`."""
        classes = np.unique(labels)
        if self.classes_per_client > len(classes):
            raise ConfigError(
                f"Pathological: {self.classes_per_client} classes per client, but the data has {len(classes)}"
            )
        holds = (self._groups if self.alike else self._choices)(len(classes), clients, rng)
        shares: list[list[Rows]] = [[] for _ in range(clients)]
        for label, holders in zip(classes, holds, strict=True):
            rows = rng.permutation(np.flatnonzero(labels == label))
            if len(rows) < holders.sum():
                raise DataError(
                    f"Pathological: class {label} has {len(rows)} rows for {holders.sum()} clients; take fewer clients "
                    f"or fewer classes per client"
                )
            if holders.any():
                many = int(holders.sum())
                pieces = self._unevenly(rows, many, len(classes), rng) if self.uneven else _evenly(rows, many, rng)
                for client, piece in zip(np.flatnonzero(holders), pieces, strict=True):
                    shares[client].append(piece)
        return [_joined(share) for share in shares]

    def _unevenly(self, rows: Rows, holders: int, classes: int, rng: np.random.Generator) -> list[Rows]:
        equal = len(rows) / holders
        low, high = math.floor(max(equal / 10, self.minimum / classes)), math.floor(equal)
        sizes = rng.integers(min(low, high), max(high, low + 1), holders - 1)
        if sizes.sum() >= len(rows):
            raise DataError(
                f"Pathological: {len(rows)} rows of a class are too few for {holders} clients with {low} or more each; "
                "take a smaller minimum, or fewer clients"
            )
        pieces = np.split(rows, np.cumsum(sizes))
        return [pieces[place] for place in rng.permutation(holders)]

    def _groups(self, classes: int, clients: int, rng: np.random.Generator) -> np.ndarray:
        """As :meth:`_choices`: classes in an order that is drawn, each to the first clients that want more."""
        holds = np.zeros((classes, clients), bool)
        people, each = rng.permutation(clients), math.ceil(clients * self.classes_per_client / classes)
        for label in rng.permutation(classes):
            wanting = [client for client in people if holds[:, client].sum() < self.classes_per_client]
            holds[label, wanting[:each]] = True
        return holds

    def _choices(self, classes: int, clients: int, rng: np.random.Generator) -> np.ndarray:
        """``[classes, clients]`` bool: whether a client holds a class."""
        holds = np.zeros((classes, clients), bool)
        for client in rng.permutation(clients):
            fewest_first = np.lexsort((rng.random(classes), holds.sum(axis=1)))
            holds[fewest_first[: self.classes_per_client], client] = True
        return holds


@dataclass(frozen=True)
class Shards:
    """Rows sorted by class are cut into equal shards, dealt at random (McMahan et al., arXiv:1602.05629, section 3).

    Within a class rows are in random order. A shard may hold rows of two classes, so a client has about as many classes
    as shards, or one more; shard sizes differ by at most one row.

    :param shards_per_client: S; there are ``clients * S`` shards.
    """

    shards_per_client: int = 2

    def __post_init__(self) -> None:
        if self.shards_per_client < 1:
            raise ConfigError(f"Shards: shards_per_client is {self.shards_per_client}, must be 1 or more")

    def split(self, labels: Labels, clients: int, rng: np.random.Generator, groups: Labels | None) -> list[Rows]:
        """See :meth:`Partition.split`."""
        count = clients * self.shards_per_client
        if count > len(labels):
            raise DataError(
                f"Shards: {clients} clients with {self.shards_per_client} shards each need {count} rows, but there are "
                f"{len(labels)}; take fewer clients or fewer shards per client"
            )
        by_class = rng.permutation(len(labels))
        shards = np.array_split(by_class[np.argsort(labels[by_class], kind="stable")], count)
        hands = rng.permutation(count).reshape(clients, self.shards_per_client)
        return [_joined([shards[shard] for shard in hand]) for hand in hands]


@dataclass(frozen=True)
class Natural:
    """Clients are the data set's own groups (people, devices); of more groups each client has as many, to within one.

    Which client has which is drawn, even where each has one: models are dealt to clients in turn, and one architecture
    would meet the same people under every seed.

    :param drawn: false where it is a matter of the experiment who has which: client 0 has the first groups by number,
        the last client the last ones; of sizes that differ the larger come first.
    """

    drawn: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.drawn, bool):
            raise ConfigError(f"Natural: drawn is {self.drawn!r}, must be true or false")

    def split(self, labels: Labels, clients: int, rng: np.random.Generator, groups: Labels | None) -> list[Rows]:
        """See :meth:`Partition.split`."""
        if groups is None:
            raise DataError(
                "Natural: this data set has no natural clients (groups). Take another partition, such as iid or "
                "dirichlet, or say whose each row is: by a group column of a table, or groups in an .npz (docs/data.md)"
            )
        names, numbers = np.unique(groups, return_inverse=True)
        if clients > len(names):
            raise DataError(
                f"Natural: {clients} clients, but the data has {len(names)} groups; take at most as many: "
                f"--clients {len(names)} (clients={len(names)})"
            )
        if self.drawn:
            # Two draws: of who has one group more, and of the groups that each has.
            owners = rng.permutation(clients)[rng.permutation(len(names)) % clients]
        else:
            owners = np.sort(np.arange(len(names)) % clients)
        owner = owners[numbers]
        return [np.flatnonzero(owner == client) for client in range(clients)]


Divide = Callable[..., Sequence[ArrayLike]]
"""A rule as a function: (labels, clients, rng) or (labels, clients, rng, groups) to the rows of each client."""


@dataclass(frozen=True)
class Divided:
    """A partition by a function of the user.

    :param rule: takes what :meth:`Partition.split` takes, ``groups`` only where it has a fourth parameter, and gives
        the rows of each client, in any order; its name stands in error texts.
    """

    rule: Divide

    def split(self, labels: Labels, clients: int, rng: np.random.Generator, groups: Labels | None) -> list[Rows]:
        """See :meth:`Partition.split`.

        Raises:
            ConfigError: the function fails, or gives something else than whole numbers for each client.
        """
        name = getattr(self.rule, "__qualname__", type(self.rule).__qualname__)
        given = (labels, clients, rng, groups)[: min(4, max(3, len(signature(self.rule).parameters)))]
        try:
            parts = [np.asarray(part) for part in self.rule(*given)]
        except Exception as error:
            raise ConfigError(f"partition {name} failed: {type(error).__name__}: {error}") from error
        for client, part in enumerate(parts):
            if part.ndim != 1 or (part.size and part.dtype.kind not in "iu"):
                raise ConfigError(
                    f"partition {name}: client {client} got {part.dtype} {list(part.shape)}; give each client the "
                    "numbers of its rows, a list or array of whole numbers"
                )
        return [np.sort(part.astype(np.int64)) for part in parts]


Rule = type[IID] | type[Dirichlet] | type[Pathological] | type[Shards] | type[Natural]

PARTITIONS: Mapping[str, Rule] = MappingProxyType(
    {"iid": IID, "dirichlet": Dirichlet, "pathological": Pathological, "shards": Shards, "natural": Natural}
)


def parse_partition(name: str, **options: Any) -> Partition:
    """The partition that a command line or a recipe names, e.g. ``parse_partition("dirichlet", alpha=0.1)``.

    Raises:
        ConfigError: unknown name, unknown option, or an impossible value.
    """
    if name not in PARTITIONS:
        raise ConfigError(f"unknown partition {name!r}: {nearest(name, PARTITIONS)}")
    rule = PARTITIONS[name]
    valid = [field.name for field in fields(rule)]
    for option in options:
        if option not in valid:
            advice = nearest(option, valid) if valid else "it has no options"
            raise ConfigError(f"partition {name!r} has no option {option!r}: {advice}")
    return rule(**options)


@dataclass(frozen=True, eq=False)
class Share:
    """One client's rows: disjoint indices into the training rows of a data set, sorted, unless they come in time.

    :param held: where its own test rows come from the source: indices into the test rows of the data set. Then ``test``
        is empty.
    """

    train: Rows
    validation: Rows
    test: Rows
    held: Rows | None = None

    @property
    def rows(self) -> Rows:
        """All three together, sorted."""
        return _joined([self.train, self.validation, self.test])


Test = float | Literal["source"]
"""What a client's own test rows are: a fraction of its rows, or those that the source has for its groups."""


def make_shares(
    dataset: Dataset,
    partition: Partition,
    clients: int,
    seed: int,
    validation: float = 0.1,
    test: Test = 0.1,
    key: tuple[str, ...] = (),
    *,
    apart: bool = True,
) -> list[Share]:
    """Divide the training rows between clients, and each client's rows at random into training, validation and test.

    Validation and test get their fraction of the n rows, rounded to the nearest whole number, halves up; where that
    leaves nothing to train on, test and then validation give up rows until one training row is left. Where the data
    set has blocks, whole blocks are moved until validation and test have at least so many rows, while one block is left
    to train on; where it has groups and no blocks, and these are to be ``apart``, whole groups, unless the client is a
    single group. How the rows of
    client c divide depends on (seed, key, c) and these rows only, not on the number of clients.

    :param seed: of the run: partition and division follow from it.
    :param key: tells apart divisions under one seed, so that they are independent of each other.
    :param apart: whether a client's groups are to be divided whole: people are, tasks in time are not, of which each
        has its rows to train on, to validate and to test.
    :param validation: fraction of a client's rows, from 0, below 1 together with ``test``.
    :param test: the same; or ``"source"``: a client has all test rows of its groups, and none are taken from those that
        it could train on.
    Raises:
        ConfigError: no clients, or impossible fractions.
        DataError: a client would have no rows, the partition broke its promise of disjoint rows, or nobody knows whose
            the test rows are.
    """
    if clients < 1:
        raise ConfigError(f"{clients} clients; a federation needs at least 1")
    cut = 0.0 if test == "source" else test
    if not (validation >= 0 and cut >= 0 and validation + cut < 1):
        raise ConfigError(f"validation {validation} and test {test} must be 0 or more and together below 1")
    groups = None if dataset.groups is None else dataset.groups.numpy()
    if not dataset.classes and isinstance(partition, Dirichlet | Pathological | Shards):
        raise ConfigError(
            f"{type(partition).__name__} goes by class, but the task is {dataset.task}; take IID or Natural"
        )
    labels = dataset.task.strata(dataset.y_train)
    with seeded(seed, *key, "own partition"):  # one of a user's own may draw from global generators
        parts = partition.split(labels, clients, numpy_generator(seed, *key, "partition"), groups)
    _check_parts(parts, clients, len(dataset.y_train))
    blocks = None if dataset.blocks is None else dataset.blocks.numpy()
    shares = [
        _divided(
            rows,
            validation,
            cut,
            numpy_generator(seed, *key, "shares", client),
            blocks
            if blocks is not None or groups is None or not apart or len(np.unique(groups[rows])) == 1
            else groups,
        )
        for client, rows in enumerate(parts)
    ]
    return _with_held(dataset, shares, parts) if test == "source" else shares


def _with_held(dataset: Dataset, shares: Sequence[Share], parts: Sequence[Rows]) -> list[Share]:
    """The shares with the test rows of their groups."""
    if dataset.groups is None or dataset.test_groups is None:
        raise DataError(
            f"data set {dataset.name!r} does not say whose its test rows are, so test = 'source' gives nobody any: "
            "give a fraction, such as test = 0.25, or test_groups in the source"
        )
    groups, tested = dataset.groups.numpy(), dataset.test_groups.numpy()
    owner: dict[int, int] = {}
    for client, rows in enumerate(parts):
        for group in np.unique(groups[rows]).tolist():
            if owner.setdefault(group, client) != client:
                raise DataError(
                    f"test = 'source': the rows of group {group} went to clients {owner[group]} and {client}, so its "
                    "test rows are nobody's own: take --partition natural, or give a fraction, such as test = 0.25"
                )
    owners = np.array([owner.get(group, -1) for group in tested.tolist()], np.int64)
    if not (owners >= 0).any():
        raise DataError(
            f"data set {dataset.name!r}: no test row is of a group that a client has, so test = 'source' gives nobody "
            "any: give a fraction, such as test = 0.25, or name groups and test_groups alike in the source"
        )
    return [replace(share, held=np.flatnonzero(owners == client)) for client, share in enumerate(shares)]


def deal(
    datasets: Sequence[Dataset],
    partition: Partition,
    clients: int,
    seed: int,
    validation: float = 0.1,
    test: Test = 0.1,
    *,
    apart: bool = True,
) -> tuple[list[Dataset], list[Share]]:
    """Deal data sets to the clients in turn, and divide each between its own clients as :func:`make_shares` does.

    Client c of C has data set c mod D of D. The divisions of several data sets are independent of each other.

    Returns: data set and share of each client, in order.
    Raises:
        ConfigError: there are fewer clients than data sets, two of which have one name; or as for `make_shares`.
        DataError: as for `make_shares`.
    """
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise ConfigError(f"data names {', '.join(names)}: name each data set once")
    if clients < len(datasets):
        raise ConfigError(f"{clients} clients, but {len(datasets)} data sets ({', '.join(names)}): take more clients")
    shares: dict[int, Share] = {}
    for first, dataset in enumerate(datasets):
        own = range(first, clients, len(datasets))
        key = ("data set", dataset.name) if len(datasets) > 1 else ()
        divided = make_shares(dataset, partition, len(own), seed, validation, test, key, apart=apart)
        shares |= zip(own, divided, strict=True)
    return [datasets[c % len(datasets)] for c in range(clients)], [shares[c] for c in range(clients)]


def testing_on_shares(datasets: Sequence[Dataset], shares: Sequence[Share]) -> tuple[list[Dataset], list[Share]]:
    """All own test rows of the clients of a data set as its test rows, and the shares of what is so arranged."""
    made: dict[int, tuple[Dataset, Rows]] = {}
    for dataset in {id(dataset): dataset for dataset in datasets}.values():
        held = np.zeros(len(dataset.y_train), bool)
        for other, share in zip(datasets, shares, strict=True):
            if other is dataset:
                held[share.test] = True
        # where each row is now: among those that stay, or among those held
        made[id(dataset)] = dataset.testing_on(held), np.where(held, np.cumsum(held), np.cumsum(~held)) - 1
    arranged = []
    for dataset, share in zip(datasets, shares, strict=True):
        _, place = made[id(dataset)]
        train, validation, held = (place[rows] for rows in (share.train, share.validation, share.test))
        arranged.append(Share(train, validation, share.test[:0], held))
    return [made[id(dataset)][0] for dataset in datasets], arranged


def class_counts(datasets: Sequence[Dataset], shares: Sequence[Share]) -> Int64[np.ndarray, "clients classes"]:
    """How many rows of each class each client has, over training, validation and test together.

    :param datasets: of each client, all with as many classes.
    """
    return np.array([_counted(dataset, share) for dataset, share in zip(datasets, shares, strict=True)], np.int64)


def _counted(dataset: Dataset, share: Share) -> Int64[np.ndarray, "classes"]:
    labels = dataset.y_train.cpu().numpy()[share.rows]
    if share.held is not None:
        labels = np.concatenate([labels, dataset.y_test.cpu().numpy()[share.held]])
    return np.bincount(labels, minlength=dataset.classes)


def _joined(pieces: Sequence[Rows]) -> Rows:
    return np.sort(np.concatenate([np.empty(0, np.int64), *pieces]))


def _check_parts(parts: list[Rows], clients: int, rows: int) -> None:
    if len(parts) != clients:
        raise DataError(f"the partition gave {len(parts)} shares for {clients} clients")
    for client, part in enumerate(parts):
        if len(part) == 0:
            raise DataError(
                f"client {client} of {clients} has no rows; take fewer clients, or a partition with a minimum such as "
                f"Dirichlet(minimum=1)"
            )
    together = _joined(parts)
    if together[0] < 0 or together[-1] >= rows or (np.diff(together) == 0).any():
        raise DataError(f"the partition gave a row to two clients, or a row outside 0 to {rows - 1}")


def _divided(
    rows: Rows, validation: float, test: float, rng: np.random.Generator, blocks: Labels | None = None
) -> Share:
    held = min(math.floor(len(rows) * validation + 0.5), len(rows) - 1)
    tested = min(math.floor(len(rows) * test + 0.5), len(rows) - 1 - held)
    shuffled = rng.permutation(np.sort(rows))
    if blocks is not None:
        shuffled, held, tested = _along_blocks(shuffled, blocks[shuffled], held, tested)
    return Share(
        train=np.sort(shuffled[held + tested :]),
        validation=np.sort(shuffled[:held]),
        test=np.sort(shuffled[held : held + tested]),
    )


def _along_blocks(shuffled: Rows, blocks: Labels, held: int, tested: int) -> tuple[Rows, int, int]:
    """The rows with those of each block together, blocks by first appearance, and the two cuts at ends of blocks."""
    _, first, number, sizes = np.unique(blocks, return_index=True, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes[np.argsort(first)])
    # The last block is there to train on; 0 is an end too, where nothing is asked for.
    ends = np.concatenate([[0], ends[:-1]])
    held_end = _first_from(ends, held)
    tested_end = _first_from(ends, held_end + tested)
    return shuffled[np.argsort(first[number], kind="stable")], held_end, tested_end - held_end


def _first_from(ends: Int64[np.ndarray, "ends"], rows: int) -> int:
    """The first end that leaves at least so many rows before it, or the last one."""
    return int(ends[min(int(np.searchsorted(ends, rows)), len(ends) - 1)])
