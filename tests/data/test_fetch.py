from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from publishing import Published, Web, idx_bytes

from interfuse.data.fetch import CHUNK, Places, RemoteFile, load_arrays
from interfuse.data.formats import read_idx
from interfuse.errors import ConfigError, DataError

NAME = "train-images-idx3-ubyte.gz"


def load_array(file: RemoteFile, places: Places) -> np.ndarray:
    (array,) = load_arrays(file, places)
    return array


def write(path: Path, contents: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
    return path


class TestOwnFolder:
    @pytest.mark.parametrize("where", [f"tiny/{NAME}", f"Tiny/raw/{NAME}", f"Tiny/raw/{NAME.removesuffix('.gz')}"])
    def test_every_layout_gives_the_same_array_and_no_request(
        self, where: str, places: Places, published: Published, web: Web
    ) -> None:
        assert places.data is not None
        write(places.data / where, published.packed if where.endswith(".gz") else published.unpacked)
        np.testing.assert_array_equal(load_array(published.file, places), published.array)
        assert web.asked == []
        assert not places.cached(published.file).exists()

    @pytest.mark.parametrize("where", [f"tiny/{NAME}", f"Tiny/raw/{NAME.removesuffix('.gz')}"])
    def test_a_corrupt_file_is_an_error_even_if_a_download_would_do(
        self, where: str, places: Places, published: Published, web: Web
    ) -> None:
        assert places.data is not None
        web.contents[f"/first/{NAME}"] = published.packed
        bad = published.packed[:-1] + b"!" if where.endswith(".gz") else published.unpacked[:-1] + b"!"
        path = write(places.data / where, bad)
        expected = published.file.sha256 if where.endswith(".gz") else published.file.unpacked_sha256
        with pytest.raises(DataError) as caught:
            load_array(published.file, places)
        for fact in (str(path), expected, hashlib.sha256(bad).hexdigest()):
            assert str(fact) in str(caught.value)
        assert path.read_bytes() == bad
        assert web.asked == []

    def test_an_unpacked_file_of_unknown_hash_is_not_used(self, places: Places, published: Published, web: Web) -> None:
        assert places.data is not None
        file = dataclasses.replace(published.file, unpacked_sha256=None)
        write(places.data / "Tiny/raw" / NAME.removesuffix(".gz"), published.unpacked)
        assert places.own_copy(file) is None


class TestDownload:
    def test_good(self, places: Places, published: Published, web: Web) -> None:
        web.contents[f"/first/{NAME}"] = published.packed
        np.testing.assert_array_equal(load_array(published.file, places), published.array)
        assert places.cached(published.file).read_bytes() == published.packed
        assert web.asked == [(f"/first/{NAME}", None)]

    def test_who_wants_it_at_the_same_time_waits(self, places: Places, published: Published, web: Web) -> None:
        web.contents[f"/first/{NAME}"] = published.packed
        with ThreadPoolExecutor(8) as pool:
            for array in pool.map(lambda _: load_array(published.file, places), range(8)):
                np.testing.assert_array_equal(array, published.array)
        assert web.asked == [(f"/first/{NAME}", None)]

    def test_the_mirror_comes_first(self, places: Places, published: Published, web: Web) -> None:
        web.contents = {f"/mirror/tiny/{NAME}": published.packed, f"/first/{NAME}": published.packed}
        mirrored = dataclasses.replace(places, mirror=f"{web.url}/mirror")
        np.testing.assert_array_equal(load_array(published.file, mirrored), published.array)
        assert [path for path, _ in web.asked] == [f"/mirror/tiny/{NAME}"]

    def test_a_corrupt_source_is_refused_and_the_next_one_used(
        self, places: Places, published: Published, web: Web
    ) -> None:
        web.contents = {f"/first/{NAME}": published.packed[::-1], f"/second/{NAME}": published.packed}
        np.testing.assert_array_equal(load_array(published.file, places), published.array)
        assert web.asked[-1] == (f"/second/{NAME}", None)

    def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(
        self, places: Places, published: Published, web: Web
    ) -> None:
        web.contents[f"/first/{NAME}"] = published.packed
        web.cut_once_at[f"/first/{NAME}"] = 2 * CHUNK + 1000
        np.testing.assert_array_equal(load_array(published.file, places), published.array)
        assert web.asked == [(f"/first/{NAME}", None), (f"/first/{NAME}", f"bytes={2 * CHUNK}-")]

    @pytest.mark.parametrize("ranges", [True, False])
    def test_a_partial_file_of_an_earlier_process(
        self, ranges: bool, places: Places, published: Published, web: Web
    ) -> None:
        web.contents[f"/first/{NAME}"] = published.packed
        web.ranges = ranges
        part = write(places.cached(published.file).with_name(f"{NAME}.part"), published.packed[:1234])
        np.testing.assert_array_equal(load_array(published.file, places), published.array)
        assert web.asked == [(f"/first/{NAME}", "bytes=1234-")]
        assert not part.exists()

    @pytest.mark.parametrize("length", [500, 1_000_000])
    def test_a_wrong_partial_file_costs_one_attempt_only(
        self, length: int, places: Places, published: Published, web: Web
    ) -> None:
        web.contents[f"/first/{NAME}"] = published.packed
        write(places.cached(published.file).with_name(f"{NAME}.part"), b"x" * length)
        np.testing.assert_array_equal(load_array(published.file, places), published.array)
        assert web.asked == [(f"/first/{NAME}", f"bytes={length}-"), (f"/first/{NAME}", None)]

    def test_the_error_when_all_fails(self, places: Places, published: Published, web: Web) -> None:
        web.contents[f"/second/{NAME}"] = b"a page that asks for a login"
        with pytest.raises(DataError) as caught:
            load_array(published.file, places)
        text = str(caught.value)
        facts = (f"tiny/{NAME}", published.file.sha256, f"{web.url}/first/{NAME}: status 404", "another SHA-256")
        for fact in (*facts, f"{web.url}/second/{NAME}", "INTERFUSE_DATA", str(places.data), str(places.cache)):
            assert fact in text
        assert not places.cached(published.file).exists()

    def test_nobody_listens(self, places: Places, published: Published) -> None:
        # Port 9 of this machine (discard) answers nobody.
        file = dataclasses.replace(published.file, bases=("http://127.0.0.1:9/",))
        with pytest.raises(DataError, match="no connection"):
            load_array(file, places)


class TestCache:
    def test_a_second_load_needs_neither_network_nor_the_packed_file(
        self, places: Places, published: Published, web: Web
    ) -> None:
        web.contents[f"/first/{NAME}"] = published.packed
        load_array(published.file, places)
        web.contents.clear()
        places.cached(published.file).unlink()
        np.testing.assert_array_equal(load_array(published.file, places), published.array)

    def test_a_corrupt_file_is_downloaded_again(self, places: Places, published: Published, web: Web) -> None:
        web.contents[f"/first/{NAME}"] = published.packed
        cached = write(places.cached(published.file), published.packed[:-1] + b"!")
        np.testing.assert_array_equal(load_array(published.file, places), published.array)
        assert cached.read_bytes() == published.packed

    def test_a_corrupt_file_is_deleted_where_it_cannot_be_replaced(self, places: Places, published: Published) -> None:
        cached = write(places.cached(published.file), b"rubbish")
        with pytest.raises(DataError):
            load_array(published.file, places)
        assert not cached.exists()

    @pytest.mark.parametrize("damage", ["cut", "flipped bit", "empty", "no archive", "pickle"])
    def test_a_broken_array_is_made_again(self, damage: str, places: Places, published: Published, web: Web) -> None:
        web.contents[f"/first/{NAME}"] = published.packed
        load_array(published.file, places)
        decoded = places.decoded(published.file)
        good = decoded.read_bytes()
        if damage == "pickle":
            np.savez(decoded, np.array([{}], object))
        else:
            middle = len(good) // 2
            flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
            bad = {"cut": good[:middle], "flipped bit": flipped, "empty": b"", "no archive": b"rubbish"}
            decoded.write_bytes(bad[damage])
        np.testing.assert_array_equal(load_array(published.file, places), published.array)
        assert decoded.read_bytes() == good
        assert [path.name for path in decoded.parent.iterdir()] == [decoded.name]

    def test_a_cache_that_cannot_be_written_is_a_warning(
        self, tmp_path: Path, places: Places, published: Published
    ) -> None:
        assert places.data is not None
        write(places.data / "tiny" / NAME, published.packed)
        # A file where a folder should be stops root as well, which permissions would not.
        sealed = dataclasses.replace(places, cache=write(tmp_path / "sealed", b"") / "cache")
        with pytest.warns(RuntimeWarning, match="INTERFUSE_CACHE"):
            array = load_array(published.file, sealed)
        np.testing.assert_array_equal(array, published.array)

    def test_a_download_into_such_a_cache_is_an_error(
        self, tmp_path: Path, places: Places, published: Published
    ) -> None:
        sealed = dataclasses.replace(places, cache=write(tmp_path / "sealed", b"") / "cache")
        with pytest.raises(DataError, match="INTERFUSE_CACHE"):
            load_array(published.file, sealed)


class TestEnvironment:
    def test_all_three(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("INTERFUSE_DATA", str(tmp_path))
        monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("INTERFUSE_MIRROR", "http://localhost/")
        assert Places.from_environment() == Places(tmp_path, tmp_path / "cache", "http://localhost/")

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("INTERFUSE_DATA", "INTERFUSE_CACHE", "INTERFUSE_MIRROR"):
            monkeypatch.delenv(name, raising=False)
        places = Places.from_environment()
        assert (places.data, places.mirror, places.cache.name) == (None, None, "interfuse")

    def test_no_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("INTERFUSE_DATA", str(tmp_path / "missing"))
        with pytest.raises(ConfigError, match="missing"):
            Places.from_environment()


class TestReadIdx:
    @pytest.mark.parametrize("shape", [(0,), (7,), (2, 3, 4)])
    def test_round_trip(self, shape: tuple[int, ...]) -> None:
        array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        (found,) = read_idx(idx_bytes(array), "x")
        np.testing.assert_array_equal(found, array)

    @pytest.mark.parametrize("raw", [b"", b"\0\0\x08", b"\0\0\x08\0", b"\0\0\x0d\x01\0\0\0\0"])
    def test_other_bytes(self, raw: bytes) -> None:
        with pytest.raises(DataError, match="tiny"):
            read_idx(raw, "tiny")

    @pytest.mark.parametrize("end", [2, 7, 9, -1])
    def test_cut_off(self, end: int) -> None:
        with pytest.raises(DataError):
            read_idx(idx_bytes(np.ones((2, 5), np.uint8))[:end], "tiny")

    def test_too_long(self) -> None:
        with pytest.raises(DataError):
            read_idx(idx_bytes(np.ones((2, 5), np.uint8)) + b"\0", "tiny")
