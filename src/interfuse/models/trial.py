"""A batch in training mode, tried before anything depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interfuse.data import Inputs
from interfuse.data.inputs import each
from interfuse.errors import ConfigError, ModelError, Notice
from interfuse.models.split import SplitModel
from interfuse.randomness import seeded

REFUSED = "Expected more than 1 "
"""Begins what PyTorch says where normalisation would see one value a channel, whose variance is undefined."""


@dataclass(frozen=True)
class Trial:
    """What a batch in training mode shows of a model.

    Attributes:
        outside: Attributes of modules, and buffers that are not persistent, that training changes and that may matter
            to what comes after. They are not in the state dict, so they do not last.
        several: The blocks, ``base`` or ``modular``, that cannot be trained on one row.
    """

    outside: tuple[str, ...] = ()
    several: frozenset[str] = frozenset()

    def notice(self, owner: str) -> Notice | None:
        """What to say of it to whoever uses the model; None: nothing."""
        if not self.outside:
            return None
        return Notice(
            f"Training the model of {owner} changes {', '.join(self.outside)}, which is not in its state dict: it is "
            "put back as it was made whenever work begins, so that results do not depend on who works where.",
            "Keep what should last in a buffer (register_buffer), and draw from the global generators of torch, numpy "
            "or random, which are seeded.",
        )


def check_rows(trial: Trial, rows: Mapping[str, int], samples: int) -> Notice | None:
    """What to say of a client that cannot make a step, since its share has one row; None where it can.

    Args:
        rows: By block that it trains on its own rows, those of its largest batch.
        samples: Of its training share.

    Raises:
        ConfigError: it cannot make one although it has more rows; says what to do.
    """
    block = next((block for block in sorted(trial.several) if rows.get(block) == 1), None)
    if block is None:
        return None
    why = f"its {block} block normalises over a batch, and one row has one value a channel there"
    if samples > 1:
        raise ConfigError(
            f"batch_size = 1: {why}, so it could not make a step. Take a batch_size of 2 or more, or a model that "
            "normalises otherwise"
        )
    return Notice(
        f"its training share has one row: {why}, so it makes no step",
        "Give it more rows, such as with a partition's minimum, or take a model that normalises otherwise.",
    )


def trial(model: SplitModel, example: Inputs) -> Trial:
    """Train a new model's layers on an example, two samples or more; the model ends as it began.

    Raises:
        ModelError: no batch can be trained on, or two equal passes with equal seeds give different bits, even with all
            that can be put back as it was: the model depends on something that interfuse neither keeps nor seeds.
    """
    model.reset()
    given = model.given_keys & {key for key, _ in model.named_parameters()}  # frozen; to write to it would copy it
    before = {key: tensor.clone() for key, tensor in model.live(model.keys_of()).items() if key not in given}
    device = next((tensor.device for tensor in before.values()), torch.device("cpu"))
    x = each(lambda tensor: tensor.to(device), example)
    try:
        first = _passes(model, x)
        changed = model.outside.changed()
        model.load(before)
        # other rows between: more of the same would leave a running mean as it is
        _passes(model, each(lambda tensor: torch.cat([tensor[:1], tensor[:-1]]), x))
        model.load(before)
        second = _passes(model, x)
        moving = {name for name, value in model.outside.changed().items() if _counts(value, changed.get(name))}
        model.load(before)
        model.reset()
        third = _passes(model, x)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the model cannot be trained on a batch of such samples: {error}") from error
    if not _equal(first, third):
        named = f" (that changed: {', '.join(sorted(changed))})" if changed else ""
        raise ModelError(
            f"two equal passes with equal seeds give different outputs{named}, so no run could be repeated. Draw from "
            "the global generators of torch, numpy or random, which are seeded around each piece of work, and keep "
            "what lasts in registered buffers: a generator made at import, the time, an attribute of a class are none"
        )
    outside = sorted(changed) if not _equal(first, second) else sorted(moving)
    several = set()
    for block in ("base", "modular"):
        model.load(before)
        model.reset()
        if _needs_several(model, block, x):
            several.add(block)
    model.load(before)
    model.reset()
    return Trial(tuple(outside), frozenset(several))


def _passes(model: SplitModel, x: Inputs) -> list[Tensor]:
    """Outputs in training mode and then in evaluation mode, under one seed."""
    with seeded(0, "trial"):
        with model.training_parts():
            trained = model(x).detach()
        with model.evaluating():
            return [trained, model(x)]


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """To the bit on a processor; on other devices kernels may add in any order."""
    exact = all(tensor.device.type == "cpu" for tensor in some)
    rtol, atol = (0.0, 0.0) if exact else (1e-3, 1e-4)
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol, atol, equal_nan=True)
        for a, b in zip(some, others, strict=True)
    )


def _counts(value: object, before: object) -> bool:
    """Whether a number goes on from pass to pass."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value != before


def _needs_several(model: SplitModel, block: str, x: Inputs) -> bool:
    """Whether PyTorch refuses to train a block on one row. What else may be wrong with it is seen when it comes."""
    with model.evaluating():
        given = x if block == "base" else model.run(x, "base")
    model.reset()
    one = each(lambda tensor: tensor[:1], given)
    try:
        with seeded(0, "trial"), model.training_parts(block):
            model.run(one, block)
    except (RuntimeError, ValueError, IndexError) as error:
        return isinstance(error, ValueError) and str(error).startswith(REFUSED)
    return False
