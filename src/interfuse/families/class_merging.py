"""Means and variances by class of several clients become those of all: three rules."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from interfuse.client import ClientId
from interfuse.families.checks import check_statistics
from interfuse.families.class_tables import ClassTable, Spread, placed

Rule = Literal["total", "sq-weight", "pooled"]
"""How variances σ_k² of clients with n_k samples become one, n = Σ n_k; c_k and c are the means.

``total``: Σ n_k (σ_k² + (c_k − c)²) / n, exactly the variance of the union (law of total variance). ``pooled``:
Σ n_k σ_k² / n, without what lies between clients. ``sq-weight``: Σ n_k² σ_k² / Σ n_k². Of a shared variance n_k counts
all samples of the client, and of what lies between clients the mean over all samples of all classes is taken."""


class Merging:
    """Means and variances of several clients, one client at a time: it holds one table, however many there are.

    Computed in float64 on the CPU, in the order of calls. One client, and clients that are alike, come out bit for bit.
    """

    def __init__(self, classes: int, d: int, spread: Spread, rule: Rule = "total") -> None:
        self.spread, self.rule = spread, rule
        self._count, self._means = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, d).double()
        shape = {"shared": (1, d), "scalar": (classes, 1), "diagonal": (classes, d), "full": (classes, d, d)}[spread]
        self._within, self._between = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self._weights = self._of_variances(self._count)
        self._device = torch.device("cpu")

    def add(
        self,
        client: ClientId,
        mean: Float[Tensor, "present d"],
        y: Shaped[Tensor, "present"],
        count: Float[Tensor, "present"],
        variance: Float[Tensor, "..."],
    ) -> None:
        """Add what a client sent: rows of the classes that it has, and variances as :func:`variances` makes them, but
        of these classes alone; of ``shared`` ones the single row.

        Raises:
            ClientError: as :func:`.check_statistics`.
        """
        classes, within = len(self._count), self._within.shape[1:]
        rows_of_variances = 1 if self.spread == "shared" else len(y)
        check_statistics(client, mean, y, count, variance, (rows_of_variances, *within))
        self._device = mean.device
        rows, own = (t.detach().to("cpu", torch.float64) for t in (mean, variance))
        table = placed(rows, y.cpu(), classes, count.to("cpu", torch.float64))
        self._add(table, own if self.spread == "shared" else placed(own, y.cpu(), classes).rows)

    def _add(self, table: ClassTable, variance: Float64[Tensor, "..."]) -> None:
        count = self._count + table.count
        part = torch.where(table.present, table.count / count.clamp(min=1e-300), 0)
        difference = torch.where(table.present[:, None], table.rows - self._means, 0)
        apart = (self._count * part)[:, None] * difference  # n_1 n_2 / (n_1 + n_2) · (c_2 − c_1), Chan et al. 1979
        if self.spread == "full":
            self._between += apart[:, :, None] * difference[:, None]
        else:
            self._between += self._pooled(apart * difference)
        weights = self._of_variances(table.count)
        if self.rule == "sq-weight":
            weights = weights.square()
        self._within += weights * variance
        self._weights = self._weights + weights
        self._means, self._count = self._means + part[:, None] * difference, count

    def _pooled(self, squares: Float64[Tensor, "classes d"]) -> Float64[Tensor, "rows columns"]:
        if self.spread == "shared":
            return squares.sum(0, keepdim=True)
        return squares.mean(1, keepdim=True) if self.spread == "scalar" else squares

    def _of_variances(self, count: Float64[Tensor, "classes"]) -> Float64[Tensor, "..."]:
        """How much each row of variances counts."""
        if self.spread == "shared":
            return count.sum().reshape(1, 1)
        return count.reshape(-1, *(1,) * (self._within.dim() - 1))

    def result(self) -> tuple[ClassTable, Float[Tensor, "..."]]:
        """Means with counts, and variances, those of absent classes 0; float32, on the device of what was added."""
        sums = self._within + self._between if self.rule == "total" else self._within
        merged = torch.where(self._weights > 0, sums / self._weights, 0)
        means, count, merged = (t.to(self._device, torch.float32) for t in (self._means, self._count, merged))
        return ClassTable(means, count), merged
