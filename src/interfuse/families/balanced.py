"""Batches of a client's own rows in which each of its classes is as likely as any other."""

from __future__ import annotations

import math
from typing import Any

import torch

from interfuse.client import Client
from interfuse.data import Drawn
from interfuse.families.own_training import OwnTraining


def balanced_batches(method: OwnTraining, client: Client[Any]) -> Drawn:
    """A class is drawn, then one of its rows, with replacement (Kang et al., ICLR 2020).

    Batches are as many and as large as those of the method's own training, so an epoch is so many steps, not every row
    once.
    """
    labels = client.data.labels()
    size = min(method.batch_size, len(labels))
    epoch = math.ceil(len(labels) / method.batch_size)
    steps = (method.local_epochs or 0) * epoch if method.local_steps is None else method.local_steps
    weights = 1 / labels.bincount().double()[labels]
    drawn = torch.multinomial(weights.cpu(), steps * size, replacement=True, generator=client.generator)
    return client.data.batches(iter(drawn.view(steps, size).numpy()))
