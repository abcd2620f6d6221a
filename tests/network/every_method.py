"""Every built-in method that runs between parties, in a form small enough for a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import worlds
from parties import Parties, rows
from worlds import tiny

from interfuse.families.adapters import AdapterTraining
from interfuse.families.intermediate import IntermediateLearning
from interfuse.families.memes import MemeLearning
from interfuse.messages import Disclosure
from interfuse.method import Method, disclosures_of, own_code
from interfuse.methods import built_in
from interfuse.runs import RunConfig

BETWEEN_PARTIES = sorted(
    name for name, kind in built_in().items()
    if Disclosure.DATA not in disclosures_of(kind) and not own_code(tiny(name))
)  # fmt: skip
"""Those that need no network by reference, as the probes of FedMosaic are here: no code travels."""
SMALLER: dict[str, Any] = {
    "server_epochs": 1, "server_steps": 2, "virtual": 4, "hidden": 4, "noise": 2, "latent": 2, "decoder_batch_size": 4,
    "generator_batch_size": 4, "energy_start": 0.3,
}  # fmt: skip


def models_of(kind: type[Method]) -> list[str]:
    """Unlike ones, as far as the method takes these."""
    if issubclass(kind, AdapterTraining):
        return [f"{worlds.__file__}:{name}" for name in ("llama2", "llama3")]
    if issubclass(kind, IntermediateLearning):
        return ["resnet10-narrow@0.25"]
    averaging = Disclosure.PARAMETERS in disclosures_of(kind) and not issubclass(kind, MemeLearning)
    return ["logistic"] if averaging else ["mlp-linear", "logistic"]


def prepared(two: Parties, name: str, **tables: Mapping[str, Any]) -> tuple[RunConfig, str]:
    """Files of parties that run a method for two rounds; ``tables`` are those of every vendor's file that differ.

    Returns: the configuration with which a simulation gives the same, and the public data.
    """
    kind, method = built_in()[name], tiny(name, **SMALLER)
    changed = {f.name: getattr(method, f.name) for f in fields(kind) if getattr(method, f.name) != f.default}
    public = str(rows(two.folder, "public", 9, count=12))
    recipe = {
        "method": name, "settings": changed, "rounds": 2, "eval_every": 2, "public": public,
        "execution": {"workers": 1, "commit_rounds": 2},
    }  # fmt: skip
    allow = {"methods": [name], "disclosures": [str(one) for one in Disclosure], "retention": True}
    return two.prepare(recipe, models_of(kind), **({"allow": allow, "data": {"public": public}} | tables)), public
