"""From texts to rows of tokens, by a tokenizer that is made of public texts or comes from a folder or a hub."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from jaxtyping import Int64

from interfuse.data.weights import WEIGHTS, Weights
from interfuse.errors import ConfigError, nearest
from interfuse.references import COMMIT, HUB, is_commit

WORDS, PIECES = "words", "pieces"
"""The names of the tokenizers that are made of texts."""
NOTHING = 0
"""The token before a text that is shorter than others, of the tokenizers that are made of texts."""
_UNKNOWN = 1
_WORD = re.compile(r"[a-z]+|\d+|[^\sa-z\d]", re.ASCII)


@dataclass(frozen=True)
class Tokenizer:
    """How texts become numbers.

    :param size: of the vocabulary: tokens are below it.
    :param padding: the token before a text that is shorter than others.
    :param ends: behind which character of a text each of its tokens ends; None: it does not tell.
    """

    size: int
    padding: int
    encode: Callable[[str], Sequence[int]]
    ends: Callable[[str], Sequence[int]] | None = None

    def rows(self, texts: Iterable[str], length: int, behind: str = "") -> Int64[np.ndarray, "texts length"]:
        """The first tokens of each text at the end of its row, so the last place is always a token.

        Args:
            behind: What stands behind each text, whole: a question.

        Raises:
            ConfigError: it leaves no place for a text.
        """
        end = list(self.encode(behind)) if behind else []
        if len(end) >= length:
            raise ConfigError(f"{length} tokens are too few for a text and what is asked of it: take {len(end) + 1}")
        return _at_the_end([[*self.encode(text)[: length - len(end)], *end] for text in texts], self.padding, length)

    def rows_of_ends(
        self, texts: Iterable[str], length: int, behind: str = ""
    ) -> Int64[np.ndarray, "texts length"] | None:
        """Behind which character each token of :meth:`rows` ends, of its text and what stands behind the whole of that;
        0 before a text. None: the tokenizer does not tell."""
        ends = self.ends
        if ends is None:
            return None
        end = list(ends(behind)) if behind else []
        rows = [[*ends(text)[: length - len(end)], *(len(text) + place for place in end)] for text in texts]
        return _at_the_end(rows, 0, length)


def _at_the_end(rows: Sequence[Sequence[int]], before: int, length: int) -> Int64[np.ndarray, "rows length"]:
    return np.array([[before] * (length - len(row)) + [*row] for row in rows], np.int64).reshape(-1, length)


def tokenizer_named(name: str, texts: Sequence[str], size: int) -> Tokenizer:
    """The tokenizer of a name.

    - ``words``: the most frequent words, numbers and marks of the texts, small letters; any other one is unknown;
    - ``pieces``: byte-pair encoding, learned from the texts (extra ``transformers``), in which nothing is unknown;
    - ``smollm2-135m``, ``minilm-l6``: that of the model of this name (:data:`.weights.WEIGHTS`);
    - ``hf:FOLDER``, ``hf:FOLDER?gguf=FILE``, ``hf:NAME?revision=COMMIT``: that of a transformers model.

    Args:
        texts: What a vocabulary is made of: public ones, since it would tell what is in others.
        size: Of a vocabulary that is made.

    Raises:
        ConfigError: there is no such tokenizer, or the extra is not installed.
    """
    if name == WORDS:
        return words(texts, size)
    if name == PIECES:
        return pieces(texts, size)
    if name in WEIGHTS:
        return of_package(WEIGHTS[name])
    if name.startswith(HUB):
        return of_transformers(name)
    raise ConfigError(f"no tokenizer {name!r}: {nearest(name, (WORDS, PIECES, *WEIGHTS))}, or hf:FOLDER")


def short_name(name: str) -> str:
    """What the input of a tokenizer is called: its name, of ``hf:`` the last part of its place."""
    return Path(name.removeprefix(HUB).partition("?")[0]).name


def words(texts: Sequence[str], size: int) -> Tokenizer:
    """See :func:`tokenizer_named`: token 0 is nothing, 1 an unknown word; equally frequent ones are in alphabetical
    order."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    known = sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]
    numbers = {word: number for number, word in enumerate(known, 2)}
    return Tokenizer(
        len(known) + 2,
        NOTHING,
        lambda text: [numbers.get(word, _UNKNOWN) for word in _WORD.findall(text.lower())],
        _ends_of_words,
    )


def _ends_of_words(text: str) -> list[int]:
    """Counted in the text as it is: some capitals are several small letters."""
    places = [place for place, letter in enumerate(text, 1) for _ in letter.lower()]
    return [places[word.end() - 1] for word in _WORD.finditer(text.lower())]


def pieces(texts: Sequence[str], size: int) -> Tokenizer:
    """See :func:`tokenizer_named`: token 0 is nothing."""
    try:
        from tokenizers import Tokenizer as Made
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise _lacking(PIECES) from error
    made = Made(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<nothing>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return Tokenizer(
        made.get_vocab_size(),
        NOTHING,
        lambda text: made.encode(text, add_special_tokens=False).ids,
        lambda text: [end for _, end in made.encode(text, add_special_tokens=False).offsets],
    )


def of_transformers(name: str) -> Tokenizer:
    """See :func:`tokenizer_named`. What it adds around a text (a beginning, an end) is left out."""
    made = _loaded(name)

    def ends(text: str) -> list[int]:
        found = made(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [end for _, end in found["offset_mapping"]]

    return Tokenizer(
        len(made),
        _padding(made),
        lambda text: made.encode(text, add_special_tokens=False, verbose=False),
        ends if made.is_fast else None,  # those of Python alone do not tell
    )


def of_package(weights: Weights) -> Tokenizer:
    """That of a model in a package, as :func:`of_transformers`."""
    if weights.gguf is None:
        return of_transformers(weights.reference)
    try:
        from tokenizers import Tokenizer as Made
    except ImportError as error:
        raise _lacking(weights.package.name) from error

    def read() -> str:
        found = _loaded(weights.reference)
        return json.dumps([len(found), _padding(found), found.backend_tokenizer.to_str()])

    size, padding, text = json.loads(weights.read_once("tokenizer", read))
    made = Made.from_str(text)
    return Tokenizer(
        size,
        padding,
        lambda text: made.encode(text, add_special_tokens=False).ids,
        lambda text: [end for _, end in made.encode(text, add_special_tokens=False).offsets],
    )


def _padding(made: Any) -> int:
    return int(made.pad_token_id if made.pad_token_id is not None else made.eos_token_id or 0)


def _loaded(name: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise _lacking(name) from error
    place, _, query = name.removeprefix(HUB).partition("?")
    options = {key: values[-1] for key, values in parse_qs(query).items()}
    for key in options:
        if key not in ("gguf", "revision"):
            raise ConfigError(f"tokenizer {name!r} has the option {key!r}: {nearest(key, ('gguf', 'revision'))}")
    folder = Path(place).expanduser()
    if not folder.is_dir() and not is_commit(options.get("revision")):
        raise ConfigError(
            f"tokenizer {name!r}: there is no such folder; for one of a hub add its commit, as in "
            f"'hf:{place}?revision=...' with {COMMIT} hexadecimal digits"
        )
    where = {"gguf_file": options["gguf"]} if "gguf" in options else {}
    try:
        return AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else place,
            revision=options.get("revision", "main"),
            local_files_only=folder.is_dir(),
            trust_remote_code=False,  # without this transformers asks whoever sits at the terminal
            **where,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer {name!r} cannot be loaded: {error}") from error


def _lacking(name: str) -> ConfigError:
    return ConfigError(
        f"tokenizer {name!r} needs the extra transformers of interfuse: pip install transformers tokenizers"
    )
