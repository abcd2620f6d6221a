"""Deadlines between parties go by the wall clock, and who would join after the last round is refused."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import slow
from hostile_vendor import facts
from parties import Parties, assert_equal_to_local, parties, states

from interfuse.coordination.driver import Terms, between_parties, coordinate
from interfuse.coordination.record import Participant, Record
from interfuse.engines.parties import session
from interfuse.engines.parties.frames import Call, Payload
from interfuse.engines.parties.loopback import Loopback
from interfuse.errors import ConfigError
from interfuse.runs import Silent, parse_config
from interfuse.runs.config import complete, to_toml
from interfuse.runs.folder import RunFolder

THREE = ("ant", "bee", "cat")
HURRY = {"method": f"{Path(slow.__file__)}:Hurry", "evaluation": "none", "eval_every": 100}


def sluggish() -> None:
    """A node that takes longer than the deadline for every other call."""
    honest, calls = session.Session._call, itertools.count()

    def call(self: session.Session, asked: Call, payload: Payload) -> session.Outgoing:
        if next(calls) % 2 == 0:
            time.sleep(2.5)
        return honest(self, asked, payload)

    session.Session._call = call  # type: ignore[method-assign]


def rows_of(found: Parties) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (found.run / "metrics.jsonl").read_text().splitlines()]


def prepared(three: Parties, **recipe: Any) -> None:
    allow = {"methods": [HURRY["method"]], "disclosures": ["statistics"]}
    three.prepare(HURRY | recipe, ["logistic"], allow=allow)


def test_who_is_late_is_undone_and_takes_part_in_the_next_call_that_it_can_take(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        prepared(three, rounds=6, settings={"deadline": 1.0, "minimum": 2})
        coordinator = three.coordinate("--classes", "3", "--commit-every", "100")
        nodes = [three.node(name, lie=sluggish if name == "cat" else None) for name in THREE]
        assert coordinator.wait() == 0, three.everything()
        assert [process.wait() for process in nodes] == [0, 0, 0], three.everything()
        rows = rows_of(three)
        late = [{f["client"] for f in row["failures"] if f["kind"] == "late"} for row in rows]
        assert late[1] == {2}  # it sleeps for two calls and a half
        assert any(2 not in missing for missing in late[2:])  # and then it is there
        assert "undone" in [event["event"] for event in three.events("cat")]
        waits = [row["virtual_seconds"]["wall"] for row in rows]
        assert waits == sorted(waits)
        assert waits[1] - waits[0] > 0.9
        in_time = sum(2 not in missing for missing in late[1:])
        state = states(three.run, {"client-00002": tmp_path / "cat" / "state"})
        assert state["client-00002:state/asked"].item() == in_time  # calls that were taken back never happened


def test_a_deadline_that_everybody_meets_changes_no_bit(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        settings = {"local_steps": 1, "batch_size": 8}
        recipe = {"method": "ifl-partial", "settings": settings | {"deadline": 500.0}}
        config = three.prepare(recipe, ["logistic"], allow={"methods": ["ifl-partial"]})
        coordinator = three.coordinate()
        nodes = three.all_nodes()
        assert coordinator.wait() == 0, three.everything()
        assert [process.wait() for process in nodes] == [0, 0, 0], three.everything()
        assert_equal_to_local(three, config)


def test_a_recipe_with_virtual_devices_is_refused(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant",), secure=False) as one:
        one.prepare({"devices": {"slow": 0.5}}, ["logistic"])
        coordinator = one.coordinate()
        assert coordinator.wait() == 2
        assert "between parties time is real" in coordinator.text()


@pytest.mark.parametrize("method", ["fedbuff"])
def test_a_stream_between_parties_waits_for_everybody_and_goes_on(method: str, tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        allow = {"methods": [method]}
        three.prepare({"method": method, "settings": {"batch_size": 16}}, ["logistic"], allow=allow)
        coordinator = three.coordinate()
        nodes = three.all_nodes()
        assert coordinator.wait() == 0, three.everything()
        assert [process.wait() for process in nodes] == [0, 0, 0], three.everything()
        assert [row["round"] for row in rows_of(three)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("asked", "setting"), [({"joins_at": 4}, "joins_at = 4"), ({"teacher": 1}, "teacher = 1")])
def test_newcomers_who_cannot_join_are_refused_before_nodes_are_waited_for(
    asked: dict[str, int], setting: str, tmp_path: Path
) -> None:
    recipe = parse_config({"method": "ifl-late-answers", "rounds": 3, "settings": {"joins_at": 2} | asked})
    terms = Terms(Loopback(), nodes=2)
    with pytest.raises(ConfigError, match=setting):
        coordinate(recipe, tmp_path / "run", terms, Silent())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"train_rows": 100}, "train_rows: .* leave it out"),
        ({"test": "source"}, "Set divide = 'train', and test to"),
        ({"divide": "all"}, "Set divide = 'train', and test to"),
        ({"protocol": "htfllib"}, "which a protocol may set, .* Set divide = 'train'"),
    ],
)
def test_what_divides_the_rows_of_a_simulation_is_refused(asked: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        coordinate(parse_config(asked), tmp_path / "run", Terms(Loopback(), nodes=2), Silent())
    assert not (tmp_path / "run").exists()


def test_another_recipe_in_a_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Where nobody has begun the run there, nothing is lost with it."""
    config, path = between_parties(parse_config({"rounds": 3}), 2), tmp_path / "run"
    RunFolder(path).create(to_toml(complete(config, config.make_method())))
    record, begun = Record(run="first", classes=10), Participant(client=0, facts=facts(""))
    for nodes, told in (({}, r"No node has begun it: .* \(rm -r .*run\)$"), ({"ant": begun}, "rounds: 3 became 4$")):
        record.model_copy(update={"nodes": nodes}).write(path)
        with pytest.raises(ConfigError, match=f"holds another run: .*{told}"):
            coordinate(parse_config({"rounds": 4}), path, Terms(Loopback(), nodes=2), Silent())
