"""The page: HTML without scripts or requests. Whatever comes from the run is escaped."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from interfuse.report.diagnosis import Diagnosis
from interfuse.report.plots import MOST_NUMBERS, inline_svg
from interfuse.report.summary import (
    ClientFacts,
    Json,
    Matrix,
    Run,
    Scores,
    Spread,
    best_scores,
    clients,
    mean,
    mean_recalls,
    mean_swapped,
    metric,
    number,
    number_of_clients,
    reference,
    scores,
    std,
)
from interfuse.report.text import METRICS, UNKNOWN, bare_percent, headline, megabytes, method_name, percent, title

MOST_SIDE_BY_SIDE = 8  # clients whose matrix fits half of a wide page

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def page(run: Run, warnings: Sequence[Diagnosis], svgs: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        svgs: The plots of the run by name, as :func:`interfuse.report.plots.save` gives them.
    """
    sections = (
        _head(run),
        _figures(run.summary),
        _warnings(warnings, run.finished),
        _compositions(run.summary, svgs),
        _accuracy(run.summary, svgs),
        _metrics(run.summary, svgs),
        _bytes(run.summary, svgs),
        _classes_and_time(svgs),
        _again(run),
    )
    return document(title(run.summary), sections)


def document(title: str, sections: Iterable[str]) -> str:
    """A page of these sections, empty ones left out."""
    style = files("interfuse.report").joinpath("style.css").read_text(encoding="utf-8")
    return _PAGE.substitute(title=escape(title), style=style, body="\n".join(filter(None, sections)))


def _head(run: Run) -> str:
    done, wanted = run.rounds
    state = "" if run.finished else f'<p class="state">unfinished: {done} of {wanted} rounds</p>\n'
    return f'<h1>{escape(title(run.summary))}</h1>\n{state}<p class="lead">{escape(headline(run.summary))}</p>'


def _figures(summary: Json) -> str:
    found = scores(summary)
    beside = {n.title(): scores(values) for n in ("local", "pooled") if (values := reference(summary, n)) is not None}
    sent = number((summary.get("uplink_bytes") or {}).get("raw"))
    composition = [f"of {n}'s blocks: {percent(s.mean_composition)}" for n, s in beside.items() if n == "Local"]
    if found.composition is None:
        composition = ["there is no matrix of compositions"]
    own = [_over_clients(found.own), *(f"{n}: {percent(s.own.mean)}" for n, s in beside.items())]
    common = [_over_clients(found.common), *(f"{n}: {percent(s.common.mean)}" for n, s in beside.items())]
    cards = (
        _figure("mean over all compositions", percent(found.mean_composition), composition, first=True),
        _figure("own accuracy", percent(found.own.mean), own),
        _figure("global accuracy", percent(found.common.mean), common),
        _figure("uplink per client", f"{megabytes(sent / max(1, number_of_clients(summary)))} MB", ["raw, mean"]),
        _figure("uplink, sum of clients", f"{megabytes(sent)} MB", ["raw"]),
    )
    return f'<div class="figures">{"".join(cards)}</div>'


def _figure(name: str, value: str, beside: Iterable[str], *, first: bool = False) -> str:
    lines = "".join(f'<div class="beside">{escape(line)}</div>' for line in beside if line)
    return (
        f'<div class="card figure{" first" if first else ""}"><div class="name">{escape(name)}</div>'
        f'<div class="value">{escape(value)}</div>{lines}</div>\n'
    )


def _over_clients(spread: Spread) -> str:
    return "" if math.isnan(spread.std) or len(spread.per_client) < 2 else f"± {bare_percent(spread.std)} over clients"


def _warnings(warnings: Sequence[Diagnosis], finished: bool) -> str:
    if not warnings:
        text = "No warnings." if finished else "No warnings so far."
        return f'<h2>Warnings</h2>\n<p class="fine">{text}</p>'
    cards = (
        f'<div class="card warning"><h3>{escape(w.name)}</h3><p>{escape(w.text)}</p>'
        f"<p><strong>Try:</strong> {escape(w.remedy)}</p></div>"
        for w in warnings
    )
    return "<h2>Warnings</h2>\n" + "\n".join(cards)


def _compositions(summary: Json, svgs: Mapping[str, str]) -> str:
    found = scores(summary).composition
    if found is None:
        return (
            '<h2>Compositions</h2>\n<p class="note">No compositions were measured: they need blocks that fit those of '
            "other clients, and a federation that is not too large for all pairs.</p>"
        )
    local = scores(reference(summary, "local") or {}).composition
    architectures = {client.id: client.architecture for client in clients(summary)}
    layout = "stack" if MOST_SIDE_BY_SIDE < len(found) <= MOST_NUMBERS else "pair"
    panels = [_matrix_panel(found, method_name(summary), architectures, svgs.get("composition"), "composition")]
    if local is not None:
        name = "composition-local"
        panels.append(_matrix_panel(local, "Local's blocks", architectures, svgs.get(name), name))
    return (
        '<h2>Compositions</h2>\n<p class="note">Accuracy in % on the common test set of the base block of one client '
        "followed by the modular block of another. A row is a base block, a column a modular block; colour runs from "
        "0 to 100 %, and a client’s own pair is framed.</p>\n"
        f'<div class="{layout}">{"".join(panels)}</div>'
        + plot_pair(
            svgs,
            {
                f"similarity-{when}": "Linear CKA between the outputs of all base blocks on the common test set, "
                f"{when} training: 100 % for features that are equal up to rotation and scale."
                for when in ("before", "after")
            },
        )
    )


def _matrix_panel(matrix: Matrix, name: str, architectures: Mapping[int, str], svg: str | None, plot: str) -> str:
    text = f"{name}: mean {percent(mean(matrix.flat))}"
    if len(matrix) > 1:
        text += f", of swapped blocks {percent(mean_swapped(matrix))}"
    if len(matrix) > MOST_NUMBERS and svg is not None:
        inner = f"<figure>{inline_svg(svg, plot, text)}<figcaption>{escape(text)}</figcaption></figure>"
    else:
        inner = f'<p class="caption">{escape(text)}</p><div class="scroll">{_matrix(matrix, architectures)}</div>'
    return f'<div class="card">{inner}</div>\n'


def _matrix(matrix: Matrix, architectures: Mapping[int, str]) -> str:
    head = "".join(f'<th scope="col">{column}</th>' for column in range(len(matrix)))
    body = "".join(
        f'<tr><th scope="row"><span class="long">{base} {escape(architectures.get(base, ""))}</span></th>'
        + "".join(_cell(float(value), own=column == base) for column, value in enumerate(row))
        + f'<td class="mean">{bare_percent(mean(row))}</td><td class="mean">{bare_percent(std(row))}</td></tr>\n'
        for base, row in enumerate(matrix)
    )
    many = " many" if len(matrix) > MOST_SIDE_BY_SIDE else ""
    return (
        f'<table class="matrix{many}">\n<thead><tr><th scope="col">base</th>{head}'
        f'<th scope="col">mean</th><th scope="col">std</th></tr></thead>\n<tbody>\n{body}</tbody></table>'
    )


def _cell(value: float, *, own: bool) -> str:
    kind = ' class="own"' if own else ""
    shade = 0.0 if math.isnan(value) else 0.05 + 0.6 * value
    return f'<td{kind} style="background: rgba(var(--shade), {shade:.2f})">{bare_percent(value)}</td>'


def _accuracy(summary: Json, svgs: Mapping[str, str]) -> str:
    plots = plot_pair(
        svgs,
        {
            "accuracy-rounds": "Accuracy over rounds, on the fixed rows of the curve.",
            "accuracy-uplink": "Accuracy over what all clients have sent, raw, on the fixed rows of the curve.",
        },
    )
    body = "".join(
        f'<tr><th scope="row"><span class="long">{escape(name)}</span></th>{_score_cells(scores(values))}'
        f"{_score_cells(best_scores(values))}<td>{_best_round(values)}</td>"
        f'<td class="from">{bare_percent(number(values.get("stability")))}</td></tr>\n'
        for name, values in _beside(summary).items()
    )
    names = '<th class="from" scope="col">own</th><th scope="col">global</th><th scope="col">comp.</th>'
    return (
        f'<h2>Accuracy</h2>\n{plots}\n<div class="card"><p class="caption">Mean accuracy in % and its '
        "standard deviation over clients: own test shares, common test set, all compositions. Best round is that of "
        "the best validation accuracy; stability is the standard deviation of the mean global accuracy over the last "
        'ten points of the curve, in points.</p>\n<div class="scroll"><table class="wide">\n<thead>'
        '<tr><td rowspan="2"></td>'
        '<th class="from" scope="colgroup" colspan="3">last round</th>'
        '<th class="from" scope="colgroup" colspan="4">best round</th>'
        '<th class="from" rowspan="2" scope="col">stability</th></tr>\n'
        f'<tr>{names}{names}<th scope="col">round</th></tr></thead>\n<tbody>\n{body}</tbody></table></div></div>'
    )


def _beside(summary: Json) -> dict[str, Json]:
    """The run and its references by the names they go under."""
    found = {name.title(): values for name in ("local", "pooled") if (values := reference(summary, name)) is not None}
    return {method_name(summary): summary} | found


def _score_cells(found: Scores | None) -> str:
    if found is None:
        return f'<td class="from">{UNKNOWN}</td>' + f"<td>{UNKNOWN}</td>" * 2
    return f"{_own_and_global(found.own, found.common)}<td>{bare_percent(found.mean_composition)}</td>"


def _own_and_global(own: Spread, common: Spread) -> str:
    return "".join(
        f"<td{kind}>{bare_percent(spread.mean)}"
        + ("" if math.isnan(spread.std) else f"<small>± {bare_percent(spread.std)}</small>")
        + "</td>"
        for spread, kind in ((own, ' class="from"'), (common, ""))
    )


def _best_round(values: Json) -> str:
    found = (values.get("best") or {}).get("round")
    return UNKNOWN if found is None else escape(str(found))


def _metrics(summary: Json, svgs: Mapping[str, str]) -> str:
    """Metrics beyond accuracy, where they were measured."""
    if not summary.get("metrics"):
        return ""
    text = "Answers by class, samples of all clients together, as shares of the class in %; last round"
    plots = plot_pair(svgs, {f"confusion-{on}": f"{text}." for on in ("own", "global")})
    return f"<h2>Metrics beyond accuracy</h2>\n{_metric_table(summary)}\n{plots}\n{_recall_table(summary)}"


def _metric_table(summary: Json) -> str:
    measured = [name for name in METRICS if name in summary["metrics"]]
    if not measured:
        return ""
    body = "".join(
        f'<tr><th scope="row"><span class="long">{escape(name)}</span></th>'
        + "".join(_own_and_global(metric(values, m, "own"), metric(values, m, "global")) for m in measured)
        + "</tr>\n"
        for name, values in _beside(summary).items()
    )
    return (
        '<div class="card"><p class="caption">Mean in % and its standard deviation over clients, last round: own test '
        "shares, common test set. The calibration error compares softmax confidence with accuracy in 15 bins, less is "
        "better; where a method’s scores are distances it means little.</p>\n"
        f'<div class="scroll">{_own_global_table([METRICS[name] for name in measured], body)}</div></div>'
    )


def _recall_table(summary: Json) -> str:
    if "recall" not in summary["metrics"]:
        return ""
    found = {name: [mean_recalls(values, on) for on in ("own", "global")] for name, values in _beside(summary).items()}
    found = {name: sides for name, sides in found.items() if all(sides)}
    body = "".join(
        f'<tr><th scope="row"><span class="long">{escape(name)}</span></th>'
        + "".join(
            f'<td class="from">{bare_percent(own[label])}</td><td>{bare_percent(common[label])}</td>'
            for own, common in found.values()
        )
        + "</tr>\n"
        for label, name in enumerate(summary["class_names"])
    )
    return (
        "<details><summary>Recall by class, %: mean over the clients with samples of it</summary>"
        f'<div class="card scroll">{_own_global_table(found, body)}</div></details>'
    )


def _own_global_table(names: Collection[str], body: str) -> str:
    """A table with two columns under each name."""
    heads = "".join(f'<th class="from" scope="colgroup" colspan="2">{escape(name)}</th>' for name in names)
    columns = '<th class="from" scope="col">own</th><th scope="col">global</th>' * len(names)
    return (
        f'<table class="wide">\n<thead><tr><td rowspan="2"></td>{heads}</tr>\n<tr>{columns}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table>"
    )


def _bytes(summary: Json, svgs: Mapping[str, str]) -> str:
    kinds: Mapping[str, Json] = summary.get("bytes_by_kind") or {}
    rows = "".join(_bytes_row(kind, totals) for kind, totals in kinds.items())
    down = summary.get("downlink_bytes") or {}
    broadcast = {"raw": down.get("raw_broadcast"), "wire": down.get("wire_broadcast")}
    total = {"uplink": summary.get("uplink_bytes"), "downlink": down, "downlink_broadcast": broadcast}
    rows += _bytes_row("training, in all", total, total=True)
    apart = "".join(_bytes_row(heading, summary.get(f"{heading}_bytes") or {}) for heading in ("start", "evaluation"))
    wire = (summary.get("uplink_bytes") or {}).get("wire"), down.get("wire")
    return (
        '<h2>Bytes</h2>\n<div class="pair"><div class="card"><p class="caption">Raw payload in MB '
        "(10<sup>6</sup> bytes), sum over clients. Unicast counts a copy for each client, broadcast one for all."
        '</p>\n<div class="scroll"><table class="wide">\n<thead><tr>'
        '<th scope="col">message</th><th scope="col">up</th><th scope="col">down,<br>'
        f'unicast</th><th scope="col">down,<br>broadcast</th></tr></thead>\n<tbody>{rows}</tbody>\n'
        '<tbody class="group"><tr><th colspan="4" scope="rowgroup" class="soft">Not counted as training</th></tr>'
        f"{apart}</tbody></table></div>\n"
        f'<p class="note">Encoded for the wire, training: {megabytes(number(wire[0]))} MB up, '
        f"{megabytes(number(wire[1]))} MB down.</p></div>\n"
        f"{card(svgs, 'bytes', 'Raw MB by kind of message, training.')}</div>"
    )


def _bytes_row(name: str, totals: Json, *, total: bool = False) -> str:
    cells = "".join(
        f"<td>{megabytes(number((totals.get(way) or {}).get('raw')))}</td>"
        for way in ("uplink", "downlink", "downlink_broadcast")
    )
    kind = ' class="total"' if total else ""
    return f'<tr{kind}><th scope="row"><span class="long">{escape(name)}</span></th>{cells}</tr>\n'


def _classes_and_time(svgs: Mapping[str, str]) -> str:
    waiting = "Seconds by phase. Calls: how long the server waited; local work: sum over clients."
    sections = (
        ("Classes by client", card(svgs, "classes", "Samples of each class by client, held-out shares included.")),
        ("Time", card(svgs, "time", waiting)),
    )
    shown = "".join(f"<section><h2>{name}</h2>\n{card}</section>\n" for name, card in sections if card)
    return f'<div class="pair">{shown}</div>' if shown else ""


def plot_pair(svgs: Mapping[str, str], texts: Mapping[str, str]) -> str:
    """Plots side by side, each with its caption; those that there are."""
    cards = "".join(card(svgs, name, text) for name, text in texts.items())
    return f'<div class="pair">{cards}</div>' if cards else ""


def card(svgs: Mapping[str, str], name: str, text: str) -> str:
    """A plot with its caption; nothing where the run has no such plot."""
    if name not in svgs:
        return ""
    svg = inline_svg(svgs[name], name, text)
    return f'<figure class="card">{svg}<figcaption>{escape(text)}</figcaption></figure>\n'


def _again(run: Run) -> str:
    summary, environment = run.summary, run.config.get("environment") or {}
    folder = str(summary.get("run") or run.path)
    commands = [f"interfuse run {shlex.quote(f'{folder}/config.toml')}"]
    if not run.finished:
        commands.append(f"interfuse resume {shlex.quote(folder)}")
    versions = {"interfuse": summary.get("interfuse")} | dict(environment)
    disclosed = summary.get("discloses")
    facts = {
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value is not None),
        "disclosed to the server": "" if disclosed is None else ", ".join(map(str, disclosed)) or "nothing",
        "data": " ".join(str(part) for part in (summary.get("data"), summary.get("note")) if part),
        "missing replies": _failures(run.metrics),
        "virtual seconds": _virtual(summary.get("virtual_seconds") or {}),
        "seconds": f"{number(summary.get('seconds')):,.1f}" if "seconds" in summary else "",
    }
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in facts.items() if text)
    return (
        "<h2>What ran, and how to run it again</h2>\n"
        f"<pre>{escape(chr(10).join(commands))}</pre>\n<dl>\n{lines}</dl>\n{_clients(summary)}\n"
        f"<details><summary>Configuration</summary><pre>{escape(run.config_text)}</pre></details>"
    )


def _virtual(times: Json) -> str:
    return ", ".join(f"{number(seconds):,.1f} ({name})" for name, seconds in times.items())


def _failures(metrics: Sequence[Json]) -> str:
    failures = [(row["round"], failure) for row in metrics for failure in row.get("failures") or ()]
    if not failures:
        return ""
    first, failure = failures[0]
    return f"{len(failures)}; the first in round {first}, client {failure['client']}: {failure['reason']}"


def _clients(summary: Json) -> str:
    found = scores(summary)
    rows = "".join(
        _client_row(client, _at(found.own, index), _at(found.common, index))
        for index, client in enumerate(clients(summary))
    )
    table = (
        '<div class="card scroll"><table class="wide">\n<thead><tr><th scope="col">client</th><th scope="col" '
        'style="text-align: left">architecture</th><th scope="col">base</th><th scope="col">modular</th>'
        '<th scope="col">samples</th><th scope="col">own, %</th><th scope="col">global, %</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>"
    )
    opened = " open" if number_of_clients(summary) <= MOST_NUMBERS else ""
    return f"<details{opened}><summary>Clients: architecture, parameters, samples, accuracy</summary>{table}</details>"


def _client_row(client: ClientFacts, own: float, common: float) -> str:
    counts = "".join(
        f"<td>{UNKNOWN if count is None else f'{count:,}'}</td>"
        for count in (client.base, client.modular, client.samples)
    )
    return (
        f'<tr><th scope="row">{client.id}</th><td class="text"><span class="long">{escape(client.architecture)}</span>'
        f"</td>{counts}<td>{bare_percent(own)}</td><td>{bare_percent(common)}</td></tr>\n"
    )


def _at(spread: Spread, index: int) -> float:
    return spread.per_client[index] if index < len(spread.per_client) else math.nan
