"""Class means of features: what methods that share prototypes have in common. The tables behind them: class_tables."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float32, UInt
from torch import Tensor

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.families.class_tables import mean_table, placed
from interfuse.messages import Disclosure, Message

_CHUNK = 500


class ClassMeans(Message):
    """Mean features of the classes that the sender knows, one row a class; classes without a row are absent."""

    mean: Annotated[Float32[Tensor, "present d"], Disclosure.PROTOTYPES]
    y: Annotated[UInt[Tensor, "present"], Disclosure.LABELS]


class CountedMeans(ClassMeans):
    """Class means, and how many samples (or how much weight) each is the mean of."""

    count: Annotated[Float32[Tensor, "present"], Disclosure.STATISTICS]


def fused_share(client: Client[Any]) -> Batch:
    """The client's whole training share at the fusion layer, ``[samples, d]``, with its labels.

    Evaluation mode and the model as it is now: features gathered while it trained are those of models that are gone.
    """
    with client.model.evaluating():
        chunks = [Batch(client.model.base(batch.x), batch.y) for batch in client.data.train_batches(_CHUNK)]
    return Batch(torch.cat([chunk.features for chunk in chunks]), torch.cat([chunk.y for chunk in chunks]))


def class_means(rows: Batch, classes: int, weights: Float32[Tensor, "rows"] | None = None) -> CountedMeans:
    """The :func:`.mean_table` of rows, without the classes that are absent, in the order of classes."""
    table = mean_table(rows, classes, weights)
    return CountedMeans(table.rows[table.y], table.y, table.count[table.y])


def renewed(old: ClassMeans, new: ClassMeans, classes: int) -> ClassMeans:
    """The new means, and the old ones of classes that have no new one, in the order of classes."""
    (table, known), (latest, present) = by_class(old, classes), by_class(new, classes)
    y = (known | present).nonzero().flatten()
    return ClassMeans(torch.where(present[:, None], latest, table.to(latest))[y], y)


def by_class(means: ClassMeans, classes: int) -> tuple[Float32[Tensor, "classes d"], Bool[Tensor, "classes"]]:
    """A row for every class (0 for those absent), and which classes are present."""
    table = placed(means.mean, means.y, classes)
    return table.rows, table.present
