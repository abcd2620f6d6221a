"""Tasks of easy-VQA: who has which pictures, what a domain makes of a point, what a question is as tokens."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch

from interfuse.data import Dataset, Natural, ReadOptions, available, load, make_shares
from interfuse.data.easy_vqa import ANSWERS, DOMAINS, LENGTH, PACKAGE, SIDE, WORDS, averaged, encoded, kind_of
from interfuse.data.inputs import named
from interfuse.data.packages import Package
from interfuse.errors import ConfigError, DataError

installed = pytest.mark.skipif(PACKAGE.folder is None, reason="easy-vqa is not installed")


def pictures(dataset: Dataset, part: str = "train") -> np.ndarray:
    return named(dataset.x_train if part == "train" else dataset.x_test)["picture"].numpy()


@pytest.fixture(scope="module")
def sets() -> dict[str, Dataset]:
    return {name: load(name) for name in ("easy-vqa", "easy-vqa-domains", "easy-vqa-unseen", "easy-vqa-public")}


def test_a_domain_of_one_point() -> None:
    points = np.array([[200, 40, 10], [255, 0, 0], [17, 130, 131], [9, 9, 9]], np.uint8)
    x = points[:, :, None, None]

    def turned(point: np.ndarray, by: float) -> list[int]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(point / 255))
        return [round(255 * channel) for channel in colorsys.hsv_to_rgb((hue + by) % 1, saturation, value)]

    made = {name: domain(x)[:, :, 0, 0].tolist() for name, domain in DOMAINS.items()}
    assert made["original"] == points.tolist()
    assert made["bgr"] == points[:, ::-1].tolist()
    assert made["inverted"] == (255 - points).tolist()
    assert made["hue"] == [turned(point, 1 / 3) for point in points]
    assert made["inverted-hue"] == [turned(point, 1 / 3) for point in 255 - points]
    assert made["opposite"] == [turned(point, 1 / 2) for point in points]
    assert made["hue"][0] == [10, 200, 40]
    assert made["opposite"][0] == [10, 170, 200]


def test_a_question_ends_at_the_last_place() -> None:
    tokens = encoded("what color is the shape?")
    assert len(tokens) == LENGTH
    assert tokens[:4] == [0, 0, 0, 0]
    assert [WORDS[token - 1] for token in tokens[4:]] == ["what", "color", "is", "the", "shape", "?"]
    with pytest.raises(DataError, match="the word 'purple'"):
        encoded("what is purple?")
    with pytest.raises(DataError, match="11 words"):
        encoded("what " * 10 + "?")


def test_kinds_of_questions() -> None:
    asked = {
        ("what color is the circle?", "teal"): "colour",
        ("what is the teal shape?", "circle"): "shape",
        ("is there a teal shape?", "no"): "colour-yes-no",
        ("is there a circle?", "yes"): "shape-yes-no",
    }
    assert {one: kind_of(*one) for one in asked} == asked


def test_what_is_not_installed_names_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = Package("no-such-set", "1.2", "no_such_set_at_all", "data", (".txt",), "0" * 64)
    assert absent.folder is None
    with pytest.raises(DataError, match="pip install no-such-set==1.2"):
        absent.files()
    (tmp_path / "own_set" / "data").mkdir(parents=True)
    (tmp_path / "own_set" / "data" / "a.txt").write_text("one")
    (tmp_path / "own_set" / "data" / "b.md").write_text("not data")
    monkeypatch.syspath_prepend(tmp_path)
    # sha256 of "a.txt 3\none"
    own = Package("own", "1", "own_set", "data", (".txt",), "")
    with pytest.raises(DataError, match=r"does not hold the files of own 1.*--force-reinstall"):
        own.files()


@installed
class TestTheSets:
    def test_who_has_which_pictures(self, sets: dict[str, Dataset]) -> None:
        """Pictures are told apart by what the domain leaves as it is: sorted channels of all points would do, but
        blocks are their numbers, and the same in all sets."""
        owned = {}
        for name in ("easy-vqa-domains", "easy-vqa-unseen", "easy-vqa-public"):
            blocks, groups = sets[name].blocks, sets[name].groups
            assert blocks is not None
            assert groups is not None
            owned[name] = set(blocks.tolist())
            if name != "easy-vqa-public":
                of_task = [set(blocks[groups == task].tolist()) for task in groups.unique()]
                assert sum(map(len, of_task)) == len(owned[name])  # no two clients have a picture in common
        together = set().union(*owned.values())
        assert sum(map(len, owned.values())) == len(together)
        assert sets["easy-vqa"].blocks is not None
        assert together <= set(sets["easy-vqa"].blocks.tolist())
        # and test pictures are none of the training pictures
        whole = sets["easy-vqa"]
        seen = {picture.tobytes() for picture in pictures(whole)}
        assert not seen & {picture.tobytes() for picture in pictures(whole, "test")}

    def test_a_row_is_that_of_the_package(self, sets: dict[str, Dataset]) -> None:
        assert PACKAGE.folder is not None
        whole, x = sets["easy-vqa"], pictures(sets["easy-vqa"])
        first = averaged((PACKAGE.folder / "train" / "images" / "0.png").read_bytes())
        assert x.shape[1:] == (3, SIDE, SIDE)
        np.testing.assert_array_equal(x[0], first)
        assert named(whole.x_train)["question"][0].tolist() == encoded("what color is the shape?")
        assert ANSWERS[int(whole.y_train[0])] == "blue"
        assert first[:, 0, 0].tolist() == [248, 234, 230]

    def test_a_domain_of_a_task(self) -> None:
        one, other = (load("easy-vqa-domains", tasks=[f"{name}/colour", "bgr/shape"]) for name in ("original", "hue"))
        assert one.groups is not None
        mine = one.groups.numpy() == 0
        np.testing.assert_array_equal(pictures(other)[mine], pictures(one)[mine][:, [2, 0, 1]])
        np.testing.assert_array_equal(pictures(other)[~mine], pictures(one)[~mine])

    def test_digests(self, sets: dict[str, Dataset]) -> None:
        assert {name: dataset.digest for name, dataset in sets.items()} == {
            "easy-vqa": "aca19d1ac94e3d21d4f83f26cf2a55f8",
            "easy-vqa-domains": "d5cb485c09d0335222173e0b51fc51bb",
            "easy-vqa-unseen": "c7feba3a6aab8f5d388c973da5d0106e",
            "easy-vqa-public": "2d00da0a64a9170a71b8b677af4be16a",
        }

    def test_facts_and_answers(self, sets: dict[str, Dataset]) -> None:
        infos = {info.name: info for info in available()}
        for name, dataset in sets.items():
            info = infos[name]
            assert (info.rows_train, info.rows_test) == (len(dataset.y_train), len(dataset.y_test))
            assert (info.shape, info.classes, info.state) == (dataset.shape, 13, "installed")
            assert dataset.class_names == ANSWERS
            assert dataset.groups is not None
            for group, task in enumerate(dataset.group_names):
                counts = np.bincount(dataset.y_train[dataset.groups == group].numpy(), minlength=13)
                there = range(8) if task.endswith("/colour") else range(8, 11)
                assert counts.sum() == counts[list(there)].sum()
                # nobody gains much by one answer for all
                assert counts.max() < 1.6 * counts.sum() / len(there)

    def test_a_client_has_its_task_and_the_test_rows_of_it(self, sets: dict[str, Dataset]) -> None:
        dataset = sets["easy-vqa-domains"]
        assert dataset.groups is not None
        assert dataset.test_groups is not None
        assert dataset.blocks is not None
        for client, share in enumerate(make_shares(dataset, Natural(drawn=False), 10, 0, 0.2, "source")):
            assert share.held is not None
            assert set(dataset.groups[share.rows].tolist()) == {client} == set(dataset.test_groups[share.held].tolist())
            assert len(share.held) == 200
            sides = [set(dataset.blocks[rows].tolist()) for rows in (share.train, share.validation)]
            assert all(sides)
            assert not sides[0] & sides[1]

    def test_chosen_tasks_and_rows(self) -> None:
        tasks = ["hue/colour", "hue/colour", "bgr/colour-yes-no"]
        dataset = load("easy-vqa-domains", tasks=tasks, rows=[100, 20, 30], test_rows=50)
        assert dataset.groups is not None
        assert dataset.blocks is not None
        assert dataset.group_names == tuple(tasks)
        assert dataset.groups.bincount().tolist() == [100, 20, 30]
        assert len(dataset.y_test) == 150
        twins = [set(dataset.blocks[dataset.groups == twin].tolist()) for twin in (0, 1)]
        assert not twins[0] & twins[1]
        assert set(dataset.y_train[dataset.groups == 2].tolist()) == {11, 12}
        few = load("easy-vqa-domains", tasks=tasks, rows=20)
        assert torch.equal(few.y_train[:20], dataset.y_train[:20])

    def test_one_task_read_alone(self) -> None:
        tasks = ["hue/colour", "bgr/shape"]
        both = load("easy-vqa-domains", tasks=tasks, rows=9, test_rows=5)
        alone = load("easy-vqa-domains", tasks=tasks, rows=9, test_rows=5, place=1)
        np.testing.assert_array_equal(pictures(alone), pictures(both)[9:])
        np.testing.assert_array_equal(pictures(alone, "test"), pictures(both, "test")[5:])
        assert torch.equal(alone.y_train, both.y_train[9:])
        assert alone.groups is not None
        assert alone.groups.tolist() == [1] * 9

    @pytest.mark.parametrize(
        ("name", "said", "error", "told"),
        [
            ("easy-vqa-domains", {"tasks": "hue/color"}, ConfigError, "did you mean 'hue/colour'"),
            ("easy-vqa-domains", {"rows": [3, 4]}, ConfigError, "2 numbers for 10 tasks"),
            ("easy-vqa-domains", {"rows": 3000}, DataError, r"original/colour has \d+ rows here, not 3000"),
            ("easy-vqa-domains", {"rows": 0}, ConfigError, "must be whole numbers from 1"),
            ("easy-vqa-domains", {"label": "x"}, ConfigError, "label means nothing for easy-vqa-domains"),
            ("easy-vqa-domains", {"place": 10}, ConfigError, "place 10 of easy-vqa-domains: there are 10 tasks"),
            ("easy-vqa", {"tasks": ["hue/colour"] * 2}, ConfigError, "have one twice"),
            ("digits", {"tasks": "hue/colour"}, ConfigError, "tasks means nothing"),
        ],
    )
    def test_what_cannot_be(self, name: str, said: dict, error: type[Exception], told: str) -> None:
        with pytest.raises(error, match=told):
            load(name, **said)


def test_numbers_of_options_are_texts_in_a_file() -> None:
    said = {"tasks": "a,b", "rows": [24, 200], "test_rows": 9}
    options = ReadOptions.of(said)
    assert options == ReadOptions(tasks=("a", "b"), rows=(24, 200), test_rows=9)
    assert options.values() == {"tasks": ["a", "b"], "rows": ["24", "200"], "test_rows": "9"}
    assert ReadOptions.of(options.values()) == options
    assert ReadOptions.of({"rows": 24}) == ReadOptions.of({"rows": "24"})
