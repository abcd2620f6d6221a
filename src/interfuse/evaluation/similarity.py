"""How alike models see the same samples: linear centred kernel alignment (CKA)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interfuse.evaluation.accuracy import Evaluation, fused_outputs
from interfuse.federation import Federation
from interfuse.models import SplitModel

_BLOCK = re.compile(r"(?P<group>layer\d+)\.\d+")

MOST_COMPARED = 32
"""Federations up to this size have a matrix of similarities: each client's Gram matrix takes 8 MB."""
SIMILARITY_CALLS = 3000
"""Where calls of this evaluation begin to count: others have been at the same round before."""


def linear_cka(outputs: Sequence[Float[Tensor, "n _"]]) -> Float64[Tensor, "clients clients"]:
    """The linear CKA of each pair of representations of the same n samples; NaN where one of them is constant.

    ⟨K_i, K_j⟩ / (‖K_i‖ ‖K_j‖) with K the Gram matrix of the centred features (Kornblith et al., ICML 2019, eq. 1 and
    3): 1 for features that are equal up to rotation and scale, near 0 for unrelated ones.
    """
    centred = [z.double() - z.double().mean(0) for z in outputs]
    grams = torch.stack([(z @ z.T).flatten() for z in centred])
    grams /= grams.norm(dim=1, keepdim=True)
    return grams @ grams.T


def similarity(federation: Federation) -> list[list[float]] | None:
    """Linear CKA between all clients' fusion-layer outputs on the curve's rows of the common test set.

    None where the clients have no common test set or several with other labels, fusion layers of several widths, are
    too many, or are not all there any more.
    """
    dims, program = federation.setup.dims, federation.exchange.programs["evaluation"]
    assert isinstance(program, Evaluation)
    first, *others = {id(test): test.y for test in program.tests.values()}.values()
    if program.mode != "shared" or not len(first) or not all(torch.equal(first, y) for y in others):
        return None
    if "d" not in dims or dims["clients"] > MOST_COMPARED or len(federation.clients) < dims["clients"]:
        return None
    with federation.evaluating(calls=SIMILARITY_CALLS) as clients:
        outputs = fused_outputs(federation, program, clients, full=False)
    return linear_cka([reply.z.cpu() for reply in outputs.values()]).tolist()


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


def similarity_by_group(
    models: Sequence[SplitModel], x: Float[Tensor, "rows ..."]
) -> dict[str, Float64[Tensor, "k k"]]:
    """Linear CKA between all pairs of models on the same samples, for each group of stages that all of them have."""
    features = [features_by_group(model, x) for model in models]
    shared = [group for group in features[0] if all(group in own for own in features)]
    return {group: linear_cka([own[group] for own in features]) for group in shared}
