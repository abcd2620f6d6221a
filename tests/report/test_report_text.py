from __future__ import annotations

import math
from typing import Any

import pytest
from fake_run import LOCAL, POOLED, FakeRun, summary_of
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from interfuse.report import console_summary
from interfuse.report.text import percent, size, title
from interfuse.runs import Summary
from interfuse.runs.words import counts, percents
from interfuse.wire import Volume

UNKNOWN = {"mean": None, "std": None, "per_client": []}


def values(own: float | None = None, compositions: list[list[float]] | None = None, **more: Any) -> Summary:
    known = {"own_accuracy": {"mean": own, "std": 0.0, "per_client": [own, own]}, "global_accuracy": UNKNOWN}
    return summary_of(FakeRun(clients=2), **known | {"composition_matrix": compositions, "best": None} | more)


def test_headline_says_what_was_bought() -> None:
    local, pooled = values(0.93, [[0.9, 0.1], [0.1, 0.9]]), values(0.97)
    summary = values(0.95, [[0.9, 0.8], [0.8, 0.9]], beside={"local": local, "pooled": pooled})
    assert summary.headline.text == (
        "Collaboration bought 35.0 points: over all 4 pairs of a base block and a modular block the mean accuracy is "
        "85.0 %, beside 50.0 % for blocks of clients that trained alone; "
        "on their own test shares clients reach 95.0 %, beside 93.0 % for Local and 97.0 % for Pooled."
    )


@pytest.mark.parametrize(
    ("own", "start"),
    [
        (0.95, "Collaboration bought 2.0 points: on"),
        (0.92, "Collaboration cost 1.0 point: on"),
        (0.93, "Collaboration did not change this mean: on"),
    ],
)
def test_headline_without_compositions(own: float, start: str) -> None:
    assert values(own, beside={"local": values(0.93)}).headline.text.startswith(start)


def test_headline_of_a_reference_claims_nothing() -> None:
    summary = values(0.95, method="pooled", beside={"local": values(0.5)})
    assert summary.headline.text == "On their own test shares clients reach 95.0 %, beside 50.0 % for Local."


def test_headline_without_own_shares_uses_the_common_test_set() -> None:
    common, alone = (UNKNOWN | {"mean": mean, "per_client": [mean] * 2} for mean in (0.9, 0.8))
    summary = values(global_accuracy=common, beside={"local": values(0.5, global_accuracy=alone)})
    assert summary.headline.text == (
        "Collaboration bought 10.0 points: on the common test set clients reach 90.0 %, beside 80.0 % for Local."
    )


def test_headline_of_nothing() -> None:
    assert values().headline.text == "No accuracy has been measured."


@given(st.floats(0, 1), st.floats(0, 1))
def test_printed_difference_is_that_of_the_printed_numbers(own: float, alone: float) -> None:
    text = values(own, beside={"local": values(alone)}).headline.text
    difference = round(float(percent(own)[:-2]) - float(percent(alone)[:-2]), 1)
    expected = (
        "did not change this mean"
        if difference == 0
        else f"{'bought' if difference > 0 else 'cost'} {abs(difference):.1f} point"
    )
    assert expected in text


def test_title() -> None:
    summary = summary_of(FakeRun(clients=2, rounds=1), seed=3)
    assert title(summary) == "ifl on digits, 2 clients, 1 round, seed 3"


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (0, "0"), (24, "24 B"), (144.5, "144.5 B"), (999.97, "1.00 kB"), (55_400, "55.4 kB"), (8_852_480, "8.85 MB"),
        (613_400_000, "613.4 MB"), (1_234_567_890, "1.23 GB"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_sizes_have_a_unit_that_fits(bytes_: float, text: str) -> None:
    assert size(bytes_) == text


@given(st.integers(1, 10**17))
def test_sizes_keep_three_figures(bytes_: int) -> None:
    value, unit = size(bytes_).split()
    factor = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}[unit]
    assert float(value) * factor == pytest.approx(bytes_, rel=0.005)
    assert float(value) < 1000


def test_numbers_have_the_digits_of_what_they_stand_beside_and_a_minus_that_is_one() -> None:
    assert size(44.3e6, 0.0213e6) == "44.3 ± 0.0 MB"
    assert size(1730, 21.4) == "1.73 ± 0.02 kB"
    assert size(1000, 0.0) == "1.00 kB"
    assert percents(-0.053, 0.0241) == "−5.3 ± 2.4"
    assert percents(-0.0004) == "0.0"
    assert percent(-0.5) == "−50.0 %"
    assert (counts(11_200.0), counts(11_200.5, 0.7), counts(3.0, 1.2)) == ("11,200", "11,200.5 ± 0.7", "3.0 ± 1.2")


def printed(summary: Summary, width: int = 100) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(console_summary(summary))
        return console.export_text().splitlines()


def test_console_leads_with_compositions_then_own_accuracy() -> None:
    lines = printed(summary_of(references=(LOCAL, POOLED)))
    assert lines[0].startswith("mean over all compositions  94.3 %   of Local's blocks  29.9 %")
    assert lines[1].startswith("own accuracy  95.9 %   Local  88.9 %   Pooled  97.9 %")
    assert lines[2].startswith("Collaboration bought 64.4 points:")
    assert any("95.0  94.3  94.1  94.5" in line and "88.0  10.8  10.6  11.0" in line for line in lines)
    assert any(line.split() == ["Local", "88.9", "±", "0.3", "87.6", "±", "0.3", "29.9"] for line in lines)
    assert lines[-2].startswith("uplink: 11.1 MB per client, 44.3 MB in sum")
    assert lines[-1].startswith("report: runs/run/report.html")


def test_console_tells_what_went_up_before_the_rounds() -> None:
    summary = summary_of()
    start = summary.start_bytes.model_copy(update={"uplink": Volume(813_000, 813_000)})
    lines = printed(summary.model_copy(update={"start_bytes": start}))
    assert lines[-2].endswith("in sum; 813.0 kB more in sum before the first round")
    sent = Volume(44_300_000, 4_000_000)
    lines = printed(summary.model_copy(update={"codecs": {"default": "int8"}, "uplink_bytes": sent}))
    assert lines[-2].startswith("uplink on the wire (44.3 MB before codecs): 1.00 MB per client, 4.00 MB in sum")


@pytest.mark.parametrize("fake", [FakeRun(compositions=False), FakeRun(clients=1), FakeRun(clients=40), LOCAL])
def test_console_of_other_runs(fake: FakeRun) -> None:
    lines = printed(summary_of(fake, (POOLED,)), width=60)
    assert max(map(len, lines)) <= 60
    assert lines[-1].startswith("report: ")
    assert "nan" not in "".join(lines)


def test_console_takes_no_markup_from_names() -> None:
    lines = printed(summary_of(FakeRun(method="[red]x[blue]")))
    assert any("[red]x[blue]" in line for line in lines)


def test_methods_that_share_no_features_are_judged_by_their_own_accuracy() -> None:
    summary, other = (summary_of(FakeRun(discloses=(kind,)), (LOCAL,)) for kind in ("prototypes", "features"))
    assert "pairs" not in summary.headline.text
    assert summary.headline.text.split(":")[0] != other.headline.text.split(":")[0]
