"""A service answers with blocks, refuses everything else in words of its own, and gives no parameter away."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from itertools import pairwise, product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import requests
import safetensors.numpy
import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from small_artefacts import ORIGIN, OUT, written
from torch import Tensor, nn

from interfuse.artefacts import Fusion, Manifest, Owner, TensorForm, composed, export_program, load, write
from interfuse.artefacts.registry import Registry
from interfuse.errors import ArtefactError, ConfigError
from interfuse.serve import (
    LOCAL,
    Access,
    Code,
    Service,
    ServiceError,
    ServiceLimits,
    add_key,
    bodies,
    from_folders,
    from_registry,
    running,
)
from interfuse.serve.batching import Batches
from interfuse.serve.blocks import Block
from interfuse.serve.limits import STALE

TENSORS, JSON = "application/x-safetensors", "application/json"
SMALL = ServiceLimits(body=4000, json_body=2000, rows=8, body_time=0.3, head=0.3, connections=4, idle=1)
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def blocks(folder: Path) -> list[Path]:
    """A base and a modular block that fit, as folders of a registry."""
    return [written(folder / name / "1", part).path for name, part in (("ant", "base"), ("bee", "modular"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("blocks")
    with running(Service(from_folders(blocks(folder)), limits=SMALL)) as address:
        yield address, folder


def ask(url: str, body: bytes, kind: str = TENSORS, **more: Any) -> requests.Response:
    return requests.post(url, data=body, headers={"Content-Type": kind} | more.pop("headers", {}), timeout=20, **more)


def packed(contract: str | None = None, **tensors: np.ndarray) -> bytes:
    return safetensors.numpy.save(tensors, None if contract is None else {"contract": contract})


def as_json(**changes: Any) -> bytes:
    tensor = {"dtype": "float32", "shape": [2, 3], "data": X.flatten().tolist()}
    return json.dumps({"tensors": {"x": tensor | changes}}).encode()


def features(address: str, x: np.ndarray = X, codec: str = "none") -> requests.Response:
    found = ask(f"{address}/v1/blocks/ant/1", packed(x=x), params={"codec": codec})
    assert found.status_code == 200, found.text
    return found


def honest(address: str, folder: Path) -> None:
    """Two requests, from samples to scores, are the composition."""
    scores = ask(f"{address}/v1/blocks/bee/1", features(address).content)
    expected = composed(load(folder / "ant" / "1"), [load(folder / "bee" / "1")], torch.from_numpy(X))
    np.testing.assert_allclose(safetensors.numpy.load(scores.content)["x"], expected, atol=1e-6)


def test_long_bodies_are_read_and_written_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, work = blocks(tmp_path), list[tuple[str, bool]]()

    def told(name: str) -> None:
        known = getattr(bodies, name)

        def tell(*given: Any) -> Any:
            work.append((name, threading.current_thread().name.startswith("interfuse-bodies")))
            return known(*given)

        monkeypatch.setattr(bodies, name, tell)

    for name in ("read_json", "read_safetensors", "as_json", "as_safetensors"):
        told(name)
    with running(Service(from_folders(folders), limits=ServiceLimits(rows=10_000))) as address:
        many = np.ones((6000, 3), np.float32)
        found = ask(address + ANT, packed(x=many), params={"codec": "int8"})
        ask(address + ANT, as_json(shape=[6000, 3], data=many.flatten().tolist()), JSON)
        ask(address + BEE, found.content)
        ask(address + ANT, packed(x=X))
        ask(address + ANT, as_json(), JSON)
    tensors, numbers = ("read_safetensors", "as_safetensors"), ("read_json", "as_json")
    long, short = [(name, True) for name in tensors + numbers], [(name, False) for name in tensors + numbers]
    assert work == [*long, *short[:2], *short]  # int8 made the features short


def test_two_requests_are_the_composition(place: tuple[str, Path]) -> None:
    address, folder = place
    honest(address, folder)
    listing = {one["block"]: one for one in requests.get(f"{address}/v1/blocks", timeout=9).json()["blocks"]}
    base, modular = listing["ant/1"], listing["bee/1"]
    assert base["contract"] == modular["contract"] == load(folder / "ant" / "1").manifest.fusion.key
    assert (base["discloses"], modular["discloses"]) == ("features", "logits")
    assert (base["takes"], modular["answers"]["classes"]) == ({"x": {"dtype": "float32", "shape": [3]}}, ["a", "b"])
    made = ask(f"{address}/v1/blocks/ant/1", as_json(), JSON).json()
    assert (made["discloses"], made["contract"], made["block"]) == ("features", base["contract"], "ant/1")
    again = json.dumps({"contract": made["contract"], "tensors": made["tensors"]}).encode()
    scores = ask(f"{address}/v1/blocks/bee/1", again, JSON).json()
    as_it_is = json.dumps(made).encode()
    assert ask(f"{address}/v1/blocks/bee/1", as_it_is, JSON).json() == scores
    other = json.dumps(made | {"contract": "f" * 64}).encode()
    assert ask(f"{address}/v1/blocks/bee/1", other, JSON).json()["code"] == "wrong_contract"
    assert scores["discloses"] == "logits"
    assert scores["tensors"]["x"]["shape"] == [2, 2]
    with_metadata = features(address).content
    assert b'"discloses":"features"' in with_metadata
    assert base["contract"].encode() in with_metadata


@pytest.mark.parametrize("codec", ["fp16", "int8", "int8+zstd", "int4:tensor+zstd", "topk:0.5+int8"])
def test_features_travel_by_the_codecs_of_messages(place: tuple[str, Path], codec: str) -> None:
    address, folder = place
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    coded = features(address, x, codec)
    scores = ask(f"{address}/v1/blocks/bee/1", coded.content)
    assert scores.status_code == 200, scores.text
    z = load(folder / "ant" / "1")(torch.from_numpy(x))
    assert isinstance(z, Tensor)
    from interfuse.wire import Codec

    rounded = Codec.parse(codec).round(z, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(
        safetensors.numpy.load(scores.content)["x"], load(folder / "bee" / "1")(rounded), atol=1e-6
    )
    if "zstd" not in codec:
        assert len(coded.content) < len(features(address, x).content) + 8 + len(codec)


ANT, BEE = "/v1/blocks/ant/1", "/v1/blocks/bee/1"
Z = np.zeros((2, 4), np.float32)
Z_TENSOR = torch.from_numpy(Z)
KEY = Fusion(run="r", method="ifl", round=3, features={"x": OUT}).key
SIGNS = np.array(list(product((-1, 1), repeat=4)), np.float32)[:8]
DEEP = b'{"tensors":' + b"[" * 900 + b"]" * 900 + b"}"
HOSTILE: Mapping[str, tuple[str, bytes, str, Code]] = {
    "no such block": ("/v1/blocks/cat/1", packed(x=X), TENSORS, "not_found"),
    "no such version": ("/v1/blocks/ant/2", packed(x=X), TENSORS, "not_found"),
    "a version that is none": ("/v1/blocks/ant/one", packed(x=X), TENSORS, "wrong_parameter"),
    "a name that is none": ("/v1/blocks/%ff%00/1", packed(x=X), TENSORS, "wrong_parameter"),
    "no such address": ("/v2", b"", TENSORS, "not_found"),
    "a path out": ("/v1/blocks/../../etc/passwd", b"", TENSORS, "not_found"),
    "no codec": (f"{ANT}?codec=gzip", packed(x=X), TENSORS, "wrong_parameter"),
    "a codec with a memory": (f"{ANT}?codec=int8%2Bef", packed(x=X), TENSORS, "wrong_parameter"),
    "a codec for scores": (f"{BEE}?codec=int8", packed(KEY, x=Z), TENSORS, "wrong_parameter"),
    "a codec in JSON": (f"{ANT}?codec=int8", as_json(), JSON, "wrong_parameter"),
    "another type of content": (ANT, packed(x=X), "application/octet-stream", "wrong_content_type"),
    "no type of content": (ANT, packed(x=X), "", "wrong_content_type"),
    "samples under a contract": (ANT, packed(KEY, x=X), TENSORS, "wrong_contract"),
    "features without a contract": (BEE, packed(x=Z), TENSORS, "wrong_contract"),
    "features of others": (BEE, packed("0" * 64, x=Z), TENSORS, "wrong_contract"),
    "a contract that cannot be shown": (BEE, packed("\u202e\x00", x=Z), TENSORS, "wrong_contract"),
    "too wide": (BEE, packed(KEY, x=np.zeros((2, 5), np.float32)), TENSORS, "wrong_shape"),
    "too deep": (ANT, packed(x=X[:, :, None]), TENSORS, "wrong_shape"),
    "no rows": (ANT, packed(x=X[:0]), TENSORS, "wrong_shape"),
    "no axis": (ANT, packed(x=np.zeros((), np.float32)), TENSORS, "wrong_shape"),
    "too many rows": (ANT, packed(x=np.zeros((9, 3), np.float32)), TENSORS, "too_many_rows"),
    "another type": (ANT, packed(x=X.astype(np.float64)), TENSORS, "wrong_dtype"),
    "bytes": (ANT, packed(x=X.astype(np.uint8)), TENSORS, "wrong_dtype"),
    "NaN": (ANT, packed(x=X * np.nan), TENSORS, "not_finite"),
    "infinity": (ANT, packed(x=np.full((1, 3), np.inf, np.float32)), TENSORS, "not_finite"),
    "what becomes infinite": (BEE, packed(KEY, x=SIGNS * np.float32(3.4e38)), TENSORS, "impossible"),
    "another name": (ANT, packed(y=X), TENSORS, "wrong_tensors"),
    "one more": (ANT, packed(x=X, y=X), TENSORS, "wrong_tensors"),
    "too many": (ANT, packed(**{f"x{n}": X for n in range(20)}), TENSORS, "malformed"),
    "cut off": (ANT, packed(x=X)[:-1], TENSORS, "malformed"),
    "nothing": (ANT, b"", TENSORS, "malformed"),
    "a header beyond the end": (ANT, (1 << 40).to_bytes(8, "little") + b"{}", TENSORS, "malformed"),
    "bytes that are no codec's": (
        ANT, safetensors.numpy.save({"x": np.zeros(9, np.uint8)}, {"codec": "int8"}), TENSORS, "malformed",
    ),
    "a codec of floats": (ANT, safetensors.numpy.save({"x": X}, {"codec": "int8"}), TENSORS, "malformed"),
    "a codec that is none": (ANT, safetensors.numpy.save({"x": X}, {"codec": "x" * 99}), TENSORS, "malformed"),
    "too large": (ANT, packed(x=np.zeros((400, 3), np.float32)), TENSORS, "too_large"),
    "much too large": (ANT, bytes(40_000), TENSORS, "too_large"),
    "too large for JSON": (ANT, as_json(data=[0] * 1000), JSON, "too_large"),
    "no JSON": (ANT, b"{", JSON, "malformed"),
    "an array": (ANT, b"[]", JSON, "malformed"),
    "nested JSON": (ANT, DEEP, JSON, "malformed"),
    "no UTF-8": (ANT, b'{"tensors": {"\xff": 1}}', JSON, "malformed"),
    "a lone surrogate": (ANT, b'{"contract": "\\ud800", "tensors": {}}', JSON, "malformed"),
    "no tensors": (ANT, b'{"tensors": {}}', JSON, "malformed"),
    "a field too many": (ANT, b'{"tensors": {}, "code": 1}', JSON, "malformed"),
    "numbers as texts": (ANT, as_json(data=["1"] * 6), JSON, "malformed"),
    "truth values": (ANT, as_json(data=[True] * 6), JSON, "malformed"),
    "NaN in JSON": (ANT, as_json(data=[float("nan")] * 6), JSON, "malformed"),
    "a number without end": (ANT, as_json(data=[10**400] * 2), JSON, "malformed"),
    "what float32 cannot hold": (ANT, as_json(data=[1e300] * 6), JSON, "not_finite"),
    "a shape below nothing": (ANT, as_json(shape=[-2, -3]), JSON, "malformed"),
    "a shape without end": (ANT, as_json(shape=[2**62, 2**62, 2**62]), JSON, "wrong_shape"),
    "a shape of texts": (ANT, as_json(shape=["2", "3"]), JSON, "malformed"),
    "an unknown type": (ANT, as_json(dtype="object"), JSON, "malformed"),
    "a byte that is none": (ANT, as_json(dtype="uint8", data=[300] * 6), JSON, "wrong_dtype"),
    "half a token": (ANT, as_json(dtype="int64", data=[0.5] * 6), JSON, "wrong_dtype"),
}  # fmt: skip


@pytest.fixture(scope="module")
def openapi(place: tuple[str, Path]) -> Any:
    return requests.get(f"{place[0]}/openapi.json", timeout=9).json()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_meant_is_refused_by_code(place: tuple[str, Path], openapi: Any, name: str) -> None:
    address, folder = place
    path, body, kind, code = HOSTILE[name]
    found = ask(address + path, body, kind)
    said = found.json()
    assert (said["code"], {*said}) == (code, {"code", "message", "field"})
    assert found.headers["Content-Type"] == JSON
    assert "Traceback" not in found.text
    documented = openapi["paths"]["/v1/blocks/{name}/{version}"]["post"]["responses"]
    assert f"`{code}`" in documented[str(found.status_code)]["description"]
    honest(address, folder)


def test_a_wrong_method_is_told_the_right_ones(place: tuple[str, Path]) -> None:
    for path, methods in ((ANT, "GET, POST"), ("/v1/blocks", "GET"), ("/openapi.json", "GET, HEAD")):
        found = requests.put(place[0] + path, timeout=9)
        assert (found.status_code, found.json()["code"], found.headers["Allow"]) == (405, "wrong_method", methods)


def test_every_code_can_be_had_and_is_documented(openapi: Any) -> None:
    elsewhere = {
        "unauthorised", "wrong_method", "slow_body", "withdrawn", "too_many_requests", "internal", "busy",
        "unknown_standing",
    }  # fmt: skip
    assert {code for *_, code in HOSTILE.values()} | elsewhere == {*get_args(Code)}
    responses = openapi["paths"]["/v1/blocks/{name}/{version}"]["post"]["responses"]
    assert {*responses["200"]["content"]} == {TENSORS, JSON}
    text = json.dumps(openapi)
    for name in ("JsonTensor", "Fault", "JsonAnswer", "Listing"):
        assert f"#/components/schemas/{name}" in text
        assert name in openapi["components"]["schemas"]
    assert not any(f"http{s}://" in text.replace("https://github.com/huggingface/safetensors", "") for s in ("", "s"))


def raw(address: str, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What comes back for bytes, until the other side ends."""
    host, port = address.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=10) as line:
        try:
            for piece in pieces:
                line.sendall(piece)
                time.sleep(pause)
            while more := line.recv(65536):
                found += more
        except ConnectionError:
            pass
    return found


HEAD = b"POST /v1/blocks/ant/1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-safetensors\r\n"


def test_a_limit_holds_while_a_body_is_read(place: tuple[str, Path]) -> None:
    """Whatever is said of its length, and where nothing is said."""
    address, folder = place
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b'"too_large"' in raw(address, chunked, b"1000\r\n" + bytes(4096) + b"\r\n", b"0\r\n\r\n")
    assert b'"too_large"' in raw(address, chunked, *[b"1000\r\n" + bytes(4096) + b"\r\n"] * 5)
    assert b'"too_large"' in raw(address, HEAD + b"Content-Length: 99999999999999999999\r\n\r\n")
    assert b'"slow_body"' in raw(address, HEAD + b"Content-Length: 100\r\n\r\n", b"a", b"b", pause=0.2)
    assert raw(address, HEAD, b"X-More: 1\r\n", pause=0.3) == b""  # a head without end: cut off
    assert b'"malformed"' in raw(address, b"\x16\x03\x01 no HTTP\r\n\r\n")
    assert b'"malformed"' in raw(address, HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n")
    assert b'"malformed"' in raw(address, HEAD + b"X: " + b"a" * 70_000 + b"\r\n\r\n")
    honest(address, folder)


def test_too_many_connections_are_told_so_and_the_others_go_on(place: tuple[str, Path]) -> None:
    address, folder = place
    host, port = address.removeprefix("http://").split(":")
    lines = [socket.create_connection((host, int(port)), timeout=5) for _ in range(4)]
    time.sleep(0.1)
    found = requests.get(f"{address}/v1/blocks", timeout=9)
    assert (found.status_code, found.json()["code"], found.headers["Retry-After"]) == (503, "busy", "1")
    for line in lines:
        line.close()
    time.sleep(0.1)
    honest(address, folder)


def test_no_parameter_is_in_any_answer(place: tuple[str, Path]) -> None:
    """Neither as bytes nor as numbers in a text: no two that stand side by side in a tensor."""
    address, folder = place
    answers = [
        requests.get(address + path, timeout=9).content
        for path in ("/v1/blocks", ANT, BEE, "/health", "/ready", "/metrics", "/openapi.json", "/none")
    ]
    answers += [ask(address + path, body, kind).content for path, body, kind, _ in HOSTILE.values()]
    answers += [features(address).content, features(address, X, "fp16").content]
    answers += [ask(address + ANT, as_json(), JSON).content, ask(address + BEE, packed(KEY, x=Z[:1] + 1)).content]
    for path in ("ant", "bee"):
        for tensor in load(folder / path / "1").program.tensors.values():
            flat = tensor.flatten()
            for one, other in pairwise(flat):
                pair = torch.stack([one, other]).numpy().tobytes()
                text = f"{one.item()},{other.item()}".encode()
                assert not any(pair in answer or text in answer.replace(b" ", b"") for answer in answers)


def ends(block: Block, day: date) -> None:
    """Set a block's last day."""
    assert block.artefact is not None
    manifest = block.artefact.manifest.model_copy(update={"expires": day})
    block.artefact = replace(block.artefact, manifest=manifest)


def test_what_is_withdrawn_answers_no_more_and_the_rest_works_on(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    for name, part, expires in (("ant", "base", None), ("bee", "modular", None), ("cat", "base", date(2999, 1, 1))):
        registry.add(written(tmp_path / name, part, expires=expires), name)
    registry.add(load(tmp_path / "bee"), "bee")
    registry.add(load(tmp_path / "bee"), "old")
    registry.revoke("old", 1, "never good")
    found = from_registry(registry, ["ant", "bee/1", "bee/2", "cat/1", "old/1"])
    with running(Service(found)) as address:
        for version in (1, 2):  # two versions side by side
            assert ask(f"{address}/v1/blocks/bee/{version}", packed(KEY, x=Z)).status_code == 200
        registry.revoke("bee", 1, "bee has left")
        ends(found[3], date(2020, 1, 1))
        until = time.monotonic() + 20
        while ask(address + BEE, packed(KEY, x=Z)).status_code != 410 and time.monotonic() < until:
            time.sleep(0.1)
        said = {name: ask(f"{address}/v1/blocks/{name}/1", packed(x=X)).json() for name in ("bee", "cat", "old")}
        assert said["bee"] == {"code": "withdrawn", "message": "bee/1 was revoked: bee has left", "field": "block"}
        assert said["cat"]["message"] == "cat/1 has expired on 2020-01-01: ask ant for a newer one"
        assert said["old"]["message"] == "old/1 was revoked: never good"
        assert ask(f"{address}/v1/blocks/bee/2", packed(KEY, x=Z)).status_code == 200
        assert ask(address + ANT, packed(x=X)).status_code == 200
        listing = requests.get(f"{address}/v1/blocks", timeout=9).json()["blocks"]
        assert [one["withdrawn"] is None for one in listing] == [True, False, True, False, False]
        (tmp_path / "registry" / "bee" / "1" / "REVOKED").unlink()
        time.sleep(1.3)
        assert ask(address + BEE, packed(KEY, x=Z)).status_code == 410  # what was revoked remains so
    with pytest.raises(ConfigError, match="no block is left to serve: bee/2 was revoked"):
        registry.revoke("bee", 2, "")
        Service(from_registry(registry, ["bee/2"]))
    with pytest.raises(ArtefactError, match="has no artefact ant/7"):
        from_registry(registry, ["ant/7"])
    with pytest.raises(ConfigError, match="two blocks have one name"):
        Service(from_folders([tmp_path / "ant", tmp_path / "ant"]))


def test_only_what_was_revoked_is_withdrawn_for_ever(tmp_path: Path) -> None:
    """A folder that is away for one look is as one that cannot be read; a date may be put right."""
    registry = Registry(str(tmp_path))
    for name in ("ant", "bee"):
        registry.add(written(tmp_path / "made" / name), name)
    place = tmp_path / "ant" / "1"
    for (block,) in (from_registry(registry, ["ant/1"]), from_folders([place])):
        block.refresh(0.0)
        place.rename(tmp_path / "away")
        for now in (1.0, STALE):
            with pytest.raises(ArtefactError, match="no artefact"):
                block.refresh(now)
            assert block.good(now) is block.artefact
            assert (block.may_answer(now), block.withdrawn) == (True, None)
        with pytest.raises(ServiceError) as refused:
            block.good(STALE + 1)
        assert refused.value.fault.code == "unknown_standing"
        assert not block.may_answer(STALE + 1)
        (tmp_path / "away").rename(place)
        block.refresh(STALE + 2)
        assert block.good(STALE + 2) is block.artefact
        ends(block, date(2020, 1, 1))
        assert not block.may_answer(STALE + 2)
        with pytest.raises(ServiceError, match="has expired on 2020-01-01"):
            block.good(STALE + 2)
        ends(block, date(2999, 1, 1))
        assert block.good(STALE + 2) is block.artefact
    registry.revoke("ant", 1, "ant has left")
    block.refresh(STALE + 3)
    (place / "REVOKED").unlink()
    block.refresh(STALE + 4)
    with pytest.raises(ServiceError, match="ant/1 was revoked: ant has left"):
        block.good(STALE + 4)
    with pytest.raises(ArtefactError, match="no artefact in"):
        from_folders([tmp_path / "nothing"])


def test_an_error_of_a_registry_does_not_say_that_nothing_was_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(str(tmp_path))
    registry.add(written(tmp_path / "made"), "ant")
    registry.revoke("ant", 1, "ant has left")
    file_system, info = LocalFileSystem(), LocalFileSystem.info

    def some(self: LocalFileSystem, path: str, **more: object) -> object:
        if path.endswith("REVOKED"):
            raise OSError(errno.EIO, "input/output error")
        return info(file_system, path, **more)

    monkeypatch.setattr(LocalFileSystem, "info", some)
    monkeypatch.setattr(LocalFileSystem, "isfile", AbstractFileSystem.isfile)  # as of all that are not local
    with pytest.raises(ConfigError, match="cannot be read"):
        registry.revoked("ant", 1)


def test_a_registry_elsewhere_is_asked_less_often(tmp_path: Path) -> None:
    artefact = written(tmp_path / "made")
    everywhere = Registry(str(tmp_path / "here")), Registry("memory://interfuse-test-elsewhere")
    for registry in everywhere:
        registry.add(artefact, "ant")
    assert [from_registry(registry, ["ant"])[0].every for registry in everywhere] == [1.0, 15.0]
    assert from_folders([tmp_path / "made"])[0].every == 1.0


def test_a_registry_that_cannot_be_read_is_believed_for_a_while(tmp_path: Path) -> None:
    (block,) = from_folders([written(tmp_path / "ant").path])

    def unreadable() -> str | None:
        raise ConfigError("no registry there")

    block.look = unreadable
    with pytest.raises(ConfigError):
        block.refresh(5.0)
    assert block.good(STALE) is block.artefact
    with pytest.raises(ServiceError, match="registry cannot be read"):
        block.good(STALE + 1)


class Lookup(nn.Module):
    """Tokens to numbers; others than 0 to 4 are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).mean(1)


def test_requests_are_computed_together_and_one_that_cannot_be_disturbs_no_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = export_program(Lookup().eval(), torch.zeros(2, 3, dtype=torch.int64))
    manifest = Manifest(
        part="base", inputs={"x": TensorForm(dtype="int64", shape=(3,))}, answers=None, origin=ORIGIN, owner=Owner(),
        fusion=Fusion(run="r", method="ifl", round=3, features={"x": OUT}),
    )  # fmt: skip
    write(tmp_path / "ant", manifest, program)
    artefact = load(tmp_path / "ant")
    sizes: list[int] = []

    async def ask_all() -> list[Any]:
        limits = ServiceLimits(rows=8, waiting=5, wait=5)
        batches = Batches(artefact, limits, pool, asyncio.Lock(), lambda rows: sizes.append(rows))
        asked = [asyncio.create_task(batches(torch.full((3, 3), token))) for token in (1, 2, 99, 4)]
        late = [asyncio.create_task(batches(torch.zeros(2, 3, dtype=torch.int64))) for _ in range(2)]
        await asyncio.sleep(0)
        worker = asyncio.create_task(batches.work())
        found = await asyncio.gather(*asked, *late, return_exceptions=True)
        worker.cancel()
        return found

    with ThreadPoolExecutor(1) as pool:
        first, second, impossible, fourth, late, full = asyncio.run(ask_all())
    assert sizes == [6, 8]  # 3 + 3, then 3 + 3 + 2
    for answer, token in ((first, 1), (second, 2), (fourth, 4), (late, 0)):
        expected = artefact(torch.full((len(answer), 3), token))
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(answer, expected)
    assert impossible.fault.code == "impossible"
    assert "embedding" in impossible.fault.message
    assert (full.fault.code, full.retry) == ("busy", 1)


class Broken:
    """What no artefact is: it has an error of no kind that one may have, and then fewer rows than went in."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.asked += 1
        if self.asked == 1:
            raise KeyError("x")
        return x[1:] if self.asked == 2 else x


def test_a_block_that_fails_ends_its_batch_and_not_the_service() -> None:
    async def ask_thrice() -> list[Any]:
        batches = Batches(Broken(), ServiceLimits(), pool, asyncio.Lock(), lambda rows: None)
        worker = asyncio.create_task(batches.work())
        found = [(await asyncio.gather(batches(Z_TENSOR), return_exceptions=True))[0] for _ in range(3)]
        worker.cancel()
        return found

    with ThreadPoolExecutor(1) as pool:
        first, second, third = asyncio.run(ask_thrice())
    assert first.fault.code == second.fault.code == "internal"
    assert torch.equal(third, Z_TENSOR)


def test_a_look_that_fails_in_any_way_is_counted_and_the_others_are_looked_at(tmp_path: Path) -> None:
    found = from_folders(blocks(tmp_path))

    def fails() -> str | None:
        raise RuntimeError("of a file system that nobody knows")

    found[0].look = fails
    with running(Service(found)) as address:
        (tmp_path / "bee" / "1" / "REVOKED").write_text("")
        until = time.monotonic() + 20
        while ask(address + BEE, packed(KEY, x=Z)).status_code != 410 and time.monotonic() < until:
            time.sleep(0.1)
        assert ask(address + BEE, packed(KEY, x=Z)).status_code == 410
        assert ask(address + ANT, packed(x=X)).status_code == 200
        counted = re.findall(
            r"interfuse_serve_unreadable_total (\d+)", requests.get(f"{address}/metrics", timeout=9).text
        )
        assert int(counted[0]) >= 1


def test_who_does_not_read_an_answer_loses_the_connection(tmp_path: Path) -> None:
    program = export_program(nn.Linear(3, 6000), torch.zeros(2, 3))
    manifest = Manifest(
        part="base", inputs={"x": TensorForm(dtype="float32", shape=(3,))}, answers=None, origin=ORIGIN, owner=Owner(),
        fusion=Fusion(run="r", method="ifl", round=3, features={"x": TensorForm(dtype="float32", shape=(6000,))}),
    )  # fmt: skip
    write(tmp_path / "wide", manifest, program)
    body = packed(x=np.zeros((512, 3), np.float32))
    with running(Service(from_folders([tmp_path / "wide"]), limits=ServiceLimits(request=0.5, idle=1))) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.settimeout(10)
            line.connect((host, int(port)))
            head = HEAD.replace(b"ant", b"wide") + f"Content-Length: {len(body)}\r\n\r\n".encode()
            line.sendall(head + body)
            time.sleep(2.5)
            size = 0
            try:
                while more := line.recv(1 << 20):
                    size += len(more)
            except ConnectionError:
                pass
        assert size < 4 * 512 * 6000


def test_who_waits_too_long_is_told_so(tmp_path: Path) -> None:
    artefact = written(tmp_path / "ant")

    async def nobody_works() -> None:
        with ThreadPoolExecutor(1) as pool:
            await Batches(artefact, ServiceLimits(wait=0.05), pool, asyncio.Lock(), lambda rows: None)(
                torch.zeros(1, 3)
            )

    with pytest.raises(ServiceError, match="no turn within"):
        asyncio.run(nobody_works())


class Slow:
    """An artefact that answers when it may."""

    def __init__(self) -> None:
        self.begun, self.may = threading.Event(), threading.Event()

    def __call__(self, x: Tensor) -> Tensor:
        self.begun.set()
        self.may.wait(20)
        return x


def test_a_computation_may_take_longer_than_the_queue() -> None:
    """What waits for another block that shares the processor waits in the queue."""

    async def both(compute: float) -> list[Any]:
        slow, limits, turn = Slow(), ServiceLimits(wait=0.2, compute=compute), asyncio.Lock()
        several = [Batches(artefact, limits, pool, turn, lambda rows: None) for artefact in (slow, Slow())]
        workers = [asyncio.create_task(batches.work()) for batches in several]
        first = asyncio.create_task(several[0](Z_TENSOR))
        await asyncio.to_thread(slow.begun.wait, 20)
        (second,) = await asyncio.gather(several[1](Z_TENSOR), return_exceptions=True)  # beyond `wait`
        if compute < 1:
            await asyncio.wait([first])
        slow.may.set()
        (found,) = await asyncio.gather(first, return_exceptions=True)
        for worker in workers:
            worker.cancel()
        return [found, second]

    with ThreadPoolExecutor(1) as pool:
        found, second = asyncio.run(both(20))
        assert torch.equal(found, Z_TENSOR)
        assert (second.fault.code, "no turn within" in str(second)) == ("busy", True)
        found, second = asyncio.run(both(0.1))
    assert (found.fault.code, "of computation" in str(found)) == ("busy", True)
    assert (second.fault.code, "no turn within" in str(second)) == ("busy", True)
    limits = ServiceLimits()
    assert limits.body_time + limits.wait + limits.compute < limits.request


def test_without_keys_pages_whose_name_leads_to_this_machine_are_refused(tmp_path: Path) -> None:
    folders = blocks(tmp_path)
    with running(Service(from_folders(folders), Access(hosts=LOCAL))) as address:
        port = address.rpartition(":")[2]

        def status(host: str, path: str) -> int:
            return requests.get(address + path, headers={"Host": host}, timeout=9).status_code

        for path in ("/v1/blocks", ANT, "/metrics"):
            for own in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}"):
                assert status(own, path) == 200
            for other in (f"rebound.example:{port}", "127.0.0.1.rebound.example", "[::1", "localhost@x", "10.0.0.1"):
                assert status(other, path) in (400, 401)
    file = tmp_path / "keys.toml"
    key = add_key(file, "app", 1000)
    with running(Service(from_folders(folders), Access(file, hosts=LOCAL))) as address:
        headers = {"Host": "models.example", "Authorization": f"Bearer {key}"}
        assert requests.get(f"{address}/v1/blocks", headers=headers, timeout=9).status_code == 200


def test_keys_are_told_apart_limited_and_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    app, other = add_key(file, "app", 1000), add_key(file, "other", 0.001)
    assert app not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="has a key of 'app' already"):
        add_key(file, "app", 1)
    with running(Service(from_folders(blocks(tmp_path)), Access(file))) as address:

        def listed(key: str | None, path: str = "/v1/blocks") -> requests.Response:
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            return requests.get(address + path, headers=headers, timeout=9)

        for wrong in (None, "", "if_", app[:-1], app + "x", "é", "x" * 300):
            for path in ("/v1/blocks", ANT, "/metrics"):
                found = listed(None if wrong is None else wrong.encode().decode("latin-1"), path)
                assert (found.status_code, found.json()["code"]) == (401, "unauthorised")
                assert found.headers["WWW-Authenticate"] == "Bearer"
        assert [listed(app).status_code for _ in range(5)] == [200] * 5
        answers = [listed(other) for _ in range(2)]
        assert [found.status_code for found in answers] == [200, 429]
        assert int(answers[1].headers["Retry-After"]) > 500
        assert ask(address + ANT, packed(x=X)).json()["code"] == "unauthorised"
        assert ask(address + ANT, packed(x=X), headers={"Authorization": f"Bearer {app}"}).status_code == 200
        assert requests.get(f"{address}/health", timeout=9).json() == {"status": "alive"}
        text = listed(app, "/metrics").text
        assert 'interfuse_serve_requests_total{block="ant/1",code="ok"} 1.0' in text
        assert 'interfuse_serve_requests_total{block="",code="unauthorised"}' in text
        assert app not in text
        file.write_text(file.read_text().partition("[keys.other]")[2].join(["[keys.other]", ""]))
        until = time.monotonic() + 20
        while listed(app).status_code != 401 and time.monotonic() < until:
            time.sleep(0.1)
        assert listed(app).status_code == 401
    file.write_text("keys = 3")
    with pytest.raises(ConfigError, match="keys"):
        Access(file)


def test_a_file_of_keys_that_cannot_be_read_is_believed_for_a_while(tmp_path: Path) -> None:
    file, now = tmp_path / "keys.toml", 0.0
    key = f"Bearer {add_key(file, 'app', 1000)}"
    good = file.read_text()
    access = Access(file, clock=lambda: now)
    for wrong in (None, "[keys.app", "keys = 3", good.replace("sha256", "sha265"), "pipe"):
        file.unlink()
        if wrong == "pipe":
            os.mkfifo(file)
        elif wrong is not None:
            file.write_text(wrong)
        with pytest.raises(ConfigError, match="keys"):
            access.refresh()
        now += STALE
        assert access.admit(key, None, "") == "app"
        now += 1
        with pytest.raises(ConfigError, match="keys"):
            access.refresh()
        with pytest.raises(ServiceError) as refused:
            access.admit(key, None, "")
        assert (refused.value.fault.code, refused.value.retry) == ("unknown_standing", 30)
        file.unlink(missing_ok=True)
        file.write_text(good)
        access.refresh()
        assert access.admit(key, None, "") == "app"
    file.write_text("")
    access.refresh()
    with pytest.raises(ServiceError, match="no such API key"):
        access.admit(key, None, "")


def test_rates_that_nobody_can_have_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    for rate in (0.0, -1.0, 1e-320, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="a rate of"):
            Access(rate=rate)
        with pytest.raises(ConfigError, match="a rate of"):
            add_key(file, "app", rate)
    assert not file.exists()
    for wrong in (
        "rate = 0",
        "rate = 1e-320",
        "rate = inf",
        "burst = 0.5",
        "burst = nan",
        'sha256 = "' + "é" * 64 + '"',
    ):
        digest = "" if "sha256" in wrong else f'sha256 = "{"0" * 64}"'
        file.write_text(f"[keys.app]\n{digest}\n{wrong}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"keys\.app\.{wrong.split()[0]}"):
            Access(file)
    slowest = Access(rate=1e-6)
    slowest.admit(None, None, "")
    with pytest.raises(ServiceError, match="times a second"):
        slowest.admit(None, None, "")
