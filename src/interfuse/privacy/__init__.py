"""What keeps a message from telling too much, and attacks that measure what one tells."""

from __future__ import annotations

from interfuse.privacy.attacks import (
    Copies,
    Estimate,
    area,
    copies,
    median,
    membership_by_draws,
    nearest,
    nearest_of_class,
    part,
    psnr,
    search_errors,
    ssim,
)
from interfuse.privacy.labels import flip_rates, log_reported, randomised_response

__all__ = [
    "Copies",
    "Estimate",
    "area",
    "copies",
    "flip_rates",
    "log_reported",
    "median",
    "membership_by_draws",
    "nearest",
    "nearest_of_class",
    "part",
    "psnr",
    "randomised_response",
    "search_errors",
    "ssim",
]
