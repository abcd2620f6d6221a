"""A vendor that lies in any field of any envelope is refused or sent away; the others go on: :mod:`hostile_vendor`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_vendor import METHOD, SENT, Federation, all_lies, contract, facts, parsed, renamed

from interfuse.engines.parties.architectures import Architectures
from interfuse.engines.parties.contract import JoinError
from interfuse.engines.parties.frames import Assembler, FrameError
from interfuse.models import resolve

LIES = list(all_lies())
WELL_FORMED = [lie for lie in LIES if parsed(lie[2])]


def test_every_envelope_of_a_node_is_lied_about_and_what_is_none_is_refused_in_printable_words() -> None:
    assert {kind for _, kind, _ in LIES} == set(SENT)
    assert len(LIES) > 1500
    refused = [lie for lie in LIES if not parsed(lie[2])]
    for _, _, one in refused:
        with pytest.raises(FrameError) as error:
            Assembler(1 << 20).feed(one)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("kind", SENT)
def test_four_clients_go_on_without_the_one_that_lies(kind: type[object], tmp_path: Path) -> None:
    mine = [(words, one) for words, of, one in WELL_FORMED if of is kind]
    for words, one in mine[:: max(1, len(mine) // 12)]:
        found = Federation({"liar": (kind, one)}, 4)
        assert not found.run(tmp_path, 0.5), words
        assert all(text.isprintable() for text in found.shown), words


def test_so_do_four_hundred_of_whom_more_than_half_lie_each_otherwise(tmp_path: Path) -> None:
    liars = {f"liar-{i:03d}": (kind, renamed(one, f"liar-{i:03d}")) for i, (_, kind, one) in enumerate(WELL_FORMED)}
    assert len(liars) > 200
    found = Federation(liars, 400)
    assert not found.run(tmp_path, 1.5)
    assert all(text.isprintable() for text in found.shown)


def test_no_memory_is_taken_for_samples_that_nobody_has() -> None:
    """A model for samples of 2^28 numbers, built as a node says, would have 550 GB."""
    offer = contract()
    known = Architectures(offer, METHOD, {"mlp": lambda: resolve("mlp")}, 1 << 30)
    shapes = facts(offer.class_names).shapes
    assert shapes is not None
    lie = shapes.model_copy(update={"sample": (1, 1 << 14, 1 << 14)})
    with pytest.raises(JoinError, match="architecture: expected the tensors that 'mlp' has here"):
        known.check(facts(offer.class_names).model_copy(update={"architecture": "mlp", "shapes": lie}), {})
