from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interfuse.errors import RunError
from interfuse.wire import Entry, Ledger, Totals, Volume, from_json, to_json

FIRST = Entry(0, "training", 0, "train_base", 0, "down", "Fused", "broadcast", 100, 60)

entries = st.builds(
    Entry,
    round=st.integers(0, 2),
    heading=st.sampled_from(["training", "evaluation", "start", "transport"]),
    call=st.integers(0, 2),
    handler=st.text(max_size=5),
    client=st.integers(0, 9),
    direction=st.sampled_from(["up", "down"]),
    kind=st.sampled_from(["Fused", "Outputs", "é\n"]),
    casting=st.sampled_from(["broadcast", "unicast"]),
    raw=st.integers(0, 2**50),
    wire=st.integers(0, 2**50),
)


def volume(chosen: Iterable[Entry]) -> Volume:
    chosen = list(chosen)
    return Volume(sum(entry.raw for entry in chosen), sum(entry.wire for entry in chosen))


def counted_again(log: list[Entry], by_kind: bool = True) -> Totals:
    """The totals from their definition, over a whole log of one heading."""
    down = [entry for entry in log if entry.direction == "down"]
    calls: dict[tuple[int, str, int], list[Entry]] = defaultdict(list)
    for entry in down:
        if entry.casting == "broadcast":
            calls[entry.round, entry.heading, entry.call].append(entry)
    once = [entry for entry in down if entry.casting == "unicast"] + [copies[0] for copies in calls.values()]
    kinds = {entry.kind for entry in log} if by_kind else set()
    return Totals(
        volume(entry for entry in log if entry.direction == "up"),
        volume(down),
        volume(once),
        {kind: counted_again([entry for entry in log if entry.kind == kind], False) for kind in kinds},
    )


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Entries in which the copies of one broadcast have one kind, as a call sends one message to all."""
    return [
        dataclasses.replace(entry, kind=f"K{entry.call % 2}") if entry.casting == "broadcast" else entry
        for entry in draw(st.lists(entries, max_size=30))
    ]


@settings(deadline=None)
@given(log=logs())
def test_totals_follow_from_their_definition(log: list[Entry]) -> None:
    ledger = Ledger()
    for entry in log:
        ledger.append(entry)
    for heading in ("training", "evaluation", "start", "transport"):
        chosen = [entry for entry in log if entry.heading == heading]
        assert ledger.totals(heading) == counted_again(chosen)


@settings(deadline=None)
@given(log=logs(), cut=st.integers(0, 30))
def test_a_ledger_read_back_has_the_same_totals_and_goes_on_alike(log: list[Entry], cut: int) -> None:
    whole = Ledger()
    for entry in log:
        whole.append(entry)
    resumed = Ledger.replay(to_json(entry) + "\n" for entry in log[:cut])
    assert resumed.drain() == []
    for entry in log[cut:]:
        resumed.append(entry)
    for heading in ("training", "evaluation", "start", "transport"):
        assert resumed.totals(heading) == whole.totals(heading)


@settings(deadline=None)
@given(entry=entries)
def test_an_entry_is_one_line_of_ascii_and_comes_back(entry: Entry) -> None:
    line = to_json(entry)
    assert line.isascii()
    assert "\n" not in line
    assert from_json(line) == entry
    assert json.loads(line) == dataclasses.asdict(entry)


def test_a_broadcast_counts_once_and_each_receiver_counts() -> None:
    ledger = Ledger()
    for client in range(3):
        ledger.append(dataclasses.replace(FIRST, client=client))
        ledger.append(dataclasses.replace(FIRST, client=client, call=1, casting="unicast"))
        ledger.append(dataclasses.replace(FIRST, client=client, call=2, kind="Model"))
        ledger.append(dataclasses.replace(FIRST, client=client, direction="up", casting="unicast", kind="Outputs"))
    totals = ledger.totals()
    assert totals.downlink == Volume(900, 540)
    assert totals.downlink_broadcast == Volume(500, 300)
    assert totals.by_kind["Model"] == Totals(Volume(), Volume(300, 180), Volume(100, 60))
    assert totals.uplink == Volume(300, 180)
    assert totals.by_kind["Outputs"] == Totals(Volume(300, 180), Volume(), Volume())
    assert ledger.totals("evaluation") == Totals(Volume(), Volume(), Volume())


def test_copies_are_recognised_over_a_long_run_and_memory_does_not_grow() -> None:
    ledger = Ledger()
    for number in range(500):
        for client in range(2):
            ledger.append(dataclasses.replace(FIRST, round=number, client=client))
            late = dataclasses.replace(FIRST, round=max(number - 15, 0), client=client + 2)
            ledger.append(late)
    assert ledger.totals().downlink_broadcast == Volume(500 * 100, 500 * 60)
    assert len(ledger._broadcasts) <= 16


def test_entries_are_handed_over_once() -> None:
    ledger = Ledger()
    second = dataclasses.replace(FIRST, round=1)
    ledger.append(FIRST)
    ledger.append(second)
    assert ledger.drain() == [FIRST, second]
    assert ledger.drain() == []
    assert ledger.totals().downlink == Volume(200, 120)


@pytest.mark.parametrize("ends", [range(1, 140)])
def test_a_last_line_cut_anywhere_is_dropped(ends: range) -> None:
    line = to_json(FIRST)
    assert ends.stop < len(line)
    for end in ends:
        replayed = Ledger.replay([line + "\n", line[:end]])
        assert replayed.totals().downlink == Volume(100, 60)
    assert Ledger.replay([line + "\n", line]).totals().downlink == Volume(200, 120)
    assert Ledger.replay([]).totals().downlink == Volume()


def test_a_bad_line_elsewhere_is_named() -> None:
    good = to_json(FIRST) + "\n"
    for lines in ([good, good[:30] + "\n", good], [good, good[:30], good], [good, "{}\n"], [good, "\n", good]):
        with pytest.raises(RunError, match="line 2 of the ledger"):
            Ledger.replay(lines)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("round", -1),
        ("round", True),
        ("wire", 1.0),
        ("client", "0"),
        ("heading", "other"),
        ("heading", ["training"]),
        ("direction", None),
        ("casting", "both"),
        ("kind", 3),
        ("handler", None),
        ("more", 1),
    ],
)
def test_only_entries_are_read(key: str, value: object) -> None:
    with pytest.raises(RunError, match=key if key != "more" else "has the fields"):
        from_json(json.dumps(dataclasses.asdict(FIRST) | {key: value}))


@pytest.mark.parametrize("line", ["", "[]", "3", "{", "[" * 100_000, "1" * 5000, "\x00"])
def test_what_is_no_entry_is_a_run_error(line: str) -> None:
    with pytest.raises(RunError):
        from_json(line)
