"""Codecs between parties: the bits of the local engine, what is counted is what went over, and the vendor has a say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from parties import Parties, assert_equal_to_local, parties

TWO = ("ant", "bee")
SETTINGS = {"batch_size": 8}


def counted(found: Parties) -> tuple[Counter[str], Counter[str]]:
    """Bytes up by node: as the coordinator's ledger has them, and as the nodes' audit logs do."""
    ledger = [json.loads(line) for line in (found.run / "ledger.jsonl").read_text().splitlines()]
    said: Counter[str] = Counter()
    for line in ledger:
        if line["direction"] == "up":
            said[found.names[line["client"]]] += line["wire"]
    left: Counter[str] = Counter()
    for name in found.names:
        for text in (found.folder / name / "state" / "audit.jsonl").read_text().splitlines():
            left[name] += json.loads(text)["bytes"]
    return said, left


@pytest.mark.parametrize(
    ("method", "codecs", "own"),
    [
        ("ifl", {"default": "int8+zstd"}, {}),
        ("ifl", {"FusionOutputs.z": "topk:0.5+int4"}, {}),
        ("fedavg", {"default": "int8+ef"}, {}),
        ("ifl-sketch", {"FusionOutputs.z": "int4:tensor+nearest", "FusionOutputs.y": "sorted"}, {"directions": 3}),
        ("ifl-quantised", {"default": "zstd", "CodedOutputs.y": "sorted"}, {"refresh": 2}),
    ],
)
def test_coded_messages_give_the_bits_of_the_local_engine(
    method: str, codecs: dict[str, str], own: dict[str, int], tmp_path: Path
) -> None:
    with parties(tmp_path, TWO) as two:
        recipe = {"method": method, "settings": SETTINGS | own, "codecs": codecs}
        disclosures = ["features", "labels", "parameters", "prototypes"]
        allow = {"methods": [method], "disclosures": disclosures, "retention": True}
        config = two.prepare(recipe, ["logistic"], allow=allow)
        coordinator = two.coordinate()
        nodes = two.all_nodes()
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0], two.everything()
        assert_equal_to_local(two, config)
        said, left = counted(two)
        assert said == left
        lines = [json.loads(line) for line in (two.run / "ledger.jsonl").read_text().splitlines()]
        assert any(line["wire"] < line["raw"] for line in lines if line["direction"] == "up")


def test_a_vendor_demands_a_codec_and_adds_noise(tmp_path: Path) -> None:
    with parties(tmp_path, TWO) as two:
        limits = {"noise": {"features": 0.5}, "codec": {"features": "int4 + zstd", "labels": "none"}}
        recipe = {"settings": SETTINGS, "codecs": {"FusionOutputs.z": "int4+zstd"}}
        two.prepare(recipe, ["logistic"], limits=limits)
        coordinator = two.coordinate()
        nodes = two.all_nodes()
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0], two.everything()
        said, left = counted(two)
        assert said == left


def test_another_codec_than_the_vendors_is_refused_by_name_in_both_logs(tmp_path: Path) -> None:
    names = ("coarse", "plain", "exact")
    with parties(tmp_path, names, secure=False) as some:
        some.prepare({"settings": SETTINGS, "codecs": {"default": "int8+zstd"}}, ["logistic"])
        data = tmp_path / "coarse.npz"
        some.vendor("coarse", data, "logistic", limits={"codec": {"features": "int4"}})
        some.vendor("plain", data, "logistic", limits={"codec": {"features": "none"}})
        some.vendor("exact", data, "logistic", limits={"codec": {"labels": "none"}})
        coordinator = some.coordinate()
        nodes = {name: some.node(name) for name in names}
        expected = {
            "coarse": "codec of FusionOutputs.z (features): expected int4, found int8+zstd",
            "plain": "codec of FusionOutputs.z (features): expected none, found int8+zstd",
        }
        for name, text in expected.items():
            assert nodes[name].wait() == 2, some.everything()
            assert text in nodes[name].text()
            assert text in coordinator.text()
        coordinator.says("joined node=exact")


def test_a_vendors_file_with_an_unknown_codec_says_so(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant",), secure=False) as one:
        one.prepare({}, ["logistic"], limits={"codec": {"features": "int3"}})
        node = one.node("ant")
        assert node.wait() == 2
        assert "limits.codec" in node.text()
        assert "'int3' is unknown" in node.text()


def test_a_dry_run_shows_coded_messages_in_words(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant",), secure=False) as one:
        one.prepare({"settings": SETTINGS, "codecs": {"default": "int8+zstd"}}, ["logistic"])
        process = one.start("node", "ant/vendor.toml", "--dry-run", "out", "--recipe", "recipe.toml", log="dry")
        assert process.wait() == 0, process.text()
        replies = [json.loads(file.read_text()) for file in sorted((tmp_path / "out").glob("*-reply.json"))]
        shown = next(reply["tensors"] for reply in replies if reply.get("message") == "FusionOutputs")
        assert shown["z"]["type"] == "torch.float32"
        assert shown["z"]["shape"] == [8, 8]
