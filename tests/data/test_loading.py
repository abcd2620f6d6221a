from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interfuse.data import Dataset, available, load
from interfuse.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INTERFUSE_DATA", raising=False)
    monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path / "cache"))


def arrays(rows: int = 50) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.integers(0, 256, (rows, 4, 4), np.uint8), "y": np.arange(rows) % 5}


def test_available_names_what_load_takes(tmp_path: Path) -> None:
    infos = {info.name: info for info in available()}
    images = [
        "mnist",
        "fashion-mnist",
        "kmnist",
        "kmnist-test",
        "cifar-10",
        "cifar-100",
        "tiny-imagenet",
        "svhn",
        "usps",
    ]
    made = ["easy-vqa", "easy-vqa-domains", "easy-vqa-unseen", "easy-vqa-public", "bbc-news", "bbc-news-public"]
    hub = ["drake", "drake-unseen", "hflb"]
    assert list(infos) == ["digits", *images, "har", "har-people", *made, *hub]
    assert infos["digits"].state == "shipped"
    packaged = {infos.pop(name).state for name in made}
    assert packaged <= {"installed", "not installed"}
    assert {info.state for info in infos.values()} == {"shipped", "download"}
    digits = load("digits")
    assert (len(digits.x_train), len(digits.x_test)) == (infos["digits"].rows_train, infos["digits"].rows_test)
    assert (digits.shape, digits.classes) == (infos["digits"].shape, infos["digits"].classes)
    assert not (tmp_path / "cache").exists()


def test_a_data_set_stays_itself() -> None:
    dataset = load("digits")
    assert load(dataset) is dataset


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fashion-mnist'"):
        load("fashion_mnist")


class TestNpz:
    @pytest.mark.parametrize("letter", ["x", "X"])
    def test_with_a_split(self, letter: str, tmp_path: Path) -> None:
        a, b = arrays(10), arrays(5)
        path = tmp_path / "mine.npz"
        parts = {f"{letter}_train": a["x"], "y_train": a["y"], f"{letter}_test": b["x"], "y_test": b["y"]}
        np.savez(path, **parts, groups=np.arange(10) // 5)
        dataset = load(str(path))
        assert dataset.name == "mine"
        np.testing.assert_array_equal(dataset.x_train.squeeze(1), a["x"])
        np.testing.assert_array_equal(dataset.y_train, a["y"])
        np.testing.assert_array_equal(dataset.x_test.squeeze(1), b["x"])
        assert dataset.groups is not None
        assert dataset.groups.tolist() == [0] * 5 + [1] * 5

    def test_without_a_split(self, tmp_path: Path) -> None:
        whole = arrays()
        np.savez(tmp_path / "mine.npz", **whole, groups=np.arange(50))
        dataset, again = load(str(tmp_path / "mine.npz")), load(str(tmp_path / "mine.npz"))
        assert np.bincount(dataset.y_test).tolist() == [2] * 5
        assert np.bincount(dataset.y_train).tolist() == [8] * 5
        assert dataset.groups is not None
        np.testing.assert_array_equal(dataset.x_train.squeeze(1), whole["x"][dataset.groups])
        np.testing.assert_array_equal(dataset.y_train, whole["y"][dataset.groups])
        held = np.setdiff1d(np.arange(50), dataset.groups)
        np.testing.assert_array_equal(dataset.x_test.squeeze(1), whole["x"][held])
        np.testing.assert_array_equal(dataset.x_test, again.x_test)

    def test_without_a_split_and_without_classes(self, tmp_path: Path) -> None:
        x, price = np.zeros((50, 4)), np.arange(50) + 0.5
        np.savez(tmp_path / "prices.npz", x=x, y=price)
        np.savez(tmp_path / "whole.npz", x=x, y=price - 0.5, task="regression")
        np.savez(tmp_path / "labels.npz", x=x, y=np.eye(50, 3))
        for name, unit in (("prices", {"outputs": 1}), ("whole", {"outputs": 1}), ("labels", {"labels": 3})):
            data = load(str(tmp_path / f"{name}.npz"))
            assert (data.task.dims(), len(data.y_train), len(data.y_test)) == (unit, 40, 10)
        # neither the cheapest nor the dearest houses are the test set
        held = load(str(tmp_path / "prices.npz")).y_test
        assert held.min() < 15 < 35 < held.max()

    def test_no_pickle(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "went off",)

        path = tmp_path / "evil.npz"
        np.savez(path, x=np.array([Bomb()], object), y=np.zeros(1))
        with pytest.raises(DataError, match="Python objects") as caught:
            load(str(path))
        assert "allow_pickle" not in str(caught.value)
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(DataError):
            load(str(path))
        assert not (tmp_path / "went off").exists()

    def test_cut_off(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays())
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="cannot read"):
            load(str(path))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no file"):
            load(str(tmp_path / "mine.npz"))

    def test_other_names(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "mine.npz", images=np.zeros(2))
        with pytest.raises(DataError, match="holds images; it needs"):
            load(str(tmp_path / "mine.npz"))

    @pytest.mark.parametrize("part", ["y", "groups"])
    def test_lengths(self, part: str, tmp_path: Path) -> None:
        np.savez(tmp_path / "mine.npz", **arrays() | {part: np.zeros(49)})
        with pytest.raises(DataError, match=f"{part} has shape"):
            load(str(tmp_path / "mine.npz"))


class TestFunction:
    CODE = """
import numpy as np
from interfuse.data import Dataset

x, y = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2

def parts():
    return x, y, x, y

def whole():
    return Dataset.from_arrays("mine", x, y, x, y)

def wrong():
    return x, y

constant = 1
"""

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
        (tmp_path / "my_own_data.py").write_text(self.CODE)
        monkeypatch.syspath_prepend(tmp_path)
        # What a test imports is forgotten after it.
        monkeypatch.setattr(sys, "modules", sys.modules.copy())
        return "my_own_data" if request.param == "module" else str(tmp_path / "my_own_data.py")

    @pytest.mark.parametrize("place", ["module", "file"], indirect=True)
    def test_both_returns(self, place: str) -> None:
        assert load(f"{place}:whole").name == "mine"
        dataset = load(f"{place}:parts")
        assert isinstance(dataset, Dataset)
        assert (dataset.name, dataset.shape) == (f"{place}:parts", (1, 4, 4))

    @pytest.mark.parametrize("place", ["module", "file"], indirect=True)
    def test_errors(self, place: str) -> None:
        with pytest.raises(DataError, match="returned tuple"):
            load(f"{place}:wrong")
        with pytest.raises(ConfigError, match="no function"):
            load(f"{place}:constant")
        with pytest.raises(ConfigError, match="did you mean 'whole'"):
            load(f"{place}:whale")
