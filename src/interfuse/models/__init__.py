"""Split models: the object, how to make one from any module, and a zoo of small ones."""

from __future__ import annotations

from interfuse.models import backbones
from interfuse.models.making import Given, Initial, given_digest, initial_key, make
from interfuse.models.split import ModelFacts, Parts, SplitModel, measure, pair, run_with, side_by_side
from interfuse.models.splitting import split_at
from interfuse.models.zoo import DEFAULT_MODELS, FEDERATIONS, Builder, ModelInfo, available, expanded, resolve

__all__ = [
    "DEFAULT_MODELS",
    "FEDERATIONS",
    "Builder",
    "Given",
    "Initial",
    "ModelFacts",
    "ModelInfo",
    "Parts",
    "SplitModel",
    "available",
    "backbones",
    "expanded",
    "given_digest",
    "initial_key",
    "make",
    "measure",
    "pair",
    "resolve",
    "run_with",
    "side_by_side",
    "split_at",
]
