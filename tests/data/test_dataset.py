from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interfuse.data import (
    Classification,
    Dataset,
    LanguageModelling,
    MultiLabel,
    Normalisation,
    QuestionAnswering,
    Regression,
    stratified_subset,
)
from interfuse.errors import ConfigError, DataError


def good(**changes: Any) -> Dataset:
    normal = Normalisation(**{"scale": 255.0, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)} | {
        name: changes.pop(name) for name in ("scale", "mean", "std") if name in changes
    })  # fmt: skip
    fields: dict[str, Any] = {
        "name": "made",
        "x_train": torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2),
        "y_train": torch.tensor([0, 1, 1, 0]),
        "x_test": torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
        "y_test": torch.tensor([1]),
        "task": Classification(("no", "yes")),
        "normalisation": {"x": normal},
        "groups": torch.tensor([0, 0, 1, 2]),
    }
    return Dataset(**fields | changes)


class TestValidation:
    def test_good(self) -> None:
        dataset = good()
        assert (dataset.classes, dataset.shape) == (2, (3, 2, 2))
        good(x_test=torch.zeros(0, 3, 2, 2, dtype=torch.uint8), y_test=torch.zeros(0, dtype=torch.int64))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("x_train", torch.zeros(4, 3, 2, 2, dtype=torch.float64)),
            ("x_train", torch.full((4, 3, 2, 2), torch.nan)),
            ("x_train", torch.zeros(4, dtype=torch.uint8)),
            ("x_test", torch.zeros(1, 3, 2, 3, dtype=torch.uint8)),
            ("x_test", torch.zeros(1, 3, 2, 2)),
            ("y_train", torch.tensor([0, 1, 1])),
            ("y_train", torch.tensor([0, 1, 1, 2])),
            ("y_train", torch.tensor([0, 1, 1, -1])),
            ("y_train", torch.tensor([0, 1, 1, 0], dtype=torch.int32)),
            ("y_test", torch.tensor([2])),
            ("y_test", torch.tensor([[1]])),
            ("groups", torch.tensor([0, 0, 1])),
            ("groups", torch.tensor([0, 0, 1, -1])),
            ("scale", 0.0),
            ("scale", float("inf")),
            ("mean", (0.1, 0.2)),
            ("mean", (0.1, 0.2, float("nan"))),
            ("std", (0.4, 0.5, 0.0)),
            ("std", ()),
        ],
    )
    def test_the_error_names_the_field(self, field: str, value: object) -> None:
        with pytest.raises(DataError, match=f"data set 'made': {field} "):
            good(**{field: value})

    def test_no_training_rows(self) -> None:
        with pytest.raises(DataError, match="x_train has no rows"):
            good(x_train=torch.zeros(0, 3, 2, 2, dtype=torch.uint8), y_train=torch.zeros(0, dtype=torch.int64))

    def test_infinite_test_row(self) -> None:
        with pytest.raises(DataError, match="x_test has values that are not finite"):
            good(x_train=torch.zeros(4, 3, 2, 2), x_test=torch.full((1, 3, 2, 2), torch.inf))


class TestNormalise:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    @pytest.mark.parametrize("moments", [((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ((0.1,), (0.4,))])
    @pytest.mark.parametrize("axes", [(), (5,), (4, 4)])
    def test_is_the_formula_per_channel(
        self, dtype: torch.dtype, moments: tuple[tuple[float, ...], tuple[float, ...]], axes: tuple[int, ...]
    ) -> None:
        x = torch.randint(0, 256, (6, 3, *axes), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(
            dtype
        )
        before = x.clone()
        dataset = good(x_train=x[:4], x_test=x[4:5], mean=moments[0], std=moments[1])
        z = dataset.normalise(x)
        mean, std = (np.array(m).reshape(1, -1, *[1] * len(axes)) for m in moments)
        np.testing.assert_allclose(z.numpy(), (x.double().numpy() / 255 - mean) / std, rtol=0, atol=2e-6)
        assert z.dtype == torch.float32
        assert torch.equal(x, before)


class TestFromArrays:
    def test_images_get_a_channel_and_the_rest_is_worked_out(self) -> None:
        x = np.random.default_rng(0).integers(0, 256, (10, 6, 5), np.uint8)
        y = np.arange(10) % 3
        dataset = Dataset.from_arrays("made", x, y.astype(np.uint8), torch.tensor(x[:2]), y[:2].tolist())
        assert dataset.x_train.shape == (10, 1, 6, 5)
        assert (dataset.x_train.dtype, dataset.y_train.dtype) == (torch.uint8, torch.int64)
        normal = dataset.normalisation["x"]
        assert (normal.scale, dataset.class_names) == (255, ("0", "1", "2"))
        assert normal.mean == pytest.approx([x.mean() / 255], rel=1e-12)
        assert normal.std == pytest.approx([x.std() / 255], rel=1e-12)

    def test_moments_per_channel(self) -> None:
        x = np.random.default_rng(0).integers(0, 256, (10, 3, 6, 5), np.uint8)
        x[:, 2] = 7
        normal = Dataset.from_arrays("made", x, [0] * 10, x, [0] * 10).normalisation["x"]
        assert normal.mean == pytest.approx(x.mean(axis=(0, 2, 3)) / 255, rel=1e-12)
        assert normal.std == pytest.approx([*x[:, :2].std(axis=(0, 2, 3)) / 255, 1.0], rel=1e-12)

    @pytest.mark.parametrize("dtype", [np.float64, np.int16, np.float32])
    def test_other_numbers_become_floats(self, dtype: type) -> None:
        x = (np.random.default_rng(0).normal(size=(10, 4)) * 100).astype(dtype)
        dataset = Dataset.from_arrays("table", x, [0, 1] * 5, x[:1], [1])
        normal = dataset.normalisation["x"]
        assert (dataset.x_train.dtype, normal.scale, dataset.shape) == (torch.float32, 1, (4,))
        assert normal.mean == pytest.approx(x.astype(np.float32).mean(axis=0, dtype=np.float64), rel=1e-9)
        assert normal.std == pytest.approx(x.astype(np.float32).std(axis=0, dtype=np.float64), rel=1e-9)

    def test_signals_keep_their_channels(self) -> None:
        x = np.random.default_rng(0).normal(size=(10, 9, 128))
        dataset = Dataset.from_arrays("signals", x, [0] * 10, x, [0] * 10, has_channels=True, groups=range(10))
        assert (dataset.shape, len(dataset.normalisation["x"].mean)) == ((9, 128), 9)
        assert dataset.groups is not None
        assert dataset.groups.tolist() == list(range(10))

    def test_what_is_given_is_kept(self) -> None:
        x = np.zeros((2, 4, 4), np.uint8)
        facts: dict[str, Any] = {"note": "n", "licence": "l", "class_names": ("a", "b", "c")}
        dataset = Dataset.from_arrays("made", x, [0, 1], x, [0, 1], scale=16.0, mean=[0.5], std=[0.25], **facts)
        assert {name: getattr(dataset, name) for name in facts} == facts
        assert dataset.normalisation["x"] == Normalisation(16.0, (0.5,), (0.25,))

    @pytest.mark.parametrize("y", [["a", "b"], [0, float("nan")]])
    def test_labels_that_are_no_whole_numbers(self, y: list[Any]) -> None:
        with pytest.raises(DataError, match="y_train"):
            Dataset.from_arrays("made", np.zeros((2, 4)), y, np.zeros((1, 4)), [0])

    @pytest.mark.parametrize("x", [np.zeros((0, 4)), np.zeros(2), np.array([[{}], [{}]])])
    def test_bad_rows(self, x: np.ndarray) -> None:
        with pytest.raises(DataError, match="x_train"):
            Dataset.from_arrays("made", x, [0] * len(x), x, [0] * len(x))

    def test_read_only_arrays_are_not_aliased(self) -> None:
        x = np.zeros((2, 4), np.uint8)
        x.setflags(write=False)
        dataset = Dataset.from_arrays("made", x, [0, 1], x, [0, 1])
        dataset.x_train.add_(1)
        assert x.max() == 0


def test_two_data_sets_are_told_apart() -> None:
    dataset = good()
    assert dataset == dataset
    assert dataset != dataclasses.replace(dataset)


class TestStratifiedSubset:
    @given(labels=st.lists(st.integers(0, 6), max_size=60), size=st.integers(0, 80), seed=st.integers(0, 9))
    def test_proportional_sorted_and_exact(self, labels: list[int], size: int, seed: int) -> None:
        y = np.array(labels, np.int64)
        rows = stratified_subset(y, size, np.random.default_rng(seed))
        total = min(size, len(y))
        assert len(rows) == total
        assert (np.diff(rows) > 0).all()
        remainders = {"up": [Fraction(1)], "down": [Fraction(0)]}
        for label in set(labels):
            quota = Fraction(labels.count(label) * total, len(labels))
            taken = int((y[rows] == label).sum())
            assert abs(taken - quota) < 1
            remainders["up" if taken > quota // 1 else "down"].append(quota % 1)
        assert min(remainders["up"]) >= max(remainders["down"])
        np.testing.assert_array_equal(rows, stratified_subset(y, size, np.random.default_rng(seed)))

    def test_every_row_of_a_class_can_be_chosen(self) -> None:
        y = np.repeat([0, 1], 10)
        chosen = [stratified_subset(y, 4, np.random.default_rng(seed)) for seed in range(200)]
        assert set(np.concatenate(chosen).tolist()) == set(range(20))

    def test_equal_classes_have_equal_chances_of_a_row_more(self) -> None:
        y = np.repeat(np.arange(5), 10)
        more = sum(np.bincount(y[stratified_subset(y, 12, np.random.default_rng(seed))]) - 2 for seed in range(500))
        assert more.sum() == 1000
        assert np.abs(more - 200).max() < 4 * math.sqrt(500 * 0.4 * 0.6)

    def test_negative(self) -> None:
        with pytest.raises(ConfigError):
            stratified_subset(np.zeros(3), -1, np.random.default_rng(0))


class TestTasks:
    """Which task targets look like, and how they are kept."""

    def test_numbers_that_are_not_whole_are_a_regression(self) -> None:
        y = np.array([1.5, 2.0, 4.0, 4.5])
        data = Dataset.from_arrays("table", np.zeros((4, 2)), y, np.zeros((1, 2)), [7])
        assert data.task == Regression(("0",), (3.0,), (float(y.std()),))
        assert (data.y_train.dtype, data.y_train.shape, data.y_test.tolist()) == (torch.float32, (4, 1), [[7.0]])
        assert (data.classes, data.class_names) == (0, ())

    def test_several_zeros_and_ones_a_row_are_labels(self) -> None:
        y = [[0, 1, 1], [1, 0, 0]]
        data = Dataset.from_arrays("made", np.zeros((2, 4)), y, np.zeros((1, 4)), y[:1], class_names=["a", "b", "c"])
        assert data.task == MultiLabel(("a", "b", "c"))
        assert data.y_train.tolist() == y

    def test_several_other_whole_numbers_a_row_may_be_many_things(self) -> None:
        x, y = np.zeros((2, 4)), np.array([[0, 7], [1, 0]])
        with pytest.raises(DataError, match="give the task"):
            Dataset.from_arrays("made", x, y, x, y)
        assert Dataset.from_arrays("made", x, y, x, y, task="regression").task.dims() == {"outputs": 2}
        tokens = Dataset.from_arrays("made", x, y, x, y, task=LanguageModelling(8))
        assert (tokens.y_train.dtype, tokens.y_train.tolist()) == (torch.int64, y.tolist())

    def test_whole_numbers_can_be_a_regression_by_name(self) -> None:
        x, y = np.zeros((3, 2)), [10, 20, 60]
        assert Dataset.from_arrays("codes", x, y, x, y).task == Classification(("10", "20", "60"))
        prices = Dataset.from_arrays("prices", x, y, x, y, task="regression", class_names=["price"]).task
        assert isinstance(prices, Regression)
        assert (prices.names, prices.mean) == (("price",), (30.0,))
        with pytest.raises(DataError, match="unknown task 'regresion': did you mean 'regression'"):
            Dataset.from_arrays("prices", x, y, x, y, task="regresion")

    def test_targets_that_do_not_vary_have_a_deviation_of_one(self) -> None:
        data = Dataset.from_arrays("made", np.zeros((2, 4)), [0.5, 0.5], np.zeros((1, 4)), [0.5])
        assert data.task == Regression(("0",), (0.5,), (1.0,))


class TestInputs:
    """Types are kept, and a sample may have several inputs."""

    @pytest.mark.parametrize("dtype", [np.int64, np.int32])
    def test_tokens_stay_whole_numbers(self, dtype: type) -> None:
        x = np.array([[5, 0, 2], [1, 1, 300]], dtype)
        data = Dataset.from_arrays("words", x, [0, 1], x, [0, 1])
        assert (data.x_train.dtype, data.normalisation) == (torch.int64, {})
        assert data.normalise(data.x_train).tolist() == x.tolist()

    def several(self, **changes: Any) -> Dataset:
        x = {
            "picture": np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8),
            "question": np.arange(15).reshape(5, 3),
            "age": np.arange(5.0)[:, None],
        }
        train, test = ({name: rows[a:b] for name, rows in x.items()} for a, b in ((0, 3), (3, 5)))
        return Dataset.from_arrays(
            "vqa", train, [0, 1, 2], test | changes, [0, 1], task=QuestionAnswering(tuple("abc"))
        )

    def test_several_inputs_each_keep_their_kind(self) -> None:
        data = self.several()
        assert data.shape == {"picture": (1, 4, 4), "question": (3,), "age": (1,)}
        x = data.normalise(data.x_train)
        assert {name: t.dtype for name, t in x.items()} == {
            "picture": torch.float32, "question": torch.int64, "age": torch.float32,
        }  # fmt: skip
        for name in ("picture", "age"):
            assert float(x[name].mean()) == pytest.approx(0, abs=1e-6)
            assert float(x[name].std(correction=0)) == pytest.approx(1, abs=1e-6)
        assert {name: len(t) for name, t in data.example.items()} == {"picture": 2, "question": 2, "age": 2}

    def test_inputs_that_do_not_fit_are_refused_by_name(self) -> None:
        with pytest.raises(DataError, match=r"x_test\['age'\] has 3 rows, not 2"):
            self.several(age=np.zeros((3, 1)))
        with pytest.raises(DataError, match=r"x_test\['question'\] is float64, but tokens are whole numbers"):
            self.several(question=np.zeros((2, 3)))
        with pytest.raises(DataError, match="x_test has the inputs picture, question, age, place, but x_train"):
            self.several(place=np.zeros((2, 3)))
        x = np.zeros((2, 3))
        with pytest.raises(DataError, match="x_train has one input by name; give it as a tensor"):
            Dataset.from_arrays("one", {"a": x}, [0, 1], {"a": x}, [0, 1])

    def test_the_digest_covers_every_input(self) -> None:
        data = self.several()
        names = list(data.x_train)
        backwards = {name: data.x_train[name] for name in reversed(names)}
        assert dataclasses.replace(data, x_train=backwards).digest == data.digest
        for name in names:
            changed = data.x_train | {name: data.x_train[name].clone()}
            changed[name][-1] += 1
            assert dataclasses.replace(data, x_train=changed).digest != data.digest

    def test_samples_that_somebody_brings(self) -> None:
        data = self.several()
        brought = {"picture": np.zeros((2, 4, 4), np.uint8), "question": [[1, 2, 3]] * 2, "age": [[1.0]] * 2}
        assert data.stored(brought)["picture"].shape == (2, 1, 4, 4)
        with pytest.raises(DataError, match=r"input question: expected samples \[batch, 3\], found \(2, 2\)"):
            data.stored(brought | {"question": np.zeros((2, 2), np.int64)})


def test_the_digest_has_what_rows_are_divided_by() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 2
    made = [
        Dataset.from_arrays("made", x, y, x[:0], y[:0], **of).digest
        for of in ({}, {"groups": y}, {"groups": 1 - y}, {"blocks": y})
    ]
    assert len(set(made)) == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_come_back_from_normalised_samples_and_others_up_to_rounding(channels: int) -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8).expand(4, channels, 8, 8).contiguous()
    y = torch.tensor([0, 1, 0, 1])
    data = Dataset.from_arrays("bytes", x, y, x, y)
    normalised = data.normalise(x)
    assert isinstance(normalised, torch.Tensor)
    assert torch.equal(data.denormalise(normalised), x)
    assert torch.equal(data.denormalise(normalised + 0.4 / 255 / data.std[0]), x), "the nearest byte"
    far = data.denormalise(torch.full((2, channels, 8, 8), 1e6))
    assert (far.dtype, far.unique().tolist()) == (torch.uint8, [255])
    real = Dataset.from_arrays("floats", x.float() * 3 - 7, y, x.float() * 3 - 7, y)
    again = real.normalise(real.drawable)
    assert isinstance(again, torch.Tensor)
    torch.testing.assert_close(real.denormalise(again), real.drawable, atol=1e-3, rtol=0)


def test_fewer_training_rows_are_fixed_ones_of_all_classes_with_what_belongs_to_them() -> None:
    rows = torch.arange(60)
    x, normal = rows[:, None].float(), Normalisation(1.0, (2.0,), (3.0,))
    data = Dataset("rows", x, rows % 3 % 2, x, rows % 2, Classification(("a", "b")), {"x": normal}, rows // 7, rows)
    few = data.with_train_rows(12)
    assert isinstance(few.x_train, torch.Tensor)
    kept = few.x_train.flatten().long()
    assert torch.bincount(few.y_train).tolist() == [8, 4]  # two thirds of all rows have class 0
    assert torch.equal(few.y_train, data.y_train[kept])
    assert few.groups is not None
    assert few.blocks is not None
    assert (few.groups.tolist(), few.blocks.tolist()) == ((kept // 7).tolist(), kept.tolist())
    assert (len(few.y_test), few.normalisation) == (60, data.normalisation)
    assert few.digest == data.with_train_rows(12).digest != data.digest
    assert data.with_train_rows(60) is data.with_train_rows(None) is data
