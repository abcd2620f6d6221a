"""DRAKE's and HFLB's tasks, and sets in their layout, which the tests make themselves."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from interfuse.data import Natural, available, load, make_shares
from interfuse.data.drake import ASSIGNMENTS, DRAKE, HFLB, OPEN_ENDED, UNSEEN
from interfuse.data.inputs import named
from interfuse.data.instructions import shown, unpack
from interfuse.data.task import IGNORED
from interfuse.errors import ConfigError, DataError

COMMIT = "0123456789abcdef" * 2 + "01234567"


def entry(question: str, answer: str, *pictures: str) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": list(pictures) if len(pictures) > 1 else pictures[0], "conversations": said}


def write_task(root: Path, task: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    archive, _, subset = task.rpartition("-")
    for part, entries in (("train", train), ("test", test)):
        (root / archive / part).mkdir(parents=True, exist_ok=True)
        (root / archive / part / f"dataset-{subset}.json").write_text(json.dumps(entries))


def picture(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), colour).save(path)


@pytest.fixture
def drake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERFUSE_DATA", str(tmp_path))
    monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "drake"
    picture(root / "VSR" / "images" / "red.png", (255, 0, 0))
    picture(root / "NLVR2" / "images" / "blue.png", (0, 0, 255))
    choice = "\nChoice list:[True, False]. Your answer is:"
    one = entry(f"<image>\nCaption: it is red{choice}", "True", "dataset/VSR/images/red.png")
    write_task(root, "VSR-0", [one] * 4, [one] * 2)
    both = ("./dataset/VSR/images/red.png", "dataset/NLVR2/images/blue.png")
    write_task(root, "NLVR2-0", [entry(f"<image>\n<image>\nalike{choice}", "False", *both)] * 3, [one])
    return root


class TestTheTasks:
    def test_of_drake(self) -> None:
        tasks = [task for tasks in DRAKE for task in tasks]
        assert [len(of) for of in DRAKE] == [4] * 10
        assert len(set(tasks)) == 40
        assert set(OPEN_ENDED) < set(tasks)
        assert not set(UNSEEN) & set(tasks)
        families = Counter(task.rpartition("-")[0] for task in tasks)
        assert (families["WCVQA"], families["Co-Instruct-DB"], families["iconqa"], families["SEED-Bench-2"]) == (
            4,
            4,
            4,
            3,
        )
        assert DRAKE[4] == ("IRFL-1", "Bongard-OpenWorld-1", "COMICS_Dialogue-0", "IRFL-0")

    def test_of_hflb(self) -> None:
        assert [len(of) for of in HFLB] == [4] * 9
        assert HFLB[1] == ("GQA-20", "GQA-21", "GQA-22", "GQA-23")
        assert HFLB[6][3] == "NLVR2_feddat-3"

    def test_who_has_which_model(self) -> None:
        """How many of each, as the release's table has it."""
        counts = {name: sorted(Counter(models).values()) for name, models in ASSIGNMENTS.items()}
        assert counts == {
            "drake-llama-3b": [10],
            "drake-llama-1b-3b": [4, 6],
            "drake-llama-1b-3b-8b": [2, 3, 5],
            "drake-qwen-0.5b-1.5b-3b": [2, 3, 5],
            "drake-llama-1b-3b-qwen-1.5b": [2, 3, 5],
            "drake-llama-3b-qwen-1.5b": [4, 6],
            "drake-llama-3b-qwen-1.5b-3b": [3, 3, 4],
            "hflb-llama-3b": [9],
            "hflb-llama-1b-3b": [3, 6],
        }
        assert ASSIGNMENTS["drake-llama-3b-qwen-1.5b-3b"][6:9] == ("llama3.2_3B_vl", "qwen2.5_3B_vl", "llama3.2_3B_vl")


def test_rows_of_the_layout(drake: Path) -> None:
    dataset = load("drake", tasks=["VSR-0", "NLVR2-0"], tokenizer="words", length=12, side=8)
    assert dataset.shape == {"picture": (3, 8, 8), "question": (12,)}
    assert dataset.groups is not None
    assert dataset.test_groups is not None
    assert (dataset.groups.tolist(), dataset.test_groups.tolist()) == ([0] * 4 + [1] * 3, [0, 0, 1])
    x, y = named(dataset.x_train), dataset.y_train
    # the answer alone counts, one token, behind the question's last one
    assert (y != IGNORED).sum(1).tolist() == [1] * 7
    assert (y[:, -1] != IGNORED).all()
    assert y[0, -1] != y[4, -1]
    assert (x["question"][:, 1:] == y[:, :-1])[y[:, :-1] != IGNORED].all()
    assert not (x["question"] == y[:, -1:]).all(1).any()
    shares = make_shares(dataset, Natural(drawn=False), 2, 0, 0.0, "source")
    assert [share.train.tolist() for share in shares] == [[0, 1, 2, 3], [4, 5, 6]]
    few = load("drake", tasks=["VSR-0", "NLVR2-0"], tokenizer="words", rows=[1, 2], test_rows=1)
    assert few.groups is not None
    assert few.groups.tolist() == [0, 1, 1]


def test_several_pictures_are_side_by_side(drake: Path) -> None:
    one, two = drake / "VSR" / "images" / "red.png", drake / "NLVR2" / "images" / "blue.png"
    np.testing.assert_array_equal(shown([one], 4)[:, 0, 0], [255, 0, 0])
    both = shown([one, two], 5)  # two by two cells of two points, and a point of rest
    assert both[:, 1, 1].tolist() == [255, 0, 0]
    assert both[:, 1, 2].tolist() == [0, 0, 255]
    assert not both[:, 2:].any()
    assert not both[:, :, 4].any()
    assert not shown([], 4).any()
    three = shown([one, two, two], 4)
    assert three[2, 2:, :2].min() == 255
    assert not three[:, 2:, 2:].any()


def test_an_answer_is_never_cut_for_its_question(drake: Path) -> None:
    long = entry("<image> what " * 50, "a b c", "dataset/VSR/images/red.png")
    write_task(drake, "VSR-0", [long], [long])
    dataset = load("drake", tasks="VSR-0", tokenizer="words", length=5, side=4)
    assert (dataset.y_train != IGNORED).sum().item() == 3
    assert (named(dataset.x_train)["question"] != 0).all()


def test_nothing_is_asked_at_padding_from_where_a_model_sees_all_of_an_answer(drake: Path) -> None:
    one = entry("<image>", "it is red", "dataset/VSR/images/red.png")
    write_task(drake, "VSR-0", [one] * 2, [one])
    dataset = load("drake", tasks="VSR-0", tokenizer="words", length=6, side=8)
    asked = dataset.y_train != IGNORED
    assert asked.sum(1).tolist() == [2, 2]
    assert (named(dataset.x_train)["question"][asked] != 0).all()


def test_nothing_is_downloaded_without_a_commit(drake: Path) -> None:
    with pytest.raises(ConfigError, match="TQA of drake is not in INTERFUSE_DATA.*commit of SNUMPR/DRAKE"):
        load("drake", tasks="TQA-0", tokenizer="words")
    with pytest.raises(ConfigError, match="40 hexadecimal digits"):
        load("drake", tasks="TQA-0", tokenizer="words", revision="main")
    with pytest.raises(ConfigError, match="needs the tokenizer of the models"):
        load("drake", tasks="VSR-0")
    with pytest.raises(ConfigError, match="did you mean 'VSR-0'"):
        load("drake", tasks="VSR-1", tokenizer="words")
    infos = {info.name: info for info in available()}
    assert (infos["drake"].state, infos["hflb"].state) == ("found", "download")
    assert infos["drake"].rows_train is None


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return out.getvalue()


def test_a_download_is_unpacked_once(drake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    image = (drake / "VSR" / "images" / "red.png").read_bytes()
    entries = json.dumps([entry("<image> what?", "red", "dataset/TQA/images/red.png")] * 2).encode()
    names = {f"TQA/{part}/dataset-0.json": entries for part in ("train", "test")}
    (tmp_path / "TQA.tar").write_bytes(packed({**names, "TQA/images/red.png": image}))
    asked = []

    def downloaded(repository: str, name: str, **options: Any) -> str:
        asked.append((repository, name, options["repo_type"], options["revision"]))
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", downloaded)
    found = [load("drake", tasks="TQA-0", tokenizer="words", side=4, revision=COMMIT) for _ in range(2)]
    assert asked == [("SNUMPR/DRAKE", "TQA.tar", "dataset", COMMIT)]
    assert found[0].digest == found[1].digest
    assert [path.name for path in (tmp_path / "cache" / "drake" / COMMIT).iterdir()] == ["TQA"]


def test_an_archive_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(packed({"../../out.txt": b"1"}))
    with pytest.raises(tarfile.TarError):
        unpack(tmp_path / "bad.tar", "TQA", tmp_path / "cache" / "root")
    assert not list(tmp_path.rglob("out.txt"))


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (entry("q", "a", "dataset/../../secret.png"), "entry 0 names a picture outside of"),
        (entry("q", "a", "/etc/secret.png"), "entry 0 names a picture outside of"),
        (entry("q", " ", "dataset/VSR/images/red.png"), "entry 0 has no answer"),
        (entry("q", "a", "dataset/VSR/images/none.png"), "cannot read the picture .*none.png"),
        ({"image": "x", "conversations": [{"value": "q"}]}, "entry 0 has no two conversations"),
        ({"image": 3, "conversations": [{"value": "q"}, {"value": "a"}]}, "entry 0 has no two conversations"),
        ([], "entry 0 has no two conversations"),
    ],
)
def test_what_is_no_entry(bad: Any, told: str, drake: Path) -> None:
    write_task(drake, "VSR-0", [bad], [bad])
    with pytest.raises(DataError, match=told):
        load("drake", tasks="VSR-0", tokenizer="words")


def test_what_is_no_file(drake: Path) -> None:
    (drake / "VSR" / "train" / "dataset-0.json").write_text("{}")
    with pytest.raises(DataError, match="is no list of entries"):
        load("drake", tasks="VSR-0", tokenizer="words")
    (drake / "VSR" / "train" / "dataset-0.json").unlink()
    with pytest.raises(DataError, match="cannot read .*dataset-0.json"):
        load("drake", tasks="VSR-0", tokenizer="words")
