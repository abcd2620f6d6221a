"""How alike models of different depth see the same samples: linear CKA, stage by stage."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interfuse.models import SplitModel

_BLOCK = re.compile(r"(?P<group>layer\d+)\.\d+")


def linear_cka(x: Float[Tensor, "rows a"], y: Float[Tensor, "rows b"]) -> float:
    """Linear centred kernel alignment of two sets of features of the same rows (Kornblith et al., ICML 2019).

    It lies between 0 and 1, which is for equal features up to rotation, scale and shift; NaN where one side has one
    vector of features for all rows.
    """
    centred = [(features - features.mean(0)).double() for features in (x, y)]
    # of rows by rows, which are fewer than features mostly
    a, b = (features @ features.T for features in centred)
    return float((a * b).sum() / (a.norm() * b.norm()))


def groups_of_stages(model: SplitModel) -> dict[str, str]:
    """The last stage of every group: of a ResNet's blocks ``layer1.0``, ``layer1.1`` the latter is ``layer1``."""
    return {(found["group"] if (found := _BLOCK.fullmatch(name)) else name): name for name in model.stage_names}


def features_by_group(model: SplitModel, x: Float[Tensor, "rows ..."]) -> dict[str, Float[Tensor, "rows a"]]:
    """What a model in evaluation mode makes of samples behind each of its groups of stages, flattened."""
    ends = {stage: group for group, stage in groups_of_stages(model).items()}
    found: dict[str, Tensor] = {}
    with model.evaluating():
        for name in model.stage_names:
            x = model.get_submodule(name)(x)
            if name in ends:
                found[ends[name]] = x.flatten(1)
    return found


def similarity(models: Sequence[SplitModel], x: Float[Tensor, "rows ..."]) -> dict[str, Float64[Tensor, "k k"]]:
    """Linear CKA between all pairs of models on the same samples, for each group of stages that all of them have."""
    features = [features_by_group(model, x) for model in models]
    shared = [group for group in features[0] if all(group in own for own in features)]
    return {
        group: torch.tensor([[linear_cka(a[group], b[group]) for b in features] for a in features], dtype=torch.float64)
        for group in shared
    }
