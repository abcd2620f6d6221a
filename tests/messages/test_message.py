"""Messages: what a field may be, what a sender's tensors become, and what a receiver refuses."""

from __future__ import annotations

import gc
import weakref
from dataclasses import FrozenInstanceError
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Float32, Int, Int64, Num, UInt
from torch import Tensor
from worlds import same_bits

from interfuse.errors import MessageError
from interfuse.messages import (
    Change,
    ClassCounts,
    Data,
    Disclosure,
    Features,
    Labels,
    Logits,
    Message,
    NamedTensors,
    Parameters,
    State,
    Targets,
    Weights,
    disclosed,
    flatten,
    leaves,
    settled,
    unflatten,
)
from interfuse.messages.delivery import LARGEST, check, disturbed, narrow, unmodified
from interfuse.messages.encoding import decode, encode, sizes
from interfuse.wire import Codecs

DIMS = {"classes": 3, "clients": 2, "d": 4}


class Pair(Message):
    z: Features
    y: Labels


class Nested(Message):
    pairs: tuple[Pair, ...]
    by_client: dict[int, ClassCounts]
    by_name: dict[str, Pair]
    scores: Logits
    count: int
    rate: float
    last: bool


class Shared(Message):
    tensors: Parameters


class Raw(Message):
    x: Data


class Kept(State):
    anything: NamedTensors
    rows: Int64[Tensor, "rows"]
    inner: tuple[Pair, ...]


def pair(batch: int = 2, width: int = 4, label: int = 2, dtype: torch.dtype = torch.uint8) -> Pair:
    return Pair(torch.ones(batch, width), torch.full((batch,), label, dtype=dtype))


def refused(message: Message, dims: dict[str, int] | None = None, **settings: Any) -> MessageError:
    with pytest.raises(MessageError) as caught:
        check(message, DIMS if dims is None else dims, **settings)
    return caught.value


# --- the sender's side ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(3, torch.uint8), (256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.uint32)],
)
def test_labels_take_the_smallest_type_that_holds_the_classes(classes: int, dtype: torch.dtype) -> None:
    dims = {**DIMS, "classes": classes}
    y = torch.tensor([0, 1, classes - 1])
    sent = narrow(Pair(torch.zeros(3, 4), y), dims)
    assert sent.y.dtype == dtype
    assert torch.equal(check(sent, dims).y.long(), y)
    assert same_bits(flatten(decode(encode(sent), Pair, dims)), flatten(sent))


@pytest.mark.parametrize(("classes", "label"), [(3, 256), (3, -1), (300, 65536)])
def test_a_label_that_does_not_fit_its_type_is_refused(classes: int, label: int) -> None:
    with pytest.raises(MessageError, match="message Pair, field y: expected values from 0 to ") as caught:
        narrow(Pair(torch.zeros(2, 4), torch.tensor([0, label])), {**DIMS, "classes": classes})
    assert str(label) in caught.value.found


def test_a_label_beyond_the_classes_is_refused() -> None:
    error = refused(pair(label=3))
    assert (error.message, error.field, error.found) == ("Pair", "y", "label 3")
    check(pair(label=2), DIMS)


class Told(Message):
    z: Features
    y: Targets


TOKENS = torch.tensor([[0, 4, -100], [1, 2, 3]])


@pytest.mark.parametrize(
    ("unit", "y", "dtype"),
    [
        ({"classes": 300}, torch.tensor([0, 299]), torch.uint16),
        ({"outputs": 2}, torch.tensor([[0.5, -7], [1e9, 0]]), torch.float32),
        ({"labels": 3}, torch.tensor([[0.0, 1, 1], [1, 0, 0]]), torch.float32),
        ({"tokens": 5}, TOKENS, torch.int64),
    ],
)
def test_targets_travel_as_the_task_has_them(unit: dict[str, int], y: Tensor, dtype: torch.dtype) -> None:
    dims = {"d": 4, **unit}
    sent = check(narrow(Told(torch.zeros(2, 4), y), dims), dims)
    assert sent.y.dtype == dtype
    assert same_bits(flatten(decode(encode(sent), Told, dims)), flatten(sent))
    # class numbers are the very bytes that Labels are
    if "classes" in unit:
        assert sizes(sent)[0] == sizes(narrow(Pair(torch.zeros(2, 4), y), dims))[0]


@pytest.mark.parametrize(
    ("unit", "y", "problem"),
    [
        ({"classes": 3}, torch.tensor([0, 3]), "labels below 3"),
        ({"classes": 3}, torch.zeros(2, 3), "torch.uint8"),
        ({"outputs": 2}, torch.zeros(2, 3), "outputs = 2"),
        ({"outputs": 2}, torch.tensor([[0.5, torch.nan], [0, 0]]), "finite values"),
        ({"labels": 2}, torch.tensor([[0.5, 2], [0, 0]]), "labels from 0 to 1"),
        ({"labels": 2}, torch.tensor([[0.5, -1], [0, 0]]), "labels from 0 to 1"),
        ({"tokens": 4}, TOKENS, "tokens below 4, or -100"),
        ({"tokens": 5}, TOKENS - 1, "tokens below 5, or -100"),
        ({"tokens": 5}, TOKENS[:1], "batch = 2"),
    ],
)
def test_targets_are_bounded_by_what_they_mean(unit: dict[str, int], y: Tensor, problem: str) -> None:
    dims = {"d": 4, **unit}
    with pytest.raises(MessageError) as caught:
        check(narrow(Told(torch.zeros(2, 4), y), dims), dims)
    assert problem in str(caught.value)


def test_floats_are_narrowed_but_kinds_never_change() -> None:
    assert narrow(Pair(torch.ones(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)), DIMS).z.dtype == (
        torch.float32
    )
    for z, y in [
        (torch.ones(2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)),
        (torch.ones(2, 4), torch.zeros(2)),
        (torch.ones(2, 4), torch.zeros(2, dtype=torch.bool)),
    ]:
        with pytest.raises(MessageError):
            narrow(Pair(z, y), DIMS)


def test_what_is_sent_is_detached_and_a_copy() -> None:
    z = torch.ones(2, 4, requires_grad=True) * 2
    y = torch.zeros(2, dtype=torch.uint8)
    sent = narrow(Pair(z, y), DIMS)
    assert not sent.z.requires_grad
    with torch.no_grad():
        z.add_(1)
        y.add_(1)
    assert torch.equal(sent.z, torch.full((2, 4), 2.0))
    assert torch.equal(sent.y, torch.zeros(2, dtype=torch.uint8))


def test_what_is_lent_shares_memory_where_its_receiver_would_see_the_same() -> None:
    z, y = torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)
    lent = narrow(Pair(z, y), DIMS, copy=False)
    assert lent.z.data_ptr() == z.data_ptr()
    assert lent.y.dtype == torch.uint8
    across = narrow(Pair(torch.arange(8.0).reshape(4, 2).t(), y), DIMS, copy=False)
    assert across.z.is_contiguous()
    within = narrow(Pair(torch.ones(3, 4)[1:], y), DIMS, copy=False)
    assert within.z.data_ptr() % 64 == 0


def test_a_message_ends_with_the_last_name_for_it() -> None:
    gc.disable()  # no cycle may hold large tensors until garbage is collected
    try:
        sent = check(narrow(pair(), DIMS), DIMS)
        found = decode(encode(sent), Pair, DIMS)
        ends = [weakref.ref(sent.z), weakref.ref(found.z)]
        del sent, found
        assert [end() for end in ends] == [None, None]
    finally:
        gc.enable()


def test_what_is_sent_is_contiguous() -> None:
    z = torch.arange(8.0).reshape(4, 2).t()
    assert narrow(Pair(z, torch.zeros(2, dtype=torch.int64)), DIMS).z.is_contiguous()
    assert narrow(Pair(z.double(), torch.zeros(2, dtype=torch.int64)), DIMS).z.is_contiguous()


def test_records_are_frozen() -> None:
    sent = pair()
    with pytest.raises(FrozenInstanceError):
        sent.z = torch.zeros(1)  # type: ignore[misc]


# --- the receiver's side --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (Pair(torch.ones(2, 4, dtype=torch.float64), pair().y), "z"),
        (Pair(torch.ones(2, 4, dtype=torch.float16), pair().y), "z"),
        (Pair(torch.ones(2, 4), pair().y.long()), "y"),
        (Pair(torch.ones(2, 4, 1), pair().y), "z"),
        (Pair(torch.ones(2), pair().y), "z"),
        (Pair(torch.ones(2, 5), pair().y), "z"),
        (Pair(torch.ones(3, 4), pair().y), "y"),
        (Pair(torch.tensor([[0, 1, 2, torch.nan]] * 2), pair().y), "z"),
        (Pair(torch.tensor([[0, 1, 2, -torch.inf]] * 2), pair().y), "z"),
    ],
    ids=["f64", "f16", "int64", "3 axes", "1 axis", "d", "batch", "nan", "inf"],
)
def test_what_does_not_match_its_declaration_is_refused(message: Pair, field: str) -> None:
    error = refused(message)
    assert (error.message, error.field) == ("Pair", field)
    inside = Nested((pair(), message), {}, {}, torch.zeros(1, 3), 1, 1.0, True)
    assert refused(inside).field == f"pairs/1/{field}"


def test_values_are_looked_at_unless_they_were_before() -> None:
    check(Pair(torch.full((2, 4), torch.nan), pair().y), DIMS, finite=False)


def test_the_batch_is_one_size_in_a_record_and_any_in_the_next() -> None:
    good = Nested((pair(2), pair(5)), {}, {"a": pair(7)}, torch.zeros(1, 3), 1, 1.0, True)
    assert check(good, DIMS) is good


def test_an_unbound_width_has_any_size_once() -> None:
    unbound = {"classes": 3}
    check(pair(width=4), unbound)
    check(pair(width=9), unbound)


def test_open_ended_shapes_check_what_they_name() -> None:
    check(Raw(torch.zeros(2, 1, 5, 5)), DIMS)
    check(Raw(torch.zeros(2)), DIMS)
    assert refused(Raw(torch.zeros(()))).field == "x"


def test_named_tensors_are_checked_against_the_clients_keys() -> None:
    keys = {"a.weight": (2, 3), "a.bias": (2,)}
    check(Shared({"a.weight": torch.zeros(2, 3)}), DIMS, keys)
    check(Shared({"other": torch.zeros(1)}), DIMS)
    unknown = refused(Shared({"a.wieght": torch.zeros(2, 3)}), keys=keys)
    assert (unknown.field, unknown.found) == ("tensors/a.wieght", "unknown key 'a.wieght'")
    shape = refused(Shared({"a.weight": torch.zeros(3, 2)}), keys=keys)
    assert (shape.expected, shape.found) == ("shape (2, 3)", "shape (3, 2)")
    assert refused(Shared({"a.bias": torch.tensor([1.0, torch.nan])}), keys=keys).field == "tensors/a.bias"


def test_a_message_in_place_of_a_tensor_and_the_other_way_round() -> None:
    with pytest.raises(MessageError):
        narrow(Pair([1.0], pair().y), DIMS)  # type: ignore[arg-type]
    with pytest.raises(MessageError):
        narrow(Nested((torch.zeros(1),), {}, {}, torch.zeros(1, 3), 1, 1.0, True), DIMS)  # type: ignore[arg-type]


# --- flat form ------------------------------------------------------------------------------------

widths = st.integers(0, 3)
keys = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    "#".__ne__
)
pairs = st.builds(lambda batch, label: pair(batch, label=label), widths, st.integers(0, 2))
nested = st.builds(
    Nested,
    pairs=st.lists(pairs, max_size=12).map(tuple),
    by_client=st.dictionaries(st.integers(0, 10**6), st.just(torch.arange(3.0)), max_size=3),
    by_name=st.dictionaries(keys, pairs, max_size=3),
    scores=widths.map(lambda batch: torch.randn(batch, 3, generator=torch.Generator().manual_seed(batch))),
    count=st.integers(-(2**63), 2**63 - 1),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    last=st.booleans(),
)


def structure(record: Nested) -> Any:
    return (
        len(record.pairs), sorted(record.by_client), sorted(record.by_name), record.count, record.rate, record.last,
        type(record.last),
    )  # fmt: skip


@given(nested)
def test_flat_and_back(record: Nested) -> None:
    again = unflatten(Nested, flatten(record))
    assert structure(again) == structure(record)
    assert list(again.by_client) == sorted(record.by_client)
    assert same_bits(flatten(again), flatten(record))


@given(nested)
def test_bytes_and_back(record: Nested) -> None:
    data = encode(record)
    again = decode(data, Nested, DIMS)
    assert structure(again) == structure(record)
    assert list(again.by_client) == sorted(record.by_client)
    assert same_bits(flatten(again), flatten(record))
    assert sizes(record) == (sum(t.numel() * t.element_size() for t in flatten(record).values()), len(data))


@given(nested)
def test_narrowing_what_fits_changes_nothing(record: Nested) -> None:
    assert same_bits(flatten(narrow(record, DIMS)), flatten(record))


@given(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
def test_sizes_do_not_depend_on_scalars(count: int, rate: float) -> None:
    def message(c: int, r: float) -> Nested:
        return Nested((), {}, {}, torch.zeros(1, 3), c, r, False)

    assert sizes(message(count, rate)) == sizes(message(0, 0.0))


def test_state_may_hold_more_kinds_and_goes_flat_and_back() -> None:
    state = Kept({"a": torch.zeros(2, dtype=torch.int32), "b": torch.zeros(())}, torch.arange(3), (pair(),))
    assert same_bits(flatten(unflatten(Kept, flatten(state))), flatten(state))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"extra": torch.zeros(1)}, "extra"),
        ({"z/0": torch.zeros(1)}, "z/0"),
        ({"z": None}, "z"),
        ({"y": None, "y/0": torch.zeros(1)}, "y"),
    ],
)
def test_wrong_names_are_refused(change: dict[str, Tensor | None], field: str) -> None:
    flat = {k: t for k, t in {**flatten(pair()), **change}.items() if t is not None}
    with pytest.raises(MessageError) as caught:
        unflatten(Pair, flat)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "change",
    [
        {"count": torch.tensor([1])},
        {"count": torch.tensor(1.0)},
        {"last": torch.tensor(1)},
        {"pairs/1/z": torch.zeros(1, 4), "pairs/1/y": torch.zeros(1)},
        {"pairs/01/z": torch.zeros(1, 4)},
        {"by_client/x": torch.zeros(3)},
        {"by_client/01": torch.zeros(3)},
        {"pairs": torch.zeros(1)},
    ],
)
def test_wrong_structure_is_refused(change: dict[str, Tensor]) -> None:
    flat = flatten(Nested((), {}, {}, torch.zeros(1, 3), 1, 1.0, True)) | change
    with pytest.raises(MessageError):
        unflatten(Nested, flat)


def test_a_key_with_a_slash_is_refused_where_it_would_be_ambiguous() -> None:
    with pytest.raises(MessageError, match="keys without '/'"):
        flatten(Shared({"a/b": torch.zeros(1)}))


def test_another_kind_of_message_is_refused() -> None:
    with pytest.raises(MessageError, match="expected Pair, found Raw"):
        decode(encode(Raw(torch.zeros(1))), Pair, DIMS)


def test_decoding_checks_like_receiving() -> None:
    with pytest.raises(MessageError, match="field z: expected d = 4"):
        decode(encode(pair(width=5)), Pair, DIMS)
    with pytest.raises(MessageError, match="NaN"):
        decode(encode(Pair(torch.full((2, 4), torch.nan), pair().y)), Pair, DIMS)
    with pytest.raises(MessageError, match="unknown key"):
        decode(encode(Shared({"b": torch.zeros(1)})), Shared, DIMS, {"a": (1,)})


# --- changes in place, declarations ---------------------------------------------------------------


def test_a_change_in_place_is_named() -> None:
    message = Nested((pair(), pair()), {}, {}, torch.zeros(1, 3), 1, 1.0, True)
    untouched = unmodified(message)
    _ = message.pairs[1].z + 1
    assert untouched() is None
    message.pairs[1].z.mul_(2)
    assert untouched() == "pairs/1/z"
    assert unmodified(None)() is None


def test_disclosure_is_read_off_the_fields() -> None:
    assert disclosed(Pair) == {Disclosure.FEATURES, Disclosure.LABELS}
    assert disclosed(Shared) == {Disclosure.PARAMETERS}
    assert disclosed(Nested) == {
        Disclosure.FEATURES, Disclosure.LABELS, Disclosure.STATISTICS, Disclosure.LOGITS
    }  # fmt: skip


class Undisclosed(Message):
    z: Float32[Tensor, "batch d"]


class Unshaped(Message):
    z: Annotated[Tensor, Disclosure.FEATURES]


class Unnamed(Message):
    weights: NamedTensors


class Text(Message):
    note: str


class Untyped(Message):
    items: tuple[Any, ...]


class Fixed(Message):
    pair: tuple[Pair, Pair]


@pytest.mark.parametrize("kind", [Undisclosed, Unshaped, Unnamed])
def test_a_tensor_needs_its_shape_and_what_it_discloses(kind: type[Message]) -> None:
    field = next(iter(kind.__annotations__))
    with pytest.raises(TypeError, match=rf"{kind.__name__}\.{field}.*needs its shape and what it discloses.*Features"):
        disclosed(kind)


@pytest.mark.parametrize("kind", [Text, Untyped, Fixed])
def test_other_field_types_are_refused_with_what_to_use(kind: type[Message]) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__}\.\w+.*is not a field type.*use a tensor with a jaxtyping"):
        leaves(kind)


class Table(Message):
    rows: dict[int, ClassCounts]


class Tables(Message):
    tables: tuple[Table, ...]
    by_name: dict[str, Table]


@pytest.mark.parametrize("filled", [set(), {1}, {0, 2}])
def test_groups_without_a_tensor_survive_and_weigh_nothing(filled: set[int]) -> None:
    tables = tuple(Table({4: torch.arange(3.0)} if i in filled else {}) for i in range(3))
    sent = Tables(tables, {"a": tables[0], "b": tables[1]})
    tensors = len(filled) + len(filled & {0, 1})
    for again in (
        unflatten(Tables, flatten(sent)),
        decode(encode(sent), Tables, DIMS),
        narrow(sent, DIMS),
        check(sent, DIMS),
    ):
        assert [list(table.rows) for table in again.tables] == [[4] if i in filled else [] for i in range(3)]
        assert {key: list(table.rows) for key, table in again.by_name.items()} == {
            "a": [4] if 0 in filled else [], "b": [4] if 1 in filled else [],
        }  # fmt: skip
    assert sizes(sent) == (12 * tensors, len(encode(sent)))


def test_the_sign_of_an_empty_group_is_no_key_and_stands_alone() -> None:
    with pytest.raises(MessageError, match="keys without '/', other than '#'"):
        flatten(Tables((), {"#": Table({})}))
    empty = torch.empty(0, dtype=torch.uint8)
    for flat in (
        {"tables/0/rows/4": torch.zeros(3), "tables/0/#": empty},
        {"tables/0/#": torch.zeros(1)},
        {"#": empty},
    ):
        with pytest.raises(MessageError):
            unflatten(Tables, flat)


class Spoken(Message):
    """Families of types, and shapes open in front and in the middle."""

    wide: Annotated[Float[Tensor, "batch d"], Disclosure.FEATURES]
    whole: Annotated[Int[Tensor, "batch"], Disclosure.STATISTICS]
    front: Annotated[Float32[Tensor, "... d"], Disclosure.FEATURES]
    middle: Annotated[Float32[Tensor, "batch *sample d"], Disclosure.FEATURES]
    any_width: Annotated[Float32[Tensor, "batch _"], Disclosure.FEATURES]
    truth: Annotated[Bool[Tensor, "batch"], Disclosure.STATISTICS]


def spoken(**changes: Tensor) -> Spoken:
    given = {
        "wide": torch.ones(2, 4), "whole": torch.ones(2, dtype=torch.int64), "front": torch.ones(5, 6, 4),
        "middle": torch.ones(2, 7, 8, 4), "any_width": torch.ones(2, 9), "truth": torch.tensor([True, False]),
    }  # fmt: skip
    return Spoken(**{**given, **changes})


def test_a_family_of_types_means_its_usual_member() -> None:
    check(spoken(), DIMS)
    sent = narrow(spoken(wide=torch.ones(2, 4, dtype=torch.float64), whole=torch.ones(2, dtype=torch.int32)), DIMS)
    assert (sent.wide.dtype, sent.whole.dtype) == (torch.float32, torch.int64)
    assert sent.truth.tolist() == [True, False]
    for name, dtype in (
        ("wide", torch.float64), ("wide", torch.float16), ("whole", torch.int32), ("truth", torch.uint8)
    ):  # fmt: skip
        shape = (2, 4) if name == "wide" else (2,)
        assert refused(spoken(**{name: torch.ones(shape, dtype=dtype)})).field == name


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("front", (5, 6, 3)),
        ("front", (3,)),
        ("front", ()),
        ("middle", (2, 7, 8, 3)),
        ("middle", (3, 7, 4)),
        ("middle", (2,)),
        ("any_width", (3, 9)),
    ],
)
def test_what_stands_after_an_open_end_is_checked_too(name: str, shape: tuple[int, ...]) -> None:
    assert refused(spoken(**{name: torch.ones(shape)})).field == name
    check(spoken(front=torch.ones(4), middle=torch.ones(2, 4), any_width=torch.ones(2, 1)), DIMS)


class Unsigned(Message):
    counts: Annotated[UInt[Tensor, "batch"], Disclosure.STATISTICS]


class Numeric(Message):
    x: Annotated[Num[Tensor, "batch"], Disclosure.STATISTICS]


@pytest.mark.parametrize("kind", [Unsigned, Numeric])
def test_a_family_that_leaves_open_how_a_tensor_travels_is_refused(kind: type[Message]) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__}\.\w+.*leaves the type open; name one"):
        leaves(kind)


# --- order ----------------------------------------------------------------------------------------


class ByClient(Message):
    sent: Annotated[dict[int, Features], Disclosure.FEATURES]
    weights: Parameters


def test_the_order_of_a_mapping_is_that_of_its_keys_on_every_way() -> None:
    """A method may draw from it, or sum over it: files and wires have an order of their own, such as 0, 10, 2."""
    sent = {client: torch.full((1, 4), float(client)) for client in (10, 2, 0)}
    message = ByClient(sent, {name: torch.ones(1, 4) for name in ("b", "a")})
    flat = {path: flatten(message)[path] for path in sorted(flatten(message))}
    for way in (
        narrow(message, DIMS), settled(message), unflatten(ByClient, flat), decode(encode(message), ByClient, DIMS),
    ):  # fmt: skip
        assert list(way.sent) == [0, 2, 10]
        assert list(way.weights) == ["a", "b"]
        assert all(way.sent[client].eq(client).all() for client in way.sent)


@pytest.mark.parametrize("sent", [[], (), "", torch.empty(0), {"2": torch.ones(1, 4)}, {1: torch.ones(1, 4), "a": 1}])
def test_what_is_no_mapping_of_the_declared_kind_is_refused(sent: Any) -> None:
    with pytest.raises(MessageError) as caught:
        narrow(ByClient(sent, {}), DIMS)
    assert caught.value.field == "sent"
    assert caught.value.expected == "a mapping with keys of type int"


@pytest.mark.parametrize("key", ["running_var", "layer1.0.norm1.running_var"])
def test_what_was_added_up_is_no_variance(key: str) -> None:
    """From 1.0 to 0.1 twice, the second time a model late."""
    added = torch.tensor([1.0, 1.0 - (0.9 + 0.9 / 2**0.5)])
    with pytest.raises(MessageError, match=rf"{key}.*variances, which a rule may average but not add.*-0.536"):
        check(Weights({key: added}), DIMS)
    check(Weights({key: added.abs(), "running_mean": added, "weight": added}), DIMS)
    check(Change({"weight": added}, {"running_mean": added}), DIMS)


@pytest.mark.parametrize("codecs", [{}, {"default": "zstd"}])
def test_a_receiver_looks_at_values_whatever_the_codec(codecs: dict[str, str]) -> None:
    """Without a codec nothing but NaN was looked for: a variance below 0 came through."""
    known = Codecs.parse(codecs)
    for key, value, words in (
        ("w", 1.1 * LARGEST, "values up to 1e\\+09 in size, found 1.1e\\+09"),
        ("w", -1.1 * LARGEST, "values up to"),
        ("n.running_var", 1.1 * LARGEST**2, "values up to 1e\\+18"),
        ("n.running_var", -0.1, "variances"),
    ):
        data = encode(Weights({key: torch.tensor([1.0, value])}), known)
        with pytest.raises(MessageError, match=words):
            decode(data, Weights, DIMS, codecs=known)
    fine = Weights({"w": torch.tensor([LARGEST, -LARGEST]), "n.running_var": torch.tensor([0, LARGEST**2])})
    assert same_bits(flatten(decode(encode(fine, known), Weights, DIMS, codecs=known)), flatten(fine))


def test_noise_leaves_a_variance_one() -> None:
    small = torch.full((400,), 1e-3)
    given = Weights({"norm.running_var": small, "norm.running_mean": small})
    noisy = disturbed(given, {Disclosure.PARAMETERS: 1.0}, np.random.default_rng(0))
    assert noisy.tensors["norm.running_var"].min() == 0
    assert noisy.tensors["norm.running_mean"].min() < 0
