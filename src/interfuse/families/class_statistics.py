"""Means and variances of features by class, as they travel and as tables: what describes each class at all clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxtyping import Float, Float32
from torch import Tensor

from interfuse.data import Batch
from interfuse.families.class_tables import ClassTable, kept_up, mean_table, placed, variances
from interfuse.families.prototypes import ClassMeans, CountedMeans
from interfuse.messages import Disclosure

Kind = Literal["shared", "diagonal", "scalar"]
"""One variance for each feature, for each class and feature, or for each class; see :data:`.class_tables.Spread`."""

Variances = Annotated[Float32[Tensor, "rows columns"], Disclosure.STATISTICS]
"""One row for all classes where they are shared; else one for each class that is present."""


class CountedVariances(CountedMeans):
    """A client's class means of features, how many samples each is of, and variances within classes."""

    variance: Variances


class KnownVariances(ClassMeans):
    """Class means and variances of all clients together."""

    variance: Variances


@dataclass(frozen=True)
class ClassStatistics:
    """Means of classes with their counts, and variances: a row for all classes where they are shared, else one each."""

    means: ClassTable
    variance: Float[Tensor, "rows columns"]
    kind: Kind

    @classmethod
    def of(cls, rows: Batch, classes: int, kind: Kind) -> ClassStatistics:
        """Those of rows of features."""
        means = mean_table(rows, classes)
        return cls(means, variances(rows, means, kind), kind)

    @classmethod
    def told(cls, message: KnownVariances, classes: int, kind: Kind) -> ClassStatistics:
        """Those that a message tells."""
        means, variance = placed(message.mean, message.y, classes), message.variance
        return cls(means, variance if kind == "shared" else placed(variance, message.y, classes).rows, kind)

    @property
    def travelling(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of the classes that are present, their numbers and counts, and variances, of these alone."""
        y = self.means.y
        return self.means.rows[y], y, self.means.count[y], self.variance if self.kind == "shared" else self.variance[y]

    @property
    def deviations(self) -> Float[Tensor, "classes d"]:
        """Standard deviations, of every class and feature."""
        return self.variance.clamp(min=0).sqrt().expand_as(self.means.rows)

    def renewed(self, new: ClassStatistics) -> ClassStatistics:
        """The new ones, and these of classes that have no new ones."""
        variance, old = ClassTable(new.variance, new.means.count), ClassTable(self.variance, self.means.count)
        by_class = new.variance if self.kind == "shared" else kept_up(old, variance).rows
        return ClassStatistics(kept_up(self.means, new.means), by_class, self.kind)
