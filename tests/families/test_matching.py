"""Tokens of two tokenizers that end at the same character, against lists by hand; A and B aligned by them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_alignment import Aligned, bases, far
from torch import Tensor, nn
from worlds import LlamaLayer, federation, live_model

from interfuse.data import Dataset, PublicData
from interfuse.data.tokenizing import Tokenizer, pieces, words
from interfuse.errors import DataError, InterfuseError
from interfuse.families.matching import Tokens, common_places, own_places, reads
from interfuse.families.public_tokens import chosen_rows, chosen_tokens, observed
from interfuse.models import SplitModel
from interfuse.models.backbones.stages import Body, split_model

TEXTS = ["ab cd, e", "cd", "e, ab ab e cd"]
WIDTH, CLASSES, TOKENS = 8, 3, 12


def of_pairs(text: str) -> list[str]:
    return [text[i : i + 2] for i in range(0, len(text), 2)]


PAIRS = Tokenizer(
    TOKENS,
    0,
    lambda text: [1 + sum(map(ord, pair)) % (TOKENS - 1) for pair in of_pairs(text)],
    lambda text: [min(2 * i, len(text)) for i in range(1, 1 + len(of_pairs(text)))],
)
CHARACTERS = replace(PAIRS, encode=lambda text: [1 + ord(c) % 9 for c in text], ends=lambda t: range(1, len(t) + 1))


class Layers(nn.Module):
    """A transformer as the stage of transformers' models takes it."""

    def __init__(self, layers: int, renamed: Tensor | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(LlamaLayer(WIDTH) for _ in range(layers))
        if renamed is not None:
            self.embed.weight.data[renamed] = self.embed.weight.data.clone()

    def forward(self, inputs_embeds: Tensor, use_cache: bool) -> Any:
        h = inputs_embeds
        for layer in self.layers:
            h = layer(h)
        return SimpleNamespace(last_hidden_state=h)


def model_of(shape: Any, reads: str, layers: int = 4, renamed: Tensor | None = None) -> SplitModel:
    body = Body(Layers(layers, renamed), "model", "embed", "causal", WIDTH, padding=0)
    return split_model(body, shape, CLASSES, reads=reads)


def data_of(texts: list[str], length: int = 12, **tokenizers: Tokenizer) -> Dataset:
    x = {name: made.rows(texts, length) for name, made in tokenizers.items()}
    y = torch.arange(len(texts)) % CLASSES
    ends: Any = {name: made.rows_of_ends(texts, length) for name, made in tokenizers.items()}
    made: Dataset = Dataset.from_arrays(
        "texts", x, y, x, y, class_names=("a", "b", "c"), layout=dict.fromkeys(x, "tokens"), ends=ends
    )
    return made


def public_of(data: Dataset) -> PublicData:
    return PublicData(data, lambda rows: rows)


def ends_of(made: Tokenizer, *asked: Any) -> list[list[int]]:
    found = made.rows_of_ends(*asked)
    assert found is not None
    rows: list[list[int]] = found.tolist()
    return rows


def test_words_and_pieces_say_where_their_tokens_end() -> None:
    by_words = words(TEXTS, 50)
    assert ends_of(by_words, TEXTS, 5) == [[0, 2, 5, 6, 8], [0, 0, 0, 0, 2], [1, 2, 5, 8, 10]]
    assert ends_of(by_words, ["İx ab"], 5) == [[0, 1, 1, 2, 5]]  # whose small letters are an i, a dot and an x
    assert ends_of(by_words, ["ab cd, e"], 4, "\ne:") == [[2, 5, 10, 11]]
    assert Tokenizer(2, 0, CHARACTERS.encode).rows_of_ends(TEXTS, 4) is None
    by_pieces = pieces(["the cat sat on the mat"] * 3, 300)
    assert by_pieces.ends is not None
    text = "the cat sat on the mat"
    places, ids = by_pieces.ends(text), by_pieces.encode(text)
    assert places[-1] == len(text)
    for k, end in enumerate(places):
        if end == len(text) or text[end] == " ":
            assert by_pieces.encode(text[:end]) == ids[: k + 1]


def test_tokens_match_where_both_end_and_last_ones_match_each_other() -> None:
    public = public_of(data_of(TEXTS, words=words(TEXTS, 50), pairs=PAIRS))
    shape = {"words": (12,), "pairs": (12,)}
    by_words, by_pairs = model_of(shape, "words"), model_of(shape, "pairs")
    # ab| cd|,| e|    ab| c|d,| e|
    assert common_places(by_words, public, 0) == [0, 2, 3, 3]
    assert common_places(by_pairs, public, 0) == [0, 2, 3, 3]
    # e|,| ab| ab| e| cd|    e,| a|b |ab| e| c|d|
    assert common_places(by_words, public, 2) == [1, 3, 4, 5, 5]
    assert common_places(by_pairs, public, 2) == [0, 3, 4, 6, 6]
    assert (reads(by_pairs, public), reads(by_words, public)) == (0, 1)
    found = own_places(by_pairs, public, torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3]))
    assert found.tolist() == [2, 0, 6]
    with pytest.raises(InterfuseError, match="row 0 of the public data has 4 places in common, but none is 4"):
        own_places(by_pairs, public, torch.tensor([0]), torch.tensor([4]))


def test_all_ends_of_words_are_ends_of_characters_and_a_text_may_be_cut() -> None:
    public = public_of(data_of(TEXTS, 6, words=words(TEXTS, 50), letters=CHARACTERS))
    shape = {"words": (6,), "letters": (6,)}
    assert common_places(model_of(shape, "words"), public, 0) == [0, 1, 2, 3]  # letters go to "ab cd," alone
    assert common_places(model_of(shape, "letters"), public, 0) == [1, 4, 5, 5]
    several = replace(
        CHARACTERS,
        encode=lambda text: [1 + ord(c) % 9 for c in text for _ in "--"],
        ends=lambda text: [end for end in range(1, len(text) + 1) for _ in "--"],
    )
    public = public_of(data_of(TEXTS, 12, words=words(TEXTS, 50), bytes=several))
    assert common_places(model_of({"words": (12,), "bytes": (12,)}, "bytes"), public, 1) == [3, 3]


def test_chosen_tokens_are_places_in_common_with_their_answers() -> None:
    public = public_of(data_of(TEXTS, words=words(TEXTS, 50), pairs=PAIRS))
    tokens = chosen_tokens(model_of({"words": (12,), "pairs": (12,)}, "pairs"), public, chosen_rows(public, 9), 99)
    assert list(zip(tokens.row.tolist(), tokens.place.tolist(), strict=True)) == [
        *((0, k) for k in range(4)), *((1, k) for k in range(2)), *((2, k) for k in range(5)),
    ]  # fmt: skip
    answers = [pair for pair, answers in zip(tokens.row.tolist(), tokens.answer.tolist(), strict=True) if answers]
    assert answers == [0, 0, 1, 1, 2, 2]  # the last one is an end in common, and the last


def test_what_is_observed_is_at_the_models_own_place() -> None:
    public = public_of(data_of(TEXTS, words=words(TEXTS, 50), pairs=PAIRS))
    model, path = model_of({"words": (12,), "pairs": (12,)}, "pairs"), "transformer.model.layers.0.self_attn.q_proj"
    tokens = Tokens(torch.tensor([0, 2, 2]), torch.tensor([1, 0, 1]), torch.zeros(3, dtype=torch.bool))
    seen = observed(model, public, tokens, {path: path})[path]
    ids = torch.tensor([PAIRS.encode(TEXTS[row])[place] for row, place in ((0, 2), (2, 0), (2, 3))])
    torch.testing.assert_close(seen.inputs, model.get_parameter("transformer.model.embed.weight")[ids].detach())


RENAMED = torch.tensor([0, *range(TOKENS - 1, 0, -1)])
"""Another tokenizer's numbers of the same tokens."""


def letters(count: int) -> list[str]:
    draw = torch.Generator().manual_seed(0)
    return ["".join(chr(97 + int(c)) for c in torch.randint(0, 9, (5,), generator=draw)) for _ in range(count)]


def one(sample_shape: Any, classes: int, width: int) -> SplitModel:
    return model_of(sample_shape, "one")


def two(sample_shape: Any, classes: int, width: int) -> SplitModel:
    return model_of(sample_shape, "two", renamed=RENAMED)


def silent(sample_shape: Any, classes: int, width: int) -> SplitModel:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Layers(4)

        def forward(self, x: dict[str, Tensor]) -> Any:
            return self.inner(self.inner.embed(x["one"]), False).last_hidden_state[:, -1]

    return SplitModel({"transformer": Embeds(), "answer": nn.Linear(WIDTH, CLASSES)})


def world(models: Any, *, ends: bool = True, **settings: Any) -> Any:
    renamed = replace(CHARACTERS, encode=lambda text: RENAMED[[1 + ord(c) % 9 for c in text]].tolist())
    data = data_of(letters(40), 7, one=CHARACTERS, two=renamed)
    data = data if ends else replace(data, ends={})
    return federation(replace(Aligned(), **settings), clients=2, models=models, dataset=data)


@pytest.mark.parametrize("mode", ["residual", "base_outputs", "gradients"])
def test_a_backbone_that_knows_the_tokens_by_other_numbers_finds_the_anchors_a_and_b(mode: Any) -> None:
    f = world((one, two), align=mode)
    anchor, other = (bases(live_model(f, client)) for client in (0, 1))
    for path, (A, B) in other.items():
        assert far(A, anchor[path][0]) < 1e-3
        if mode != "gradients" and not path.endswith(("gate_proj", "up_proj")):
            assert far(B, anchor[path][1]) < 1e-3


def test_different_tokenizers_without_matching_are_an_error_though_they_are_of_one_size() -> None:
    with pytest.raises(InterfuseError, match="different tokenizers, and A and B are aligned token by token"):
        world((one, two), ends=False)
    world((one, one), ends=False)
    world((one, two), ends=False, align="none")


def test_a_model_that_does_not_say_what_it_reads_cannot_be_matched() -> None:
    with pytest.raises(InterfuseError, match="take a model that says what it reads"):
        world((one, silent))


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({"three": torch.zeros(3, 12, dtype=torch.int64)}, "ends of 'three', which is no input of tokens"),
        ({"pairs": torch.zeros(3, 11, dtype=torch.int64)}, "ends of 'pairs' hold"),
        ({"pairs": torch.zeros(3, 12)}, "ends of 'pairs' hold"),
        ({"pairs": -torch.ones(3, 12, dtype=torch.int64)}, "numbers below 0"),
    ],
)
def test_ends_that_cannot_be_are_refused(ends: Any, said: str) -> None:
    data = data_of(TEXTS, words=words(TEXTS, 50), pairs=PAIRS)
    with pytest.raises(DataError, match=said):
        replace(data, ends=ends)


def test_ends_go_with_their_rows_and_are_part_of_what_the_data_are() -> None:
    data = data_of(TEXTS * 4, words=words(TEXTS, 50), pairs=PAIRS)
    assert data.digest != replace(data, ends={}).digest
    held = torch.tensor([i < 3 for i in range(12)]).numpy()
    for fewer in (data.with_train_rows(6), data.testing_on(held)):
        again = data_of(TEXTS * 4, words=words(TEXTS, 50), pairs=PAIRS)
        for row, tokens in enumerate(fewer.x_train["words"]):
            same = [i for i in range(12) if torch.equal(again.x_train["words"][i], tokens)]
            assert any(torch.equal(fewer.ends["words"][row], again.ends["words"][i]) for i in same)
            assert len(fewer.ends["pairs"]) == len(fewer.y_train)
    assert not data.with_all_rows().ends
