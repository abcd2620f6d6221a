from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import lzma
import os
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import cifar_bytes, har_zip, jpeg, libsvm_bz2, mat_bytes, tar_gz, tiny_imagenet_files, zipped
from publishing import Published, Web, publish

from interfuse.data import available, load
from interfuse.data.catalogue import SOURCES
from interfuse.data.fetch import Places, load_arrays
from interfuse.data.recordings import recordings
from interfuse.data.sources import Layout, Source, every_fifth, load_digits
from interfuse.data.tiny_imagenet import read_tiny_imagenet
from interfuse.errors import DataError

OFFICIAL = Path(os.environ.get("INTERFUSE_DATA") or Path(__file__).parents[3] / "shared" / "data")
STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")

SMALL = jpeg(np.zeros((64, 64, 3), np.uint8))
SIZES = SMALL.index(b"\xff\xc0") + 5
HUGE = SMALL[:SIZES] + b"\xff\xdc" * 2 + SMALL[SIZES + 4 :]
"""An image that says of itself that it has 65,500 by 65,500 points."""

needs_official = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the official files are not here: set INTERFUSE_DATA to a folder that holds them"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of the real files: decoding takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """The real files, a cache of their own, and no way to the network."""
    monkeypatch.setenv("INTERFUSE_DATA", str(OFFICIAL))
    monkeypatch.setenv("INTERFUSE_CACHE", str(cache))
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
        layouts=(Layout(tuple(published.file for published in files)),),
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
        assert (dataset.shape, dataset.class_names, dataset.normalisation["x"].scale) == (
            (1, 4, 4),
            ("a", "b", "c"),
            255,
        )
        assert (dataset.note, dataset.licence) == ("a note", "none")
        assert dataset.normalisation["x"].mean == pytest.approx([files[0].array.mean() / 255])
        assert dataset.normalisation["x"].std == pytest.approx([files[0].array.std() / 255])

    def test_state_follows_the_files_and_asks_nobody(self, places: Places, web: Web) -> None:
        source, files = tiny_source(web)
        assert places.data is not None
        folder = places.data / "tiny"
        folder.mkdir()
        assert source.state(places) == "download"
        for published in files[:3]:
            (folder / published.file.name).write_bytes(published.packed)
            assert source.state(places) == "incomplete"
        assert source.info(places).missing == (files[3].file.name,)
        (folder / files[3].file.name).write_bytes(files[3].packed)
        assert source.state(places) == "found"
        assert source.info(places).missing == ()
        assert source.state(dataclasses.replace(places, data=None)) == "download"
        source.load(places)
        shutil.rmtree(folder)
        assert source.state(places) == "cached"
        assert web.asked == []

    def test_published_mean_and_std_are_kept(self, places: Places, web: Web) -> None:
        source, files = tiny_source(web)
        web.contents = {f"/official/{published.file.name}": published.packed for published in files}
        dataset = dataclasses.replace(source, mean=(0.25,), std=(0.5,)).load(places)
        assert (dataset.normalisation["x"].mean, dataset.normalisation["x"].std) == ((0.25,), (0.5,))


def published_as(source: Source, web: Web, *contents: bytes) -> Source:
    """A data set of the catalogue whose published files are these."""
    layout = source.layouts[0]
    files = []
    for file, packed in zip(layout.files, contents, strict=True):
        web.contents[f"/official/{file.name}"] = packed
        digest = hashlib.sha256(packed).hexdigest()
        files.append(dataclasses.replace(file, sha256=digest, bases=(f"{web.url}/official/",)))
    return dataclasses.replace(source, layouts=(Layout(tuple(files), layout.arrange), *source.layouts[1:]))


def _halves(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """An image of 64 by 64 with one colour in each half."""
    return np.concatenate([np.broadcast_to(colour, (32, 64, 3)) for colour in (above, below)])


class TestArchives:
    """Small archives as they are published, downloaded from a local server."""

    def test_cifar_10(self, places: Places, web: Web) -> None:
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (12, 3, 32, 32), np.uint8), rng.integers(0, 10, 12, np.uint8)
        rows = {f"data_batch_{number}": slice(2 * number - 2, 2 * number) for number in range(1, 6)}
        rows["test_batch"] = slice(10, 12)
        batches = {stem: cifar_bytes(images[part], labels[part]) for stem, part in rows.items()}
        packed = tar_gz({f"cifar-10-batches-bin/{stem}.bin": batch for stem, batch in batches.items()})
        source = published_as(SOURCES["cifar-10"], web, packed)
        dataset = source.load(places)
        np.testing.assert_array_equal(dataset.x_train, images[:10])
        np.testing.assert_array_equal(dataset.y_train, labels[:10])
        np.testing.assert_array_equal(dataset.x_test, images[10:])
        np.testing.assert_array_equal(dataset.y_test, labels[10:])
        assert (len(dataset.normalisation["x"].mean), dataset.normalisation["x"].scale, source.state(places)) == (
            3,
            255,
            "cached",
        )
        # The same rows from single batches, packed anew and as the archive leaves them.
        stems = [file.name.removesuffix(".bin.xz") for file in source.layouts[1].files]
        files = [
            dataclasses.replace(
                file,
                sha256=hashlib.sha256(lzma.compress(batches[stem])).hexdigest(),
                unpacked_sha256=hashlib.sha256(batches[stem]).hexdigest(),
            )
            for file, stem in zip(source.layouts[1].files, stems, strict=True)
        ]
        source = dataclasses.replace(
            source, layouts=(source.layouts[0], Layout(tuple(files), source.layouts[1].arrange))
        )
        assert places.data is not None
        for number, stem in enumerate(stems):
            unpacked = places.data / "cifar-10-batches-bin" / f"{stem}.bin"
            path = unpacked if number % 2 else places.data / "cifar-10" / f"{stem}.bin.xz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(batches[stem] if number % 2 else lzma.compress(batches[stem]))
        web.asked.clear()
        assert source.state(places) == "found"
        assert source.load(places).digest == dataset.digest
        assert web.asked == []

    def test_cifar_100(self, places: Places, web: Web) -> None:
        rng = np.random.default_rng(1)
        images, fine = rng.integers(0, 256, (5, 3, 32, 32), np.uint8), np.array([99, 0, 50, 7, 8], np.uint8)
        packed = tar_gz({
            "cifar-100-binary/train.bin": cifar_bytes(images[:3], fine[:3] // 5, fine[:3]),
            "cifar-100-binary/test.bin": cifar_bytes(images[3:], fine[3:] // 5, fine[3:]),
        })  # fmt: skip
        dataset = published_as(SOURCES["cifar-100"], web, packed).load(places)
        assert (dataset.y_train.tolist(), dataset.y_test.tolist()) == ([99, 0, 50], [7, 8])
        np.testing.assert_array_equal(dataset.x_train, images[:3])
        names = dataset.class_names
        assert (len(names), len(set(names)), sorted(names), names[99]) == (100, 100, list(names), "worm")

    def test_tiny_imagenet(self, places: Places, web: Web) -> None:
        rng = np.random.default_rng(4)
        numbers = ["n01443537", "n01629819", "n01641577"]
        colours = {number: rng.integers(20, 235, (12, 2, 3), np.uint8) for number in numbers}  # above and below
        train = {number: [_halves(*pair) for pair in pairs] for number, pairs in colours.items()}
        train[numbers[2]][3] = np.full((64, 64), 77, np.uint8)  # grey
        held = [(numbers[2], _halves(*colours[numbers[2]][0])), (numbers[0], _halves(*colours[numbers[0]][5]))]
        words = {numbers[1]: "crane", numbers[2]: "bullfrog, Rana catesbeiana", numbers[0]: "crane, a bird", "n1": "x"}
        files = tiny_imagenet_files(train, held, words)
        source = published_as(SOURCES["tiny-imagenet"], web, zipped(files))
        dataset = source.load(places)
        assert dataset.x_train.shape == (36, 3, 64, 64)
        assert dataset.y_train.tolist() == [0] * 12 + [1] * 12 + [2] * 12
        assert dataset.y_test.tolist() == [2, 0]
        assert dataset.class_names == ("crane (n01443537)", "crane (n01629819)", "bullfrog")
        means = dataset.x_train.float().unflatten(2, (2, 32)).mean((3, 4)).transpose(1, 2)  # row, half, colour
        expected = np.concatenate([colours[number] for number in numbers])
        expected[24 + 3] = 77
        np.testing.assert_allclose(means, expected, atol=2)
        assert (dataset.x_train[27, 0] == dataset.x_train[27, 2]).all()
        np.testing.assert_array_equal(dataset.x_test, dataset.x_train[[24, 5]])
        again = source.load(places)  # from the cache
        assert (again.digest, again.class_names) == (dataset.digest, dataset.class_names)
        assert [path for path, _ in web.asked] == ["/official/tiny-imagenet-200.zip"]
        info = SOURCES["tiny-imagenet"].info(places)
        assert (info.classes, info.rows_train, info.rows_test, info.state) == (200, 100_000, 10_000, "cached")

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"wnids.txt": None}, "no archive of Tiny ImageNet: .*wnids.txt"),
            ({"wnids.txt": b"n2\nn3\n"}, "no training images of n3, a class of its wnids.txt"),
            ({"val/images/val_0.JPEG": None}, "no archive of Tiny ImageNet: .*val_0.JPEG"),
            ({"val/images/val_0.JPEG": b"no image"}, "no archive of Tiny ImageNet: cannot identify"),
            ({"val/images/val_0.JPEG": jpeg(np.zeros((64, 32), np.uint8))}, "val_0.JPEG has 32 by 64 points, must"),
            ({"val/images/val_0.JPEG": HUGE}, "no archive of Tiny ImageNet: Image size .* could be decompression bomb"),
            ({"val/val_annotations.txt": b"../../val_0.JPEG\tn2\n"}, "no archive of Tiny ImageNet: .*There is no item"),
            ({"val/val_annotations.txt": b"val_0.JPEG\tn9\n"}, "no archive of Tiny ImageNet: 'n9'"),
            ({"words.txt": b"n1\ta\n"}, "no archive of Tiny ImageNet: 'n2'"),
        ],
    )
    def test_an_archive_that_is_not_tiny_imagenet(self, change: dict[str, bytes | None], complaint: str) -> None:
        image = np.zeros((64, 64, 3), np.uint8)
        files = tiny_imagenet_files({"n2": [image]}, [("n2", image)], {"n2": "thing"})
        files |= {f"tiny-imagenet-200/{name}": contents for name, contents in change.items() if contents is not None}
        for name in (name for name, contents in change.items() if contents is None):
            del files[f"tiny-imagenet-200/{name}"]
        with pytest.raises(DataError, match=complaint):
            read_tiny_imagenet(zipped(files), "tiny.zip")
        with pytest.raises(DataError, match=r"^tiny.zip is no archive of Tiny ImageNet"):
            read_tiny_imagenet(b"PK", "tiny.zip")

    def test_svhn(self, places: Places, web: Web) -> None:
        rng = np.random.default_rng(2)
        images, labels = rng.integers(0, 256, (4, 3, 32, 32), np.uint8), np.array([[10], [1], [9], [10]], np.uint8)
        stored = images.transpose(2, 3, 1, 0)
        halves = (mat_bytes({"X": stored[..., part], "y": labels[part]}) for part in (slice(3), slice(3, 4)))
        dataset = published_as(SOURCES["svhn"], web, *halves).load(places)
        np.testing.assert_array_equal(dataset.x_train, images[:3])
        np.testing.assert_array_equal(dataset.x_test, images[3:])
        assert (dataset.y_train.tolist(), dataset.y_test.tolist()) == ([0, 1, 9], [0])

    def test_usps(self, places: Places, web: Web) -> None:
        rng = np.random.default_rng(3)
        grey, labels = rng.integers(-1000, 1001, (5, 16, 16)).astype(np.int16), np.array([9, 0, 3, 1, 2], np.uint8)
        halves = [libsvm_bz2(grey[part], labels[part], sparse=False) for part in (slice(3), slice(3, 5))]
        source = published_as(SOURCES["usps"], web, *halves)
        dataset = source.load(places)
        assert (dataset.shape, dataset.normalisation["x"].scale, dataset.y_train.tolist()) == (
            (1, 16, 16),
            1,
            [9, 0, 3],
        )
        np.testing.assert_allclose(dataset.x_test.squeeze(1), (grey[3:] / 1000 + 1) / 2, atol=1e-7)
        arrays = io.BytesIO()
        np.savez(arrays, X_train=grey[:3], y_train=labels[:3], X_test=grey[3:], y_test=labels[3:])
        other = source.layouts[1]
        file = dataclasses.replace(other.files[0], sha256=hashlib.sha256(arrays.getvalue()).hexdigest())
        source = dataclasses.replace(source, layouts=(source.layouts[0], Layout((file,), other.arrange)))
        assert places.data is not None
        (places.data / "usps").mkdir()
        (places.data / "usps" / "usps.npz").write_bytes(arrays.getvalue())
        assert source.load(places).digest == dataset.digest

    @pytest.mark.parametrize("name", ["har", "har-people"])
    def test_har(self, name: str, places: Places, web: Web) -> None:
        rng = np.random.default_rng(4)
        # Four recordings of six windows each, of two people in the official training half and two in the test half.
        signals = np.round(rng.normal(size=(4, 9, 64 * 7)), 6)
        windows = np.stack([signal[:, 64 * i : 64 * i + 128] for signal in signals for i in range(6)])
        labels, people = np.repeat([0, 5, 2, 3], 6).astype(np.uint8), np.repeat([1, 2, 3, 4], 6).astype(np.uint8)
        packed = har_zip(windows, labels, people, np.isin(people, [2, 4]), nested=True)
        source = published_as(SOURCES[name], web, packed)
        dataset = source.load(places)
        assert (dataset.shape, dataset.classes) == ((9, 128), 6)
        assert dataset.groups is not None
        assert dataset.blocks is not None
        if name == "har":
            assert (dataset.groups.tolist(), dataset.y_train.tolist()) == ([0] * 6 + [2] * 6, [0] * 6 + [2] * 6)
            np.testing.assert_allclose(dataset.x_train, windows[np.isin(people, [1, 3])], rtol=1e-6)
            np.testing.assert_allclose(dataset.x_test, windows[np.isin(people, [2, 4])], rtol=1e-6)
        else:
            assert dataset.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
            assert dataset.y_test.tolist() == [0, 5, 2, 3]
            np.testing.assert_allclose(dataset.x_test, windows[5::6], rtol=1e-6)
        arrays = io.BytesIO()
        shuffled = rng.permutation(len(windows))
        np.savez(arrays, X=windows[shuffled].astype(np.float32), y=labels[shuffled], subject=people[shuffled])
        last = source.layouts[-1]
        file = dataclasses.replace(last.files[0], sha256=hashlib.sha256(arrays.getvalue()).hexdigest())
        repacked = dataclasses.replace(source, layouts=(Layout((file,), last.arrange),))
        assert places.data is not None
        (places.data / "har").mkdir()
        (places.data / "har" / file.name).write_bytes(arrays.getvalue())
        assert repacked.load(places).digest == dataset.digest


def test_every_fifth() -> None:
    y = np.random.default_rng(1).permutation(np.repeat(np.arange(4, dtype=np.uint8), [5, 10, 14, 4]))
    x = np.arange(len(y), dtype=np.uint8)
    x_train, y_train, x_test, y_test, *_ = every_fifth(x, y)
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
        assert (dataset.normalisation["x"].scale, int(dataset.x_train.max()), int(dataset.x_train.min())) == (16, 16, 0)
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
            (
                "usps",
                [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644],
                [359, 264, 198, 166, 200, 160, 170, 147, 166, 177],
            ),
            ("har", [1226, 1073, 986, 1286, 1374, 1407], [496, 471, 420, 491, 532, 537]),
            ("har-people", [1314, 1151, 1039, 1349, 1450, 1486], [283, 212, 190, 308, 336, 338]),
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
        tolerance = 1e-3 if name == "kmnist-test" else 6e-5
        for channel, (mean, std) in enumerate(
            zip(dataset.normalisation["x"].mean, dataset.normalisation["x"].std, strict=True)
        ):
            scaled = dataset.x_train[:, channel].double() / dataset.normalisation["x"].scale
            assert float(scaled.mean()) == pytest.approx(mean, abs=tolerance)
            assert float(scaled.std()) == pytest.approx(std, abs=tolerance)

    def test_a_batch_of_cifar_10(self, official: Path) -> None:  # six of them would take ten seconds
        skip_unless_found("cifar-10")
        source = SOURCES["cifar-10"]
        images, labels = load_arrays(source.layouts[1].files[-1], Places.from_environment())
        assert np.bincount(labels).tolist() == [1000] * 10
        # The training images' published numbers; those of a tenth of the test images are close.
        some = images[::10] / 255
        assert some.mean((0, 2, 3)) == pytest.approx(source.mean, abs=1e-2)
        assert some.std((0, 2, 3)) == pytest.approx(source.std, abs=1e-2)

    def test_recordings_of_har_are_those_that_were_numbered(self, official: Path) -> None:
        skip_unless_found("har")
        with np.load(official / "har" / "uci_har_inertial_signals.npz", allow_pickle=False) as arrays:
            windows, labels, people, runs = (arrays[name] for name in ("X", "y", "subject", "run"))
        few = people <= 6
        windows, labels, people, runs = windows[few], labels[few], people[few], runs[few]
        chains = recordings(windows, labels, people)
        assert sorted(tuple(chain) for chain in chains) == sorted(
            tuple(np.flatnonzero(runs == run)) for run in np.unique(runs)
        )

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
        for file in SOURCES[name].layouts[0].files:
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
        files = tuple(dataclasses.replace(file, bases=()) for file in source.layouts[0].files)
        with pytest.raises(DataError, match=r"kmnist/train-images-idx3-ubyte\.gz is missing") as caught:
            dataclasses.replace(source, layouts=(Layout(files),)).load(Places.from_environment())
        assert "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4" in str(caught.value)


def test_the_mark_of_what_cannot_be_compared() -> None:
    assert "not comparable with published KMNIST" in SOURCES["kmnist-test"].note
