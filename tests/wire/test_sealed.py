"""A sealed file notices a change, and its seal can be taken away whole, as operators are told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interfuse.coordination.record import Record, read_record
from interfuse.errors import RunError
from interfuse.wire.sealed import seal_of, sealed


@pytest.mark.parametrize("values", [{"a": 1}, {"a": {}, "b": []}, {"a": '\n, "digest": "x', "b": {"digest": "y"}}])
def test_without_the_line_digest_it_is_the_same_json(values: dict[str, object]) -> None:
    text = sealed(values)
    seal = seal_of(text.encode())
    assert seal is not None
    assert json.loads(text) == values | {"digest": seal}
    left = "".join(line for line in text.splitlines(keepends=True) if seal not in line)
    assert json.loads(left) == values
    assert seal_of(left.encode()) is None


def test_a_record_that_was_edited_as_operators_are_told_to(tmp_path: Path) -> None:
    Record(run="r", attempt=1, classes=3).write(tmp_path)
    path = tmp_path / "network.json"
    edited = path.read_text().replace('"attempt": 1', '"attempt": 2')
    path.write_text(edited)
    with pytest.raises(RunError, match="take its line `digest` away"):
        read_record(tmp_path)
    path.write_text("".join(line for line in edited.splitlines(keepends=True) if '"digest"' not in line))
    found = read_record(tmp_path)
    assert found is not None
    assert found.attempt == 2
