"""Data of every task, and models for it, as somebody would bring them: small, made here, and learnable."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from interfuse import Dataset, LanguageModelling, QuestionAnswering, SplitModel, pair
from interfuse.data import load_table

WORDS, TIME = 40, 9
QUESTIONS = 3


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split(name: str, x: Tensor | Mapping[str, Tensor], y: Tensor, **facts: object) -> Dataset:
    """The last sixth of the rows is the common test set."""
    end = len(y) * 5 // 6

    def part(rows: slice) -> Tensor | dict[str, Tensor]:
        return x[rows] if isinstance(x, Tensor) else {key: tensor[rows] for key, tensor in x.items()}

    return Dataset.from_arrays(name, part(slice(end)), y[:end], part(slice(end, None)), y[end:], **facts)


def houses(folder: Path, rows: int = 240) -> Dataset:
    """A table with a price that is nearly linear in four columns."""
    x = torch.randn(rows, 4, generator=noise())
    price = 200 + 30 * x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 3 * torch.randn(rows, generator=noise(1))
    return written(folder / "houses.csv", {"price": price}, x)


def films(folder: Path, rows: int = 240) -> Dataset:
    """A table with three labels a row, each by the sign of a column."""
    x = torch.randn(rows, 4, generator=noise())
    labels = {f"kind{i}": (x[:, i] > 0.3 * i).long() for i in range(3)}
    return written(folder / "films.csv", labels, x)


def written(path: Path, targets: Mapping[str, Tensor], x: Tensor) -> Dataset:
    """A table, written and read again."""
    columns = {**targets, **{f"column {i}": x[:, i] for i in range(x.shape[1])}}
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        out.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    read = load_table(path, list(targets))
    assert isinstance(read.x_train, Tensor)
    return split(path.stem, read.x_train, read.y_train, task=read.task.name, class_names=read.task.names)


def messages(rows: int = 360) -> Dataset:
    """Texts of tokens; spam has more of the first words."""
    y = torch.arange(rows) % 2
    x = torch.randint(0, WORDS, (rows, TIME), generator=noise())
    few = torch.randint(0, 8, (rows, TIME), generator=noise(1))
    spam = (torch.rand(rows, TIME, generator=noise(2)) < 0.5) & (y[:, None] == 1)
    return split("messages", torch.where(spam, few, x), y, class_names=("ham", "spam"))


def spam(path: Path, words: int = 600, time: int = 24) -> Dataset:
    """The SMS Spam Collection as the numbers of its most frequent words: 0 fills up, 1 is any other word."""
    lines = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").split("\n") if line]
    texts = [re.findall(r"[a-z]+|\d+|[£!?]", text.lower()) for _, text in lines]
    common = [word for word, _ in Counter(word for text in texts for word in text).most_common(words - 2)]
    number = {word: index for index, word in enumerate(common, 2)}
    x = torch.zeros(len(texts), time, dtype=torch.int64)
    for row, text in enumerate(texts):
        known = [number.get(word, 1) for word in text[:time]]
        x[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
    return split("spam", x, torch.tensor([int(kind == "spam") for kind, _ in lines]), class_names=("ham", "spam"))


def pictures(rows: int = 360) -> Dataset:
    """A picture with one bright quarter and a question about it: is it the upper half, the left half, the first?"""
    place, asked = torch.arange(rows) % 4, torch.arange(rows) // 4 % QUESTIONS
    picture = torch.randint(0, 60, (rows, 6, 6), generator=noise(), dtype=torch.uint8)
    for row, quarter in enumerate(place.tolist()):
        top, left = divmod(quarter, 2)
        picture[row, 3 * top : 3 * top + 3, 3 * left : 3 * left + 3] += 150
    said = torch.stack([place < 2, place % 2 == 0, place == 0])[asked, torch.arange(rows)]
    question = torch.stack([asked, asked.new_full((rows,), QUESTIONS)], 1)
    return split(
        "pictures", {"picture": picture, "question": question}, said.long(), task=QuestionAnswering(("no", "yes"))
    )


def counting(rows: int = 240) -> Dataset:
    """Texts in which the next token is the last one and one more; some places do not count."""
    start = torch.randint(0, 7, (rows, 1), generator=noise())
    text = (start + torch.arange(TIME + 1)) % 7
    y = text[:, 1:].clone()
    y[torch.rand(y.shape, generator=noise(1)) < 0.2] = -100
    return split("counting", text[:, :-1].contiguous(), y, task=LanguageModelling(7))


def linear(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return pair(nn.Sequential(nn.Linear(*sample_shape, width), nn.ReLU()), nn.Linear(width, classes))


def deeper(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    base = nn.Sequential(nn.Linear(*sample_shape, 12), nn.ReLU(), nn.Linear(12, width), nn.ReLU())
    return pair(base, nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, classes)))


def bag(classes: int, width: int, words: int = WORDS) -> SplitModel:
    return pair(nn.Sequential(nn.EmbeddingBag(words, width), nn.Tanh()), nn.Linear(width, classes))


class LastState(nn.Module):
    """A recurrent layer's state at the end, or at every place."""

    def __init__(self, words: int, width: int, *, everywhere: bool = False) -> None:
        super().__init__()
        self.words, self.layer, self.everywhere = nn.Embedding(words, 8), nn.GRU(8, width, batch_first=True), everywhere

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor
        states, _ = self.layer(self.words(x))
        return states if self.everywhere else states[:, -1]


def recurrent(classes: int, width: int, words: int = WORDS) -> SplitModel:
    return pair(LastState(words, width), nn.Linear(width, classes))


class Seen(nn.Module):
    """A picture and a question side by side; ``product`` lets one choose from the other."""

    def __init__(self, pixels: int, width: int, *, product: bool) -> None:
        super().__init__()
        self.picture, self.question = nn.Linear(pixels, width), nn.EmbeddingBag(QUESTIONS + 1, width)
        self.product = product

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        seen, asked = self.picture(x["picture"].flatten(1)), self.question(x["question"])
        return seen.relu() * asked if self.product else (seen + asked).relu()


def beside(sample_shape: Mapping[str, tuple[int, ...]], classes: int, width: int) -> SplitModel:
    return _seen(sample_shape, classes, width, product=False)


def chosen(sample_shape: Mapping[str, tuple[int, ...]], classes: int, width: int) -> SplitModel:
    return _seen(sample_shape, classes, width, product=True)


def _seen(sample_shape: Mapping[str, tuple[int, ...]], classes: int, width: int, *, product: bool) -> SplitModel:
    _, height, wide = sample_shape["picture"]
    head = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, classes))
    return pair(Seen(height * wide, width, product=product), head)


def writer(classes: int, width: int) -> SplitModel:
    return pair(LastState(classes, width, everywhere=True), nn.Linear(width, classes))


MODELS: Mapping[str, tuple[Callable[..., SplitModel], ...]] = {
    "regression": (linear, deeper), "multi-label": (linear, deeper), "tokens": (bag, recurrent),
    "question answering": (beside, chosen), "language modelling": (writer,),
}  # fmt: skip


def data_of(kind: str, folder: Path) -> Dataset:
    """The data of a task."""
    if kind in ("regression", "multi-label"):
        return (houses if kind == "regression" else films)(folder)
    return {"tokens": messages, "question answering": pictures, "language modelling": counting}[kind]()
