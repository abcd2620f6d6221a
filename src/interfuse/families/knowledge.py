"""What a generator of samples knows, handed to clients with a head that nobody trains.

Objectives of FedKTL (Zhang et al., CVPR 2024, arXiv:2403.15760).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from interfuse.data import Batch, PublicData
from interfuse.models import SplitModel
from interfuse.models.autoencoders import autoencoder, lower_bound
from interfuse.training import fit

MODEL, PROJECTOR = "model", "projector"


def simplex(classes: int, generator: torch.Generator) -> Float32[Tensor, "classes classes"]:
    """An equiangular tight frame, a column for each class: F = √(C / (C − 1)) P (I − 11ᵀ / C), P random orthogonal.

    FᵀF = C / (C − 1) (I − 11ᵀ / C): columns of length 1, each as far from all others as can be. Of one class it is 1.
    """
    if classes == 1:
        return torch.ones(1, 1)
    p, _ = torch.linalg.qr(torch.randn(classes, classes, generator=generator, dtype=torch.float64))
    found: Tensor = math.sqrt(classes / (classes - 1)) * p @ (torch.eye(classes).double() - 1 / classes)
    return found.float()


def mapper(classes: int, latent: int) -> SplitModel:
    """Directions ``[batch, classes]`` to latents."""
    inner = nn.Sequential(nn.Linear(classes, classes), nn.ReLU())
    return SplitModel({"hidden": inner, "latents": nn.Linear(classes, latent)})


def projector(d: int, latent: int) -> SplitModel:
    """Features ``[batch, d]`` to latents."""
    return SplitModel({"projector": nn.Linear(d, latent)})


def cosines(outputs: Float[Tensor, "batch classes"], frame: Float[Tensor, "classes classes"]) -> Float[Tensor, "..."]:
    """Of outputs with the columns of a frame; 0 for outputs of length 0."""
    return functional.normalize(outputs) @ frame


def is_class(y: Int64[Tensor, "batch"], classes: int) -> Bool[Tensor, "batch classes"]:
    """One-hot labels; vmap has no rule for PyTorch's."""
    return y[:, None] == torch.arange(classes, device=y.device)


def arc_margin(
    cosine: Float[Tensor, "batch classes"], y: Int64[Tensor, "batch"], s: float, m: float
) -> Float[Tensor, ""]:
    """ArcFace: cross entropy of s cos(θ), with cos(θ + m) for the right class. Its gradient is finite at θ = 0 too."""
    sine = (1 - cosine.square()).clamp(min=1e-6).sqrt()
    right = is_class(y, cosine.shape[1])
    return functional.cross_entropy(s * torch.where(right, cosine * math.cos(m) - sine * math.sin(m), cosine), y)


def transferred(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    frame: Float[Tensor, "classes classes"],
    images: Float[Tensor, "present *sample"],
    latents: Float[Tensor, "present latent"],
    s: float,
    m: float,
    mu: float,
) -> Tensor:
    """ArcFace on the own samples, plus μ MSE between projected features of generated samples and their latents; of
    these as many as the batch has rows are drawn, two at least."""
    own = model.inner(MODEL)
    loss = arc_margin(cosines(own(batch.x), frame), batch.y, s, m)
    if not len(images):
        return loss
    drawn = torch.randint(len(images), (max(2, len(batch.y)),))
    return loss + mu * functional.mse_loss(model.inner(PROJECTOR)(own.base(images[drawn])), latents[drawn])


def mmd(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy of two sets of vectors, with the sum of four Gaussian kernels exp(−r² / 2h)."""

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        squares = (one[:, None] - other).square().sum(2)
        return torch.stack([torch.exp(-squares / (2 * h)) for h in (10.0, 15.0, 20.0, 50.0)]).sum(0).mean()

    return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)


def mapping(model: SplitModel, batch: Batch, step: int, *, classes: int, lam: float) -> Tensor:
    """MMD between what the model makes of prototypes and standard normal latents, plus λ MSE between the former and
    their means by class: latents that the generator knows, and near to each other in each class."""
    made = model(batch.x)
    members = is_class(batch.y, classes).to(made.dtype)
    means = members.T @ made / members.sum(0).clamp(min=1)[:, None]
    return mmd(made, torch.randn_like(made)) + lam * functional.mse_loss(made, means[batch.y])


def trained_decoder(
    public: PublicData,
    shape: tuple[int, ...],
    latent: int,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    device: str,
) -> SplitModel:
    """The decoder of a variational autoencoder of the public rows, by Adam: from standard normal codes, and a 1 beside
    them, to normalised samples."""
    model = autoencoder(shape, 1, latent).to(device)

    def batch() -> Batch:
        rows = public.rows(torch.randint(len(public), (batch_size,), generator=generator)).features
        noise = torch.randn(batch_size, latent, generator=generator)
        return Batch(
            {"x": rows, "noise": noise.to(rows)}, torch.zeros(batch_size, dtype=torch.int64, device=rows.device)
        )

    fit(model, partial(lower_bound, classes=1, pixels=False), (batch() for _ in range(steps)), lr=lr, optimizer="adam")
    return model.only("decoder")
