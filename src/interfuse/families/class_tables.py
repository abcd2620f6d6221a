"""Tables by class: means, variances and how many samples they are of. Those of several clients: class_merging.

A class without samples is absent: its row is 0, its count 0, and it never counts. Variances are within classes and
divided by n, so that those of parts merge exactly into that of their union; where one has to be above 0, a floor is put
under it (:func:`floored`) when it is used, not before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from interfuse.data import Batch

Spread = Literal["shared", "diagonal", "scalar", "full"]
"""Which within-class variances: one for each feature, shared by all classes ``[1, d]``; one for each class and feature
``[classes, d]``; one for each class, the mean over features ``[classes, 1]``; a covariance for each class
``[classes, d, d]``. All but the last are broadcast to ``[classes, d]``."""


@dataclass(frozen=True)
class ClassTable:
    """A row for each class, and how many samples it stands for, or how much weight.

    Attributes:
        rows: 0 where a class is absent.
        count: 0 where a class is absent.
    """

    rows: Float[Tensor, "classes *row"]
    count: Float[Tensor, "classes"]

    @property
    def present(self) -> Bool[Tensor, "classes"]:
        """Which classes have a row."""
        return self.count > 0

    @property
    def y(self) -> Int64[Tensor, "present"]:
        """The numbers of these classes, in order."""
        return self.present.nonzero().flatten()


def placed(
    rows: Float[Tensor, "present *row"],
    y: Shaped[Tensor, "present"],
    classes: int,
    count: Float[Tensor, "present"] | None = None,
) -> ClassTable:
    """Rows of the classes ``y`` as a table of all classes; without counts, each counts 1."""
    y = y.long()
    count = rows.new_ones(len(y)) if count is None else count
    table = rows.new_zeros(classes, *rows.shape[1:]).index_copy(0, y, rows)
    return ClassTable(table, count.new_zeros(classes).index_copy(0, y, count))


def mean_table(rows: Batch, classes: int, weights: Float[Tensor, "rows"] | None = None) -> ClassTable:
    """The weighted mean of the rows of each class; without weights all rows count alike.

    Means of parts, weighted by their counts, give the mean of the union.
    """
    membership = functional.one_hot(rows.y, classes).to(rows.features.dtype)
    if weights is not None:
        membership = membership * weights[:, None]
    count = membership.sum(0)
    means = membership.T @ rows.features / count[:, None]
    return ClassTable(torch.where(count[:, None] > 0, means, 0), count)


def kept_up(old: ClassTable, new: ClassTable) -> ClassTable:
    """The new rows, and the old ones of classes that have no new one."""
    present = new.present.reshape(-1, *(1,) * (new.rows.dim() - 1))
    rows = torch.where(present, new.rows, old.rows.to(new.rows))
    return ClassTable(rows, torch.where(new.present, new.count, old.count.to(new.count)))


def variances(rows: Batch, means: ClassTable, spread: Spread) -> Float[Tensor, "..."]:
    """Within-class variances of rows around the means of their classes, divided by n; 0 for absent classes."""
    deviations = rows.features - means.rows[rows.y]
    if spread == "shared":
        return deviations.square().mean(0, keepdim=True)
    if spread == "full":
        found = deviations.new_zeros(len(means.count), *deviations.shape[1:] * 2)
        for y in means.y:
            own = deviations[rows.y == y]
            found[y] = own.T @ own / len(own)
        return found
    by_class = mean_table(Batch(deviations.square(), rows.y), len(means.count)).rows
    return by_class if spread == "diagonal" else by_class.mean(1, keepdim=True)


def floored(variance: Float[Tensor, "..."], floor: float) -> Float[Tensor, "..."]:
    """Variances of at least ``floor``. Features that are alike, such as those that a ReLU made 0, have none."""
    return variance.clamp(min=floor)
