"""The tables for people: what fits on a page, with the resolution of the seeds and what is known beside each figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from interfuse.clock import LINKS, OWN
from interfuse.comparison.measures import SIDES, Anchor, Row, metrics_of, newcomers_of, score_of
from interfuse.comparison.notes import Footnote, rows_behind
from interfuse.comparison.plan import Plan
from interfuse.comparison.resolution import best_of, paired
from interfuse.errors import ConfigError, nearest
from interfuse.evaluation import ACROSS_TASKS
from interfuse.report.text import EXPLAINED, METRICS, UNKNOWN, capital, figures, with_article
from interfuse.runs.differences import points
from interfuse.runs.words import counts, decimals, operations, percents, size

MOST_COLUMNS = 7
"""Beside the names of entries, where a page cannot scroll."""
UNTOLD = "≈"
"""Stands behind what these seeds do not tell: from 0, or from the best of a column."""
SCORES = {"own": "own_last", "global": "global_last", "composition": "composition_last"}
"""What entries are compared by in every comparison."""


@dataclass(frozen=True)
class Column:
    """A measure under its heading.

    Attributes:
        form: Mean and standard deviation as a text.
        name: What ``--columns`` calls it; empty is the key.
        ranked: Whether more is better, so that the best mean is bold.
    """

    head: str
    key: str
    form: Callable[[float, float], str] = percents
    name: str = ""
    ranked: bool = False


@dataclass(frozen=True)
class Cell:
    """A text with the marks of its footnotes, separated by commas."""

    text: str
    marks: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A part of all there is to say: a line for each entry, the first cell its name.

    Attributes:
        notes: What stands under it.
        leading: Whether a terminal shows it too.
    """

    title: str
    caption: str
    heads: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    leading: bool = False

    def parts(self, fits: Callable[[Sequence[int]], bool]) -> list[Table]:
        """The table cut into several, where its columns do not fit beside one another.

        Args:
            fits: Whether these columns, counted from 1, fit beside the first.
        """
        groups: list[list[int]] = []
        for column in range(1, len(self.heads)):
            if groups and fits([*groups[-1], column]):
                groups[-1].append(column)
            else:
                groups.append([column])
        return [self._part(columns, number, len(groups)) for number, columns in enumerate(groups, 1)]

    def pages(self) -> list[Table]:
        """The table cut where a page cannot scroll, into parts of much the same width."""
        columns = len(self.heads) - 1
        most = math.ceil(columns / math.ceil(columns / MOST_COLUMNS))
        return self.parts(lambda chosen: len(chosen) <= most)

    def _part(self, columns: Sequence[int], number: int, of: int) -> Table:
        if of == 1:
            return self
        kept = (0, *columns)
        return replace(
            self,
            title=f"{self.title} ({number} of {of})",
            heads=[self.heads[place] for place in kept],
            lines=[[line[place] for place in kept] for line in self.lines],
            notes=self.notes if number == of else (),
        )


@dataclass(frozen=True)
class _Maker:
    """Makes tables of some rows."""

    plan: Plan
    rows: Sequence[Row]
    footnotes: Sequence[Footnote]
    made: list[Table] = field(default_factory=list)

    def add(
        self, title: str, caption: str, columns: Sequence[Column], notes: Sequence[str] = (), *, leading: bool = False
    ) -> None:
        """A table with a line for each entry."""
        best = {column.key: _compared_by(self.rows, column.key) for column in columns if column.ranked}
        lines = [
            [self.name(row), *(self._cell(row, column, best.get(column.key)) for column in columns)]
            for row in self.rows
        ]
        self.made.append(Table(title, caption, ("entry", *(column.head for column in columns)), lines, notes, leading))

    def name(self, row: Row) -> Cell:
        """An entry, how many of its seeds there are, and the marks of what is known of it."""
        asked = len(row.values) + len(row.finished.failures)
        if not row.values:
            text = f"{row.name} ({'refused' if row.finished.refused else 'failed'})"
        else:
            text = row.name if not row.finished.failures else f"{row.name} ({len(row.values)} of {asked} seeds)"
        return Cell(text, self.marks((row,), ""))

    def marks(self, rows: Sequence[Row], key: str) -> str:
        """Those of a figure that is made of these entries' measure; without a measure those of the entries."""
        own = [note for note in self.footnotes if any(row.name in note.entries for row in rows)]
        return ",".join(note.mark for note in own if (key in note.keys if key else not note.keys))

    def _cell(self, row: Row, column: Column, best: Row | None) -> Cell:
        if not column.key:
            return Cell(chosen(row) or UNKNOWN)
        if not row.values:
            return Cell(UNKNOWN)
        known = row.known(column.key)
        if 0 < known < len(row.values):
            return Cell(f"{UNKNOWN} ({known} of {len(row.values)})")
        if not known:
            return Cell(UNKNOWN)
        text = column.form(row.mean[column.key], row.std[column.key])
        first = best is not None and row.mean[column.key] == best.mean[column.key]
        if best is not None and not first and not paired(best, row, column.key).told:
            text += f" {UNTOLD}"
        return Cell(text, self.marks((row,), column.key), first)


def _compared_by(rows: Sequence[Row], key: str) -> Row | None:
    """The entry with the best mean of a column; none where no two seeds compare it to another one."""
    best = best_of(rows, key)
    return best if best is not None and _told(rows, best, key) else None


def _told(rows: Sequence[Row], best: Row, key: str) -> list[float]:
    """The smallest differences to the best that the seeds tell, one of each other entry."""
    found = [paired(best, row, key).half for row in rows if row.values and row is not best]
    return [half for half in found if not math.isnan(half)]


def tables(plan: Plan, rows: Sequence[Row], anchor: Anchor | None, footnotes: Sequence[Footnote] = ()) -> list[Table]:
    """The tables for people, the one with the chosen columns first."""
    asked, score = plan.asked, score_of(rows)
    word, a_score, runs = capital(score), with_article(score), [run for row in rows for run in row.runs]
    coded, make = any(run.summary.codecs for run in runs), _Maker(plan, rows, footnotes)

    count = len(asked.seeds)
    over = f"Mean ± standard deviation over {count} seeds" if count > 1 else f"Seed {asked.seeds[0]} alone"
    reached = [a for a in asked.accuracies if any(row.values and row.known(f"uplink_to_{a:g}") for row in rows)]
    missed = ", ".join(f"{100 * a:g} %" for a in asked.accuracies if a not in reached)
    text = f"{over}. {word} in %, after the last round."
    main = columns_of(plan)
    if any(column.key in ("uplink", "steps_clients") for column in main):
        text += " Uplink and client steps are sums over all clients and the whole run"
        text += ", bytes before codecs." if coded else "."
        before = [row for row in rows if row.values and any(run.summary.start_bytes.uplink.raw for run in row.runs)]
        sent = [f"{row.name} {size(fmean(run.summary.start_bytes.uplink.raw for run in row.runs))}" for row in before]
        text += f" Before the first round, and not in the uplink: {', '.join(sent)}." if sent else ""
    if any(column in _BY_ROWS[1:] for column in main):
        text += f" The best round on test rows: {_TOO_GOOD[0].lower()}{_TOO_GOOD[1:]}"
    if missed and any(row.values for row in rows):
        text += f" On no curve is the mean global {score} ever {missed}."
    if not asked.columns and runs:
        main = [column for column in main if any(row.known(column.key) for row in rows)]
    order = resolution(rows, [column for column in main if column.ranked])
    under = [order, rows_behind(rows), *(f"{note.mark}: {note.text.rstrip('.')}." for note in footnotes)]
    under = [text, *under] if asked.caption else under
    make.add(f"{word} and cost", asked.caption or text, main, under, leading=True)
    for reference in references(plan, rows):
        make.made.append(_differences(make, reference))
    text = f"{over}. {word} in %, after the round of the best validation {score}"
    only = bool(runs) and all((run.curve.rounds > 0).sum() <= 1 for run in runs)
    text += ", the only point of the curve after training." if only else "."
    if any(row.values and row.known(column.key) for row in rows for column in _BEST):
        make.add("Best round", text, _BEST, [resolution(rows, _BEST)])
    if any(run.summary.protocol for run in runs):
        text = (
            f"Own {score} in %, each test row counting the same: after the last round, and after the round where it is "
            f"best. {_TOO_GOOD}"
        )
        make.add("By test rows", text, _BY_ROWS)
    text = (
        "Spread in points: over modular blocks of other clients, and over the last ten points of the curve (– where "
        "these begin before training or are fewer than three)."
    )
    make.add("Swapped blocks and spread", text, _SPREAD)
    if measured := _metrics(asked_metrics(plan)):
        known = [column for column in measured if any(row.values and row.known(column.key) for row in rows)]
        explained = [EXPLAINED[name] for name in EXPLAINED if name in asked_metrics(plan)]
        ranked = resolution(rows, [column for column in known if column.ranked])
        text = "In %, after the last round: on own test shares, and on the common test set."
        make.add("Metrics beyond accuracy", text, known, [ranked, *explained])
    if across := across_tasks(plan):
        ranked = resolution(rows, [column for column in across if column.ranked])
        make.add(f"{word} across tasks", f"{over}. {word} in %. {ACROSS}", across, [ranked])
    if coded:
        text = "Bytes of all clients before and after codecs, headers of messages included; and how many times less."
        make.add("On the wire", text, _WIRE)
    if late := newcomers_of(plan):
        text = f"{word} in % behind all modular blocks of the incumbents. Newcomers are the last {late} in every entry."
        make.add("Newcomers", text, _NEWCOMERS)
    if reached:
        text = f"Raw bytes until the mean global {score} on the curve is there for the first time; – is never."
        until = _until(reached, coded) + [
            column for column in _until_other(reached) if any(row.values and row.known(column.key) for row in rows)
        ]
        text += " Own: until it is there on own test shares. Composition: over all pairs of blocks."
        make.add(f"Bytes until {a_score}", text, until)
        text = "Virtual seconds until then, on the clients' devices, and if all links had one rate; "
        make.add(f"Virtual time until {a_score}", f"{text}– is never or unknown.", _until_when(reached))
    if reached and asked.baseline is not None:
        text = f"The first evaluated round where the mean global {score} is there; – is never. "
        text += f"Speed is that of {asked.baseline} with the same seed divided by it."
        make.add(f"Rounds until {a_score}", text, _rounds(reached))
    limits = [f"{uplink:.0f}" for uplink in asked.uplinks] + ["anchor"] * (anchor is not None)
    if limits:
        counted = "on the wire, headers included" if coded else "raw"
        text = f"{word} in % at the last point of the curve within an uplink: of all clients together, or of each. "
        text += f"Bytes are {counted}."
        if anchor is not None:
            text += (
                f" {asked.anchor} first has 95 % of its final global {score} at {size(anchor.uplink)} of its "
                f"{anchor.clients} clients together."
            )
        within = _within(limits, asked.anchor, len({run.clients for run in runs}) > 1)
        make.add(f"{word} within an uplink", text, within, [resolution(rows, within)])
    # the last: memory and seconds are all that differs between two equal comparisons
    make.add("Cost", "Sums over clients, where nothing else is said; operations of clients and server.", _COST)
    return make.made


def resolution(rows: Sequence[Row], columns: Iterable[Column]) -> str:
    """Which order the seeds tell, in words."""
    told = {}
    for column in columns:
        if (best := best_of(rows, column.key)) is not None and (halves := _told(rows, best, column.key)):
            ends = dict.fromkeys(f"{100 * half:.1f}" for half in (min(halves), max(halves)))
            told[column.head] = " to ".join(ends)
    if not told:
        alone = len(rows) > 1 and max(len(row.runs) for row in rows) == 1
        return "One seed tells no difference: no order of entries follows." if alone else ""
    each = "; ".join(f"{head} {text}" for head, text in told.items())
    return (
        f"Bold: the best mean of a column. {UNTOLD}: these seeds do not tell it from the best (paired by seed, 95 %). "
        f"The smallest differences to it that they tell, in points: {each}."
    )


def references(plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """The entries from which differences are taken: the anchor and Local, or, where there is neither, the first."""
    there = {row.name: row for row in rows if row.values}
    named = [there[name] for name in dict.fromkeys((plan.asked.anchor, "local")) if name in there]
    return (named or list(there.values())[:1]) if len(there) > 1 else []


def compared_by(plan: Plan) -> dict[str, str]:
    """What differences are taken of, key by heading: scores, and metrics of which more is better."""
    others = {"others": "others_last"} if "others" in asked_across(plan) else {}
    return SCORES | others | {column.head: column.key for column in _metrics(asked_metrics(plan)) if column.ranked}


def _differences(make: _Maker, reference: Row) -> Table:
    keys = {
        head: key for head, key in compared_by(make.plan).items()
        if any(row.values and row.known(key) for row in make.rows)
    }  # fmt: skip
    lines = []
    for row in make.rows:
        if row is not reference:
            lines.append([make.name(row), *(_difference(make, row, reference, key) for key in keys.values())])
    text = f"Differences to {reference.name} with the same seed, after the last round, in points"
    if len(make.plan.asked.seeds) == 1:
        text += ". One seed tells no difference."
    else:
        text += (
            ": mean ± half its 95 % interval (Student's t over seeds), which is the smallest difference that these "
            f"seeds tell. {UNTOLD}: not told from 0 by these seeds, as the interval has 0 in it; that is not equal."
        )
        compared = [row for row in make.rows if row is not reference and row.values]
        if any(paired(row, reference, key).half == 0 for row in compared for key in keys.values()):
            text += f" ± 0.0: all of {len(make.plan.asked.seeds)} seeds differ by the same, which so few may by chance."
    return Table(f"Differences to {reference.name}", text, ("entry", *keys), lines, leading=True)


def _difference(make: _Maker, row: Row, reference: Row, key: str) -> Cell:
    found = paired(row, reference, key) if row.values else None
    if found is None or math.isnan(found.mean):
        return Cell(UNKNOWN)
    return Cell(points(found) + f" {UNTOLD}" * found.untold, make.marks((row, reference), key))


ACROSS = (
    "Own is on a client’s own test rows, others on those of the other clients, a mean over these. Over rounds: the "
    "mean over the points of the curve after the start. By task: the mean over all tasks of all clients. Forgetting: "
    "the best score on an earlier task on the curve minus the last one, a mean over the earlier tasks of each client; "
    "less is better."
)
"""What a reader has to know of scores across tasks."""
MAIN = ("own", "global", "composition", "uplink", "steps")
_BEST = tuple(
    Column(name, f"{name}_best", name=f"{name}-best", ranked=True) for name in ("own", "global", "composition")
)
_BY_ROWS = (
    Column("own by test rows", "own_by_samples_last", name="own-by-rows"),
    Column("best round on test rows", "own_by_samples_on_test", name="own-best-on-test"),
    Column("own, at that round", "own_on_test", name="own-at-best-on-test"),
)
_TOO_GOOD = (
    "That round is chosen on the very rows that it is tested on, as HtFLlib and PFLlib report it: too good, and beside "
    "their figures alone."
)
_SPREAD = (
    Column("swapped blocks, %", "swapped_last", name="swapped"),
    Column("over modular blocks", "spread_last", name="spread"),
    Column("over the end", "stability"),
)
_COST = (
    Column("uplink of a client", "uplink_per_client", size, "uplink-each"),
    Column("downlink", "downlink", size),
    Column("downlink of a client", "downlink_per_client", size, "downlink-each"),
    Column("server steps", "steps_server", counts, "server-steps"),
    Column("operations", "flops", operations),
    Column("virtual seconds", "virtual_seconds", decimals, "virtual-seconds"),
    Column("missing replies", "missing", counts),
    Column("chosen", "", name="chosen"),
    Column("peak memory", "peak_memory", size, "memory"),
    Column("seconds", "seconds", decimals),
)
_NEWCOMERS = (
    Column("newcomers' base blocks", "newcomers_last"),
    Column("best", "newcomers_best"),
    Column("incumbents' base blocks", "incumbents_last"),
    Column("difference", "newcomers_minus_incumbents"),
    Column("uplink of newcomers", "newcomers_uplink", size),
    Column("downlink of newcomers", "newcomers_downlink", size),
)
_WIRE = (
    Column("global", SCORES["global"]),
    Column("composition", SCORES["composition"]),
    Column("uplink", "uplink", size),
    Column("uplink on the wire", "uplink_wire", size, "uplink-wire"),
    Column("times less", "uplink_ratio", decimals),
    Column("downlink", "downlink", size),
    Column("downlink on the wire", "downlink_wire", size, "downlink-wire"),
    Column("chosen", "", name="chosen"),
)
_ALWAYS = (
    *(Column(name, key, name=name, ranked=True) for name, key in SCORES.items()),
    Column("uplink", "uplink", size),
    Column("client steps", "steps_clients", counts, "steps"),
    *_BEST,
    *_BY_ROWS,
    *_SPREAD,
    *_COST,
    *(column for column in _WIRE if column.name),
)


def columns_of(plan: Plan) -> list[Column]:
    """The columns of the first table: those that the plan names, or own, global, composition, uplink and steps.

    Raises:
        ConfigError: there is no such column.
    """
    asked = plan.asked
    limits = [f"{uplink:.0f}" for uplink in asked.uplinks] + ["anchor"] * (asked.anchor is not None)
    known = [*_ALWAYS, *_metrics(asked_metrics(plan)), *across_tasks(plan)]
    known += [*_until(asked.accuracies, True), *_until_other(asked.accuracies), *_until_when(asked.accuracies)]
    known += [*_rounds(asked.accuracies) * (asked.baseline is not None), *_within(limits, asked.anchor, True)]
    known += _NEWCOMERS * bool(newcomers_of(plan))
    by_name = {column.name or column.key: column for column in known}
    for name in asked.columns:
        if name not in by_name:
            raise ConfigError(f"columns: no {name!r}: {nearest(name, by_name)}")
    main = ("own", "others", *MAIN[1:]) if "others" in asked_across(plan) else MAIN
    return [by_name[name] for name in asked.columns or main]


def _until(accuracies: Sequence[float], coded: bool) -> list[Column]:
    heads = [("uplink", "uplink", ""), ("of a client", "uplink", "_per_client"), ("downlink", "downlink", "")]
    heads += [("on the wire, uplink", "uplink_wire", "")] * coded
    return [
        Column(f"{head} to {100 * accuracy:g} %", f"{key}_to_{accuracy:g}{rule}", size)
        for accuracy in accuracies
        for head, key, rule in heads
    ]


def _until_other(accuracies: Sequence[float]) -> list[Column]:
    """Beside the global accuracy."""
    return [
        Column(f"uplink to {100 * accuracy:g} % {name}", f"uplink_to_{accuracy:g}_{evidence}", size)
        for accuracy in accuracies
        for evidence, name in (("own", "own"), ("compositions", "composition"))
    ]


def asked_metrics(plan: Plan) -> list[str]:
    """Metrics of any entry that have one number a client."""
    return list(dict.fromkeys(name for entry in plan.entries for name in metrics_of(entry.config)))


def asked_across(plan: Plan) -> frozenset[str]:
    """Of :data:`.ACROSS_TASKS`, those that any entry asks for."""
    return ACROSS_TASKS & {name for entry in plan.entries for name in entry.config.metrics}


def across_tasks(plan: Plan) -> list[Column]:
    """Columns of what is asked for of clients on others' tasks, and on their own ones in time."""
    asked = asked_across(plan)
    found = [Column("own, last", "own_last", name="own-last", ranked=True)]
    found += [Column("own, over rounds", "own_auc", name="own-auc", ranked=True)]
    if "others" in asked:
        found += [Column("others", "others_last", name="others", ranked=True)]
        found += [Column("others, best round", "others_best", name="others-best", ranked=True)]
        found += [Column("others, over rounds", "others_auc", name="others-auc", ranked=True)]
    if "forgetting" in asked:
        found += [Column("own, by task", "by_task_last", name="by-task", ranked=True)]
        found += [Column("forgetting", "forgetting", name="forgetting")]
    return found if asked else []


def _metrics(names: Sequence[str]) -> list[Column]:
    """Those that people know by a name are shares; of those of the user nobody knows whether more is better."""
    found = [
        Column(
            f"{side} {METRICS.get(name, name)}", f"{side}_{name}", percents if name in METRICS else figures,
            f"{side}-{name}", ranked=name in METRICS and name != "calibration-error",
        )
        for name in names for side in SIDES
    ]  # fmt: skip
    lacking = Column("clients that lack a class", "lacking", counts)
    return [*found, lacking] if "absent-recall" in names else found


def _until_when(accuracies: Sequence[float]) -> list[Column]:
    return [
        Column(f"to {100 * accuracy:g} %, {name}", f"virtual_{name}_to_{accuracy:g}", decimals)
        for accuracy in accuracies
        for name in (OWN, *LINKS)
    ]


def _rounds(accuracies: Sequence[float]) -> list[Column]:
    return [
        Column(f"{key} to {100 * accuracy:g} %", f"{key}_to_{accuracy:g}", form)
        for accuracy in accuracies
        for key, form in (("rounds", counts), ("speed", decimals))
    ]


def _within(limits: Sequence[str], anchor: str | None, sizes_differ: bool) -> list[Column]:
    """Under both rules of counting. At the anchor's uplink both say the same unless numbers of clients differ."""
    names = {limit: f"that of {anchor}" if limit == "anchor" else size(float(limit)) for limit in limits}
    return [
        Column(f"{kind} at {name}, {words}", f"{kind}_at_{limit}{rule}", ranked=True)
        for limit, name in names.items()
        for rule, words in (("", "all"), ("_per_client", "each"))
        for kind in ("global", "composition")
        if limit != "anchor" or not rule or sizes_differ
    ]


def chosen(row: Row) -> str:
    """The point of the grid that was chosen, in words; empty where there was no choice."""
    point = row.finished.chosen
    return row.finished.entry.label(point) if point else ""
