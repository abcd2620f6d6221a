"""How alike the base blocks of clients see the same samples: linear centred kernel alignment (CKA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interfuse.evaluation.accuracy import Evaluation, Scope
from interfuse.federation import Federation

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

    None where the clients have several data sets or no common test set, fusion layers of several widths, or are too
    many.
    """
    setup, program = federation.setup, federation.exchange.programs["evaluation"]
    assert isinstance(program, Evaluation)
    if "d" not in setup.dims or setup.dims["clients"] > MOST_COMPARED:
        return None
    if len(setup.domains) > 1 or not len(setup.dataset.y_test):
        return None
    with federation.evaluating(calls=SIMILARITY_CALLS) as clients:
        outputs = clients.call(program.fused, Scope(False, True))
    return linear_cka([reply.z.cpu() for reply in outputs.values()]).tolist()
