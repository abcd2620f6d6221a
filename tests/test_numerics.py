"""Numeric settings hold inside their block, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from interfuse.numerics import ALIGNMENT, Numerics, aligned


@pytest.fixture(autouse=True)
def _two_threads_that_keep_denormals() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def flushes() -> bool:
    return float(torch.full((4,), 1e-38).mul(0.1).sum()) == 0


def test_one_thread_and_no_denormals_inside_the_block() -> None:
    with Numerics().applied():
        assert torch.get_num_threads() == 1
        assert flushes()
        with Numerics(denormals="keep").applied():
            assert not flushes()
        assert torch.get_num_threads() == 1
        assert flushes()
    assert torch.get_num_threads() == 2
    assert not flushes()


def test_what_is_raised_inside_comes_out_and_everything_is_put_back() -> None:
    with pytest.raises(KeyError), Numerics().applied():
        raise KeyError
    assert torch.get_num_threads() == 2
    assert not flushes()


def test_a_mode_that_was_set_before_stays_set() -> None:
    torch.set_flush_denormal(True)
    with Numerics(denormals="keep").applied():
        assert not flushes()
    assert flushes()


def test_dtype_and_layout_as_pytorch_knows_them() -> None:
    assert Numerics().autocast is None
    assert Numerics(dtype="bfloat16").autocast is torch.bfloat16
    assert Numerics().memory_format is torch.channels_last
    assert Numerics(layout="contiguous").memory_format is torch.contiguous_format


def test_a_view_that_begins_anywhere_is_brought_to_where_tensors_begin() -> None:
    whole = torch.arange(40.0).reshape(10, 4)
    assert aligned(whole) is whole
    for piece in torch.split(whole, 3):
        placed = aligned(piece)
        assert placed.data_ptr() % ALIGNMENT == 0
        assert torch.equal(placed, piece)
        assert placed.stride() == piece.stride()
