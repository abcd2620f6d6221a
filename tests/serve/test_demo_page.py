"""The page that one draws on, in a real browser: answers, what leaves it, keys, names, at the width of a telephone."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import requests
import torch
from browsing import BROWSER, Page, browser
from onnx import TensorProto, helper, numpy_helper
from small_artefacts import ORIGIN
from torch import Tensor, nn

from interfuse.artefacts import (
    Answers,
    Artefact,
    Fusion,
    Manifest,
    Owner,
    Part,
    TensorForm,
    export_program,
    load,
    write,
)
from interfuse.errors import ConfigError
from interfuse.serve import Block, Service, bodies, from_folders, running
from interfuse.serve import runtime as onnxruntime_web
from interfuse.serve.runtime import RUNTIME, get_runtime, runtime_files

FORM, WIDTH = TensorForm(dtype="uint8", shape=(1, 8, 8)), 6
SIX = (0.65, 0.1), (0.35, 0.3), (0.25, 0.6), (0.4, 0.85), (0.65, 0.7), (0.5, 0.5), (0.3, 0.6)
WIDTHS = [390, 1280]
TRAVEL = "document.querySelector('#travel').innerText"
INT8 = "codec = document.querySelector('#codec'); codec.value = 'int8'; codec.dispatchEvent(new Event('change'))"


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float().flatten(1)).relu()


def artefact(folder: Path, part: Part, owner: str, seed: int) -> Artefact:
    torch.manual_seed(seed)
    fusion = Fusion(run="r", method="ifl", round=3, features={"x": TensorForm(dtype="float32", shape=(WIDTH,))})
    manifest = Manifest(
        part=part, inputs={"x": FORM} if part == "base" else None, ranges={"x": (0, 16)} if part == "base" else {},
        fusion=fusion, owner=Owner(name=owner), origin=ORIGIN,
        answers=None if part == "base" else Answers(task="classification", classes=tuple("0123456789"), shape=(10,)),
    )  # fmt: skip
    module, x = (Picture(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), (nn.Linear(WIDTH, 10), torch.zeros(2, WIDTH))
    write(folder, manifest, export_program(*(module if part == "base" else x)))
    return load(folder)


def as_onnx(base: Artefact) -> bytes:
    """What the exporter would write, made by hand in no time."""
    weight, bias = (base.program.tensors[f"module.layer.{name}"].numpy() for name in ("weight", "bias"))
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w", "b"], ["h"], transB=1), helper.make_node("Relu", ["h"], ["x.out"]),
    ]  # fmt: skip
    given = helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 1, 8, 8])
    made = helper.make_tensor_value_info("x.out", TensorProto.FLOAT, ["batch", WIDTH])
    held = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    model = helper.make_model(
        helper.make_graph(nodes, "base", [given], [made], held), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> list[Block]:
    folder = tmp_path_factory.mktemp("blocks")
    base = artefact(folder / "ant-base", "base", "Ant & Co", 0)
    artefact(folder / "bee-modular", "modular", "Bee <Ltd>", 1)
    artefact(folder / "cat-modular", "modular", "Cat", 2)
    found = from_folders([folder / name for name in ("ant-base", "bee-modular", "cat-modular")])
    found[0].onnx = as_onnx(base)
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if BROWSER is None:
        pytest.skip("needs Chromium or Chrome on PATH, and there is none")
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Tensors that the service was given."""
    found: list[Tensor] = []
    check = bodies.check

    def checked(tensors: dict[str, Tensor], *more: object) -> object:
        found.extend(tensors.values())
        return check(tensors, *more)

    monkeypatch.setattr(bodies, "check", checked)
    return found


def answers(page: Page) -> list[str]:
    page.wait("/compositions say/.test(document.querySelector('#summary').textContent)")
    found: list[str] = page.value("[...document.querySelectorAll('td b')].map((one) => one.textContent)")
    return found


def expected(blocks: list[Block], z: Tensor) -> list[str]:
    found = []
    for block in blocks[1:]:
        assert block.artefact is not None
        scores = block.artefact(z)
        assert isinstance(scores, Tensor)
        found.append(str(int(scores.argmax())))
    return found


def test_where_nothing_is_installed_the_picture_leaves_and_the_page_says_so(
    page: Page, blocks: list[Block], taken: list[Tensor], tmp_path: Path
) -> None:
    with running(Service(blocks, demo=tmp_path)) as address:
        for width in WIDTHS:
            page.complaints.clear()
            page.open(f"{address}/", width)
            page.wait("document.body?.dataset.ready")
            assert "the picture leaves this browser" in page.value(TRAVEL)
            page.draw(*SIX)
            found = answers(page)
            travel = page.value(TRAVEL)
            assert "The picture leaves: 1" in travel
            assert "bytes to each of 2 modular blocks" in travel
            picture = [tensor for tensor in taken if tensor.dtype == torch.uint8][-1]
            assert picture.shape == (1, 1, 8, 8)
            assert 10 < int(picture.max()) <= 16  # the unit of the training rows, not of bytes
            assert blocks[0].artefact is not None
            z = blocks[0].artefact(picture)
            assert isinstance(z, Tensor)
            assert found == expected(blocks, z)
            assert page.value("document.documentElement.scrollWidth <= innerWidth")
            assert "Bee <Ltd>" in page.value("document.querySelector('table').innerText")
            assert page.complaints == []
        names = page.names()
        assert names["application"] == ["Paper to draw on"]
        assert names["button"] == ["Clear"]
        assert names["columnheader"][1:] == ["Bee <Ltd> bee-modular/1", "Cat cat-modular/1"]
        assert "textbox" not in names  # where no API key is asked for
        assert [line for line in page.requested if address not in line] == []


def test_a_hand_that_holds_no_mouse_draws_with_keys(
    page: Page, blocks: list[Block], taken: list[Tensor], tmp_path: Path
) -> None:
    with running(Service(blocks, demo=tmp_path)) as address:
        page.open(f"{address}/", 390)
        page.wait("document.body?.dataset.ready")
        page.value("document.querySelector('canvas').focus()")
        page.press("ArrowUp", 4)
        assert page.value("document.querySelector('#where').textContent") == "Pen up, column 8 of 16, row 4 of 16."
        page.press(" ")
        page.press("ArrowDown", 8)
        assert page.value("document.querySelector('#where').textContent") == "Pen down, column 8 of 16, row 12 of 16."
        answers(page)
        picture = [tensor for tensor in taken if tensor.dtype == torch.uint8][-1][0, 0]
        assert int(picture[2:6, 3:5].min()) > 4
        assert int(picture[:, :2].max()) == int(picture[:, 6:].max()) == 0
        page.press("Delete")
        assert page.value("document.querySelector('#summary').textContent") == "Draw something."


@pytest.mark.skipif(not runtime_files(RUNTIME), reason="needs onnxruntime-web: `interfuse serve --demo --get-runtime`")
def test_a_base_block_runs_in_the_browser_and_the_picture_stays_there(
    page: Page, blocks: list[Block], taken: list[Tensor], tmp_path: Path
) -> None:
    made = []
    for runtime in (tmp_path, RUNTIME):
        taken.clear()
        page.complaints.clear()
        with running(Service(blocks, demo=runtime)) as address:
            page.open(f"{address}/", 390)
            page.wait("document.body?.dataset.ready")
            page.draw(*SIX)
            found = answers(page)
            made.append([tensor for tensor in taken if tensor.dtype == torch.float32][-1])
            assert found == expected(blocks, made[-1])
            if runtime == tmp_path:
                continue
            assert {tensor.dtype for tensor in taken} == {torch.float32}  # features alone
            assert "the picture stays here" in page.value(TRAVEL)
            taken.clear()
            page.value(INT8)
            page.wait(f"document.querySelector('#travel').innerText !== {json.dumps(page.value(TRAVEL))}")
            made.append(taken[-1])
            assert page.complaints == []
    torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made[2], made[1], rtol=0, atol=float(made[1].max()) / 255)


def test_models_of_base_blocks_alone_are_handed_out(blocks: list[Block], tmp_path: Path) -> None:
    with running(Service(blocks, demo=tmp_path)) as address:
        assert requests.get(f"{address}/page/models/ant-base/1", timeout=9).content == blocks[0].onnx
        for path in (
            "models/bee-modular/1",
            "models/ant-base/2",
            "ort/ort.wasm.min.mjs",
            "../faults.py",
            "%2e%2e/faults.py",
            "page",
        ):
            found = requests.get(f"{address}/page/{path}", timeout=9)
            assert (found.status_code, found.json()["code"]) == (404, "not_found")
        policy = requests.get(address, timeout=9).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        blocks[0].revoked = "was revoked: ant has left"
        try:
            assert requests.get(f"{address}/page/models/ant-base/1", timeout=9).status_code == 410
        finally:
            blocks[0].revoked = None
    with running(Service(blocks)) as address:
        for path in ("/", "/page/models/ant-base/1", "/page/settings.json"):
            assert requests.get(address + path, timeout=9).status_code == 404


def test_a_runtime_that_was_changed_is_none(tmp_path: Path) -> None:
    assert runtime_files(tmp_path) == {}
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(10))
    assert runtime_files(tmp_path) == {}


def test_a_runtime_comes_from_npm_once_and_is_the_one_that_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: name.encode() for name in onnxruntime_web.RUNTIME_FILES}
    packed, folder, npm = tmp_path / "packed.tgz", tmp_path / "made" / "here", tmp_path / "bin" / "npm"
    with tarfile.open(packed, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    monkeypatch.setenv("PATH", str(npm.parent))
    with pytest.raises(ConfigError, match="needs npm"):
        get_runtime(folder)
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\n/bin/cp {packed} "$4/onnxruntime-web.tgz"\n')
    npm.chmod(0o755)
    with pytest.raises(ConfigError, match="not the one that was looked at"):
        get_runtime(folder)
    assert not folder.exists()
    sha512 = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    monkeypatch.setattr(onnxruntime_web, "SHA512", sha512)
    with pytest.raises(ConfigError, match="other files than the page was tried with"):
        get_runtime(folder)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(onnxruntime_web, "RUNTIME_FILES", sums)
    get_runtime(folder)
    assert runtime_files(folder) == files
    npm.unlink()
    get_runtime(folder)  # it is there
    (folder / "ort.wasm.min.mjs").write_text("changed")
    npm.write_text("#!/bin/sh\nexit 3\n")
    npm.chmod(0o755)
    with pytest.raises(ConfigError, match="ended with 3"):
        get_runtime(folder)
