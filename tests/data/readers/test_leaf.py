"""LEAF's JSON: what is read, and that damage is refused by file, user and sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interfuse.data import Dataset, load
from interfuse.data.readers import read_path
from interfuse.data.readers.leaf import FEMNIST, SHAKESPEARE
from interfuse.data.reading import ReadOptions
from interfuse.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
TEXT = "Now is the winter of our discontent\nMade glorious summer by this sun of York;"


def leaf(data: dict[str, tuple[list[Any], list[Any]]]) -> dict[str, Any]:
    return {
        "users": [*data],
        "num_samples": [len(y) for _, y in data.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in data.items()},
    }


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def images(rows: int) -> list[list[float]]:
    return RNG.random((rows, 784)).round(3).tolist()


def windows(text: str, length: int = 10) -> tuple[list[str], list[str]]:
    starts = range(len(text) - length)
    return [text[at : at + length] for at in starts], [text[at + length] for at in starts]


def loaded(path: Path, **options: Any) -> Dataset:
    return read_path(path, ReadOptions(**options))


def test_femnist_keeps_its_classes_and_its_writers(tmp_path: Path) -> None:
    ada, bea, test = (images(2), [0, 1]), (images(3), [9, 9, 2]), (images(1), [5])
    written(tmp_path / "train/all_data_1.json", leaf({"f0001_02": bea}))
    written(tmp_path / "train/all_data_0.json", leaf({"f0000_14": ada, "f0003_01": ([], [])}))
    written(tmp_path / "train/._all_data_0.json", "debris of a file browser")
    written(tmp_path / "test/all_data_0.json", leaf({"f0000_14": test, "f0009_01": test}))
    data = loaded(tmp_path)
    assert data.class_names == FEMNIST
    assert (len(FEMNIST), FEMNIST[10], FEMNIST[36], FEMNIST[61]) == (62, "A", "a", "z")
    assert (data.shape, data.x_train.dtype) == ((1, 28, 28), torch.float32)
    np.testing.assert_array_equal(data.x_train.reshape(-1, 784), np.array(ada[0] + bea[0], np.float32))
    assert data.y_train.tolist() == [0, 1, 9, 9, 2]
    assert data.groups.tolist() == [0, 0, 1, 1, 1]
    assert data.y_test.tolist() == [5, 5]
    facts = dict(data.reading.facts)
    assert "2 users, the natural clients; 1 of them without test samples" in facts["groups"]
    assert "2 users, 1 of them without training samples" in facts["test"]
    one_file = loaded(tmp_path / "train/all_data_1.json")
    assert (one_file.y_train.tolist(), len(one_file.y_test)) == ([9, 9, 2], 0)
    assert len(loaded(tmp_path / "train").y_train) == 5
    tmp_path.joinpath("femnist").mkdir()
    for part in ("train", "test"):
        written(tmp_path / "femnist/data" / part / "all_data_0.json", leaf({"f0000_14": test}))
    assert loaded(tmp_path / "femnist").y_test.tolist() == [5]


def test_digits_that_may_be_femnist_are_asked_about(tmp_path: Path) -> None:
    path = written(tmp_path / "mnist.json", leaf({"f_00000": (images(2), [0, 9])}))
    with pytest.raises(DataError, match="can be digits alone, or FEMNIST.*give classes"):
        loaded(path)
    assert loaded(path, classes=tuple("0123456789")).classes == 10
    letters = written(tmp_path / "letters.json", leaf({"f_00000": (images(2), [0, 10])}))
    assert loaded(letters).class_names == FEMNIST
    beyond = written(tmp_path / "beyond.json", leaf({"f_00000": (images(2), [0, 62])}))
    with pytest.raises(DataError, match="labels go from 0 to 62, but FEMNIST's are 0 to 61"):
        loaded(beyond)


def test_rows_of_other_numbers_are_a_table(tmp_path: Path) -> None:
    path = written(tmp_path / "synthetic.json", leaf({"a": ([[1, 2.5, -3]], [1.0]), "b": ([[0, 0, 1e8]], [0.0])}))
    data = loaded(path)
    assert data.x_train.tolist() == [[1, 2.5, -3], [0, 0, 1e8]]
    assert (data.y_train.tolist(), data.classes) == ([1, 0], 2)
    with pytest.raises(DataError, match="samples are 3 numbers; layout = 'images' does not fit"):
        loaded(path, layout="images")
    with pytest.raises(ConfigError, match="label means nothing for LEAF.s JSON"):
        loaded(path, label=("y",))


def test_shakespeare_is_characters_and_unbroken_texts_are_blocks(tmp_path: Path) -> None:
    assert (len(SHAKESPEARE), len(set(SHAKESPEARE))) == (80, 80)
    x, y = windows(TEXT)
    cut = (x[:20] + x[31:], y[:20] + y[31:])  # nothing goes on from row 19 to row 20
    data = loaded(written(tmp_path / "all_data.json", leaf({"ROMEO": cut, "JULIET": (x[:4], y[:4])})))
    assert ["".join(SHAKESPEARE[i] for i in row) for row in data.x_train.tolist()] == cut[0] + x[:4]
    assert "".join(SHAKESPEARE[i] for i in data.y_train.tolist()) == "".join(cut[1] + y[:4])
    assert (data.x_train.dtype, data.classes, data.class_names[:2]) == (torch.int64, 80, ("newline", "space"))
    rest = len(cut[0]) - 20
    assert data.blocks.tolist() == [0] * 20 + [1] * rest + [2] * 4
    assert data.groups.tolist() == [0] * (20 + rest) + [1] * 4


def test_of_a_single_user_an_unbroken_text_is_held_out(tmp_path: Path) -> None:
    x, y = windows(TEXT)
    path = written(tmp_path / "one.json", leaf({"ROMEO": (x[:20] + x[31:], y[:20] + y[31:])}))
    data, whole = load(path), loaded(path)
    assert sorted([len(data.y_train), len(data.y_test)]) == sorted(whole.blocks.unique(return_counts=True)[1].tolist())
    with pytest.raises(DataError, match="all rows are of one group, .* give test rows"):
        load(written(tmp_path / "unbroken.json", leaf({"ROMEO": (x, y)})))


def test_another_alphabet_is_given_as_classes(tmp_path: Path) -> None:
    path = written(tmp_path / "all_data.json", leaf({"u": (["äb", "bä"], ["b", "a"])}))
    with pytest.raises(DataError, match="user 'u', sample 0 has the character 'ä', which is not among the 80"):
        loaded(path)
    data = loaded(path, classes=("ä", "a", "b"))
    assert (data.x_train.tolist(), data.y_train.tolist()) == ([[0, 2], [2, 0]], [2, 1])
    with pytest.raises(DataError, match="single characters"):
        loaded(path, classes=("äb", "a"))


GOOD = {"a": ([[1, 2], [3, 4]], [0, 1]), "b": ([[5, 6]], [1])}


def changed(**keys: Any) -> dict[str, Any]:
    return leaf(GOOD) | keys


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (json.dumps(leaf(GOOD))[:-9], "cannot read .*all.json as JSON"),
        (changed(users=["a"]), "1 users, but 2 num_samples"),
        (changed(users=["a", "c"]), "user_data has 'b', who is not among users"),
        (changed(users=["a", "b", "c"], num_samples=[2, 1, 0]), "user 'c': listed among users, but user_data has no"),
        (changed(num_samples=[2, 3]), "user 'b': num_samples says 3, but x has 1 and y 1"),
        (changed(hierarchies=["KING"]), "hierarchies needs one entry for each of 2 users"),
        (changed(user_data=[]), "it needs 'user_data', a mapping"),
        (changed(num_samples=None), "it needs 'num_samples', a list"),
        (leaf(GOOD | {"b": ([[5, 6, 7]], [1])}), "user 'b', sample 0 of x has 3 numbers, but the first one 2"),
        (leaf(GOOD | {"b": ([[5, None]], [1])}), "user 'b', sample 0 of x is neither numbers nor a text"),
        (leaf(GOOD | {"a": ([[], []], [0, 1])}), "user 'a', sample 0 of x has 0 numbers"),
        (json.dumps(leaf(GOOD)).replace("5", "1e999"), "user 'b': x has a number that is too large"),
        (leaf(GOOD | {"b": ([[5, 6]], ["1"])}), "user 'b', sample 0 of y is '1'"),
        (json.dumps(leaf(GOOD)).replace("5", "NaN"), "NaN is no number"),
        (json.dumps(leaf(GOOD)).replace('"b": {', '"a": {'), "'a' is there twice"),
        (leaf(GOOD | {"a": ([], []), "b": ([], [])}), "has no training samples"),
        # Sent140, Reddit, CelebA
        (
            leaf({"u": ([["1467", "Mon", "query", "user", "a text", "a"]], [0])}),
            "Sent140's.*in a function: --data file",
        ),
        (leaf({"u": ([[["<BOS>", "a"]]], [{"target_tokens": [["a"]]}])}), "Reddit's are lists of words"),
        (leaf({"u": (["000001.jpg"], [1])}), "user 'u', sample 0: a text needs the one character.*CelebA's"),
        (leaf({"u": (["ab", "abc"], ["c", "d"])}), "sample 1: its text has 3 characters, but the first one 2"),
        (leaf({"u": (["ab", "bc"], ["c", "de"])}), "sample 1: a text needs the one character"),
    ],
)
def test_damage_and_other_data_of_leaf(content: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        loaded(written(tmp_path / "all.json", content))


def test_a_user_is_in_one_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"train/{name}.json", leaf(GOOD))
    with pytest.raises(DataError, match="train: .*b.json, user 'a' is also .*a.json, user 'a'"):
        loaded(tmp_path)


def test_other_json_is_not_leaf(tmp_path: Path) -> None:
    written(tmp_path / "config.json", {"num_clients": 3})
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(DataError, match="is not LEAF.s JSON, "):
            loaded(path)


@pytest.mark.parametrize(
    ("x", "y", "problem"),
    [
        ([[10**400, 1]], [0], "x has a number that is too large"),
        ([[1, 2]], [10**400], "sample 0 of y is too large"),
        ([[1, 2]], [2**53 + 1], "sample 0 of y is too large"),
    ],
)
def test_whole_numbers_that_no_float_holds(x: list[Any], y: list[Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        loaded(written(tmp_path / "all.json", leaf({"a": (x, y)})))
