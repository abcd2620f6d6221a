from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from publishing import Published, Web, publish

from interfuse.data import available, load
from interfuse.data.fetch import Places
from interfuse.data.sources import SOURCES, Source, every_fifth, load_digits, official_split
from interfuse.errors import DataError

OFFICIAL = Path(os.environ.get("INTERFUSE_DATA") or Path(__file__).parents[3] / "shared" / "data")
STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")

needs_official = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the official files are not here: set INTERFUSE_DATA to a folder that holds them"
)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The real files, a cache of its own, and no way to the network."""
    monkeypatch.setenv("INTERFUSE_DATA", str(OFFICIAL))
    monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("INTERFUSE_MIRROR", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return OFFICIAL


def tiny_source(web: Web) -> tuple[Source, list[Published]]:
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (20, 4, 4)),
        rng.integers(0, 3, 20),
        rng.integers(0, 256, (6, 4, 4)),
        rng.integers(0, 3, 6),
    ]
    files = [
        publish(array.astype(np.uint8), f"{web.url}/official", name=f"{stem}-ubyte.gz")
        for array, stem in zip(arrays, STEMS, strict=True)
    ]
    source = Source(
        name="tiny",
        files=tuple(published.file for published in files),
        arrange=official_split,
        shape=(1, 4, 4),
        class_names=("a", "b", "c"),
        rows_train=20,
        rows_test=6,
        licence="none",
        note="a note",
    )
    return source, files


class TestSource:
    def test_a_download_gives_the_data_set(self, places: Places, web: Web) -> None:
        source, files = tiny_source(web)
        web.contents = {f"/official/{published.file.name}": published.packed for published in files}
        dataset = source.load(places)
        for field, published in zip(("x_train", "y_train", "x_test", "y_test"), files, strict=True):
            np.testing.assert_array_equal(getattr(dataset, field).numpy().squeeze(), published.array)
        assert (dataset.shape, dataset.class_names, dataset.scale) == ((1, 4, 4), ("a", "b", "c"), 255)
        assert (dataset.note, dataset.licence) == ("a note", "none")
        assert dataset.mean == pytest.approx([files[0].array.mean() / 255])
        assert dataset.std == pytest.approx([files[0].array.std() / 255])

    def test_state_follows_the_files_and_asks_nobody(self, places: Places, web: Web) -> None:
        source, files = tiny_source(web)
        assert places.data is not None
        folder = places.data / "tiny"
        folder.mkdir()
        assert source.state(places) == "download"
        for published in files[:3]:
            (folder / published.file.name).write_bytes(published.packed)
            assert source.state(places) == "incomplete"
        (folder / files[3].file.name).write_bytes(files[3].packed)
        assert source.state(places) == "found"
        assert source.state(dataclasses.replace(places, data=None)) == "download"
        source.load(places)
        shutil.rmtree(folder)
        assert source.state(places) == "cached"
        assert web.asked == []

    def test_published_mean_and_std_are_kept(self, places: Places, web: Web) -> None:
        source, files = tiny_source(web)
        web.contents = {f"/official/{published.file.name}": published.packed for published in files}
        dataset = dataclasses.replace(source, mean=0.25, std=0.5).load(places)
        assert (dataset.mean, dataset.std) == ((0.25,), (0.5,))


def test_every_fifth() -> None:
    y = np.random.default_rng(1).permutation(np.repeat(np.arange(4, dtype=np.uint8), [5, 10, 14, 4]))
    x = np.arange(len(y), dtype=np.uint8)
    x_train, y_train, x_test, y_test = every_fifth(x, y)
    assert np.bincount(y_test, minlength=4).tolist() == [1, 2, 2, 0]
    assert sorted([*x_train, *x_test]) == x.tolist()
    np.testing.assert_array_equal(y[x_test], y_test)
    np.testing.assert_array_equal(y[x_train], y_train)
    assert [np.flatnonzero(y == 1).tolist().index(row) for row in x_test[y_test == 1]] == [4, 9]


class TestDigits:
    def test_shape_and_split(self) -> None:
        dataset = load_digits()
        assert dataset.x_train.shape == (1437, 1, 8, 8)
        assert dataset.x_test.shape == (360, 1, 8, 8)
        assert (dataset.scale, int(dataset.x_train.max()), int(dataset.x_train.min())) == (16, 16, 0)
        counts = np.bincount(dataset.y_test), np.bincount(dataset.y_train)
        # Published class counts of this half of the UCI set.
        assert (counts[0] + counts[1]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
        assert np.abs(counts[0] - (counts[0] + counts[1]) * 360 / 1797).max() < 1
        z = dataset.normalise(dataset.x_train)
        assert float(z.mean()) == pytest.approx(0, abs=1e-5)
        assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-5)

    def test_the_shipped_file_is_the_exported_one(self) -> None:
        sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is needed for the export only")
        dataset, origin = load_digits(), sklearn_datasets.load_digits()
        images = torch.cat([dataset.x_train, dataset.x_test]).flatten(1).numpy()
        labels = torch.cat([dataset.y_train, dataset.y_test]).numpy()
        rows = sorted(zip(map(bytes, images), labels.tolist(), strict=True))
        expected = sorted(zip(map(bytes, origin.data.astype(np.uint8)), origin.target.tolist(), strict=True))
        assert rows == expected

    def test_the_file_and_its_licence_are_in_the_package(self) -> None:
        folder = resources.files("interfuse.data")
        digest = hashlib.sha256(folder.joinpath("digits.npz").read_bytes()).hexdigest()
        assert digest == "5452c9c0f457fc51ae211f56c647493f88fafbeaca3c68349a174d11f371ac87"
        assert "CC BY 4.0" in folder.joinpath("DIGITS_LICENCE.md").read_text()


def skip_unless_found(name: str) -> None:
    if next(info for info in available() if info.name == name).state != "found":
        pytest.skip(f"the files of {name} are not all in INTERFUSE_DATA")


@needs_official
class TestOfficial:
    @pytest.mark.parametrize(
        ("name", "train", "test"),
        [
            (
                "mnist",
                [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
                [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
            ),
            ("fashion-mnist", [6000] * 10, [1000] * 10),
            ("kmnist-test", [800] * 10, [200] * 10),
        ],
    )
    def test_facts(self, name: str, train: list[int], test: list[int], official: Path) -> None:
        skip_unless_found(name)
        dataset = load(name)
        info = next(info for info in available() if info.name == name)
        assert np.bincount(dataset.y_train).tolist() == train
        assert np.bincount(dataset.y_test).tolist() == test
        assert (dataset.shape, dataset.classes) == (info.shape, info.classes)
        assert (len(dataset.x_train), len(dataset.x_test)) == (info.rows_train, info.rows_test)
        assert info.state == "found"
        # The published numbers have four digits; those of kmnist-test are of its 10,000 images, test rows included.
        scaled = dataset.x_train.double() / 255
        tolerance = 1e-3 if name == "kmnist-test" else 6e-5
        assert float(scaled.mean()) == pytest.approx(dataset.mean[0], abs=tolerance)
        assert float(scaled.std()) == pytest.approx(dataset.std[0], abs=tolerance)

    def test_both_layouts_decode_to_the_same_arrays(
        self, official: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        skip_unless_found("kmnist-test")
        raw = tmp_path / "torchvision" / "KMNIST" / "raw"
        raw.mkdir(parents=True)
        for stem in STEMS[2:]:
            packed = (official / "kmnist" / f"{stem}-ubyte.gz").read_bytes()
            (raw / f"{stem}-ubyte").write_bytes(gzip.decompress(packed))
        first = load("kmnist-test")
        monkeypatch.setenv("INTERFUSE_DATA", str(tmp_path / "torchvision"))
        monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path / "other cache"))
        second = load("kmnist-test")
        for field in ("x_train", "y_train", "x_test", "y_test"):
            assert torch.equal(getattr(first, field), getattr(second, field))

    @pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
    def test_the_hashes_of_unpacked_files_are_those_of_the_packed_ones(self, name: str, official: Path) -> None:
        for file in SOURCES[name].files:
            path = official / file.folder / file.name
            if file.unpacked_sha256 is not None and path.exists():
                packed = path.read_bytes()
                assert hashlib.sha256(packed).hexdigest() == file.sha256
                assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == file.unpacked_sha256

    def test_kmnist_says_what_is_missing(self, official: Path) -> None:
        if next(info for info in available() if info.name == "kmnist").state != "incomplete":
            pytest.skip("all of KMNIST is here, or nothing")
        # Without official places only the mirror is left, where nobody listens.
        source = SOURCES["kmnist"]
        files = tuple(dataclasses.replace(file, bases=()) for file in source.files)
        with pytest.raises(DataError, match=r"kmnist/train-images-idx3-ubyte\.gz is missing") as caught:
            dataclasses.replace(source, files=files).load(Places.from_environment())
        assert "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4" in str(caught.value)


def test_the_mark_of_what_cannot_be_compared() -> None:
    assert "not comparable with published KMNIST" in SOURCES["kmnist-test"].note
