"""The page: HTML without scripts or requests. Templates escape whatever comes from the run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from functools import cache
from itertools import zip_longest

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from interfuse.evaluation import MOST_COMPOSED
from interfuse.references import short_name
from interfuse.report.plots import MOST_NUMBERS, inline_svg
from interfuse.report.run import Run
from interfuse.report.samples import samples_text
from interfuse.report.shown import shown_texts
from interfuse.report.text import (
    EXPLAINED,
    METRICS,
    UNKNOWN,
    architecture,
    bare_percent,
    by_name,
    by_rows,
    capital,
    measured,
    number,
    over_clients,
    percent,
    sides,
    size,
    title,
)
from interfuse.runs import Summary
from interfuse.runs.summary import NOTHING, Spread, mean, mean_swapped, std

MOST_SIDE_BY_SIDE = 8  # clients whose matrix fits half of a wide page


def page(run: Run, svgs: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        svgs: The plots of the run by name, as :func:`interfuse.report.plots.save` gives them.
    """
    summary, beside = run.summary, by_name(run.summary)
    recalls = {name: (values.recalls("own"), values.recalls("global")) for name, values in beside.items()}
    spreads = (summary.own_accuracy, summary.others_accuracy, summary.global_accuracy)
    scores = zip_longest(*(spread.per_client for spread in spreads), fillvalue=math.nan)
    by_client = dict(zip(summary.evaluated_clients, scores, strict=False))
    return render(
        "run.html",
        title=title(summary),
        name=short_name(summary.method),
        run=run,
        summary=summary,
        local=(summary.local or NOTHING).composition,
        beside=beside,
        only_point=summary.best is not None
        and sum(row.accuracy is not None and row.round > 0 for row in run.rows) == 1,
        figures=_figures(summary),
        sides=sides(summary),
        svgs=svgs,
        samples=samples_text(run.drawn, summary.class_names, len(summary.clients)) if run.drawn else "",
        shown=shown_texts(summary, run.rounds_done),
        measured=measured(summary),
        over_clients=over_clients(summary),
        percentages=METRICS,
        explained=[EXPLAINED[name] for name in EXPLAINED if name in summary.metrics],
        recalls={name: sides for name, sides in recalls.items() if all(sides)},
        architectures={client.id: architecture(client, summary) for client in summary.clients},
        clients=[(client, *by_client.get(client.id, (math.nan, math.nan, math.nan))) for client in summary.clients],
        commands=_commands(run),
        facts=_facts(run),
        most_composed=MOST_COMPOSED,
        most_numbers=MOST_NUMBERS,
        most_side_by_side=MOST_SIDE_BY_SIDE,
    )


def render(template: str, **values: object) -> str:
    """A template with these values in it."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("interfuse.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "code": code,
        "percent": percent,
        "bare_percent": bare_percent,
        "number": number,
        "size": size,
        "capital": capital,
        "count": lambda count: UNKNOWN if count is None else f"{count:,}",
    }
    made.globals |= {"inline_svg": inline_svg, "mean": mean, "std": std, "mean_swapped": mean_swapped, "nan": math.nan}
    return made


def code(text: str) -> Markup:
    """A text in which what stands between backticks is code."""
    pieces = [escape(piece) for piece in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if number % 2 else piece for number, piece in enumerate(pieces)
    )


def _figures(summary: Summary) -> list[tuple[str, str, list[str]]]:
    """The large figures at the top: a name, a value, and lines below it."""
    _, *beside = by_name(summary).items()
    found: dict[str, tuple[str, str, list[str]]] = {}
    lines = [f"of {n}'s blocks: {percent(s.mean_composition)}" for n, s in beside if n == "Local"]
    if summary.composition is None:
        lines = ["there is no matrix of compositions"]
    found["composition"] = ("mean over all compositions", percent(summary.mean_composition), lines)
    lines = [f"{n}: {percent(s.own_accuracy.mean)}" for n, s in beside]
    own, common = summary.own_accuracy, summary.global_accuracy
    found["own"] = (f"own {summary.score}", percent(own.mean), [_over_clients(own, summary), *lines])
    lines = [f"{n}: {percent(s.others_accuracy.mean)}" for n, s in beside]
    others = summary.others_accuracy
    name = f"{summary.score} on others’ test rows"
    found["others"] = (name, percent(others.mean), [_over_clients(others, summary), *lines])
    lines = [f"{n}: {percent(s.global_accuracy.mean)}" for n, s in beside]
    found["global"] = (f"global {summary.score}", percent(common.mean), [_over_clients(common, summary), *lines])
    sent, before = summary.uplink_bytes.raw, summary.start_bytes.uplink.raw
    wire = summary.uplink_bytes.wire
    each = [f"on the wire {size(wire / max(1, len(summary.clients)))}"] if summary.is_coded else []
    of_all = [f"on the wire {size(wire)}"] if summary.is_coded else []
    of_all += [f"{size(before)} more before the first round"] if before else []
    return [
        *(figure for side, figure in found.items() if side in sides(summary)),
        ("uplink per client", size(sent / max(1, len(summary.clients))), ["raw, mean", *each]),
        ("uplink, sum of clients", size(sent), ["raw", *of_all]),
    ]


def _over_clients(spread: Spread, summary: Summary) -> str:
    if math.isnan(spread.std) or len(spread.per_client) < 2:
        return ""
    return f"± {bare_percent(spread.std)} over {over_clients(summary)}"


def _commands(run: Run) -> list[str]:
    summary, folder = run.summary, shlex.quote(run.summary.run)
    config = shlex.quote(f"{run.summary.run}/config.toml")
    if summary.simulated:
        return [f"interfuse run {config}"]  # the same without Flower
    if not summary.parties:
        again = f"interfuse run {config}"
        return [again] if run.finished else [again, f"interfuse resume {folder}"]
    again = f"interfuse coordinate {config} --nodes {len(summary.clients)} --keys FOLDER"
    if summary.evaluation != "shared" and not run.config.classes:
        again += f" --classes {len(summary.class_names) or 'N'}"
    return [again] if run.finished else [f"{again} --out {folder}"]


def _facts(run: Run) -> dict[str, str]:
    """What to know of a run, in words; empty ones are not shown."""
    summary = run.summary
    versions = {"interfuse": summary.interfuse} | run.config.environment
    failures = [(row.round, failure) for row in run.rows for failure in row.failures]
    missing = ""
    if failures:
        round, first = failures[0]
        missing = f"{len(failures)}; the first in round {round}, client {first.client}: {first.reason}"
    return {
        f"versions{' at the coordinator' if summary.parties else ''}": ", ".join(
            f"{name} {value}" for name, value in versions.items()
        ),
        "disclosed to the server": ("" if summary.discloses is None else ", ".join(summary.discloses) or "nothing"),
        "data": summary.note if summary.parties else f"{summary.data} {summary.note}".strip(),
        f"own {summary.score}, each test row counting the same": by_rows(summary) if summary.protocol else "",
        "protocol": summary.protocol.removeprefix("protocol "),
        "forgetting of earlier tasks": "" if math.isnan(summary.forgetting.mean) else percent(summary.forgetting.mean),
        "rounds": "" if summary.stopped is None else str(summary.stopped),
        "missing replies": missing,
        f"{'real' if summary.parties else 'virtual'} seconds": ", ".join(
            f"{time:,.1f} ({name})" for name, time in summary.virtual_seconds.items()
        ),
        "seconds": f"{summary.seconds:,.1f}",
    }
