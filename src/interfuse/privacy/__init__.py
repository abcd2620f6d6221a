"""What keeps a message from telling too much."""

from __future__ import annotations

from interfuse.privacy.labels import flip_rates, log_reported, randomised_response

__all__ = ["flip_rates", "log_reported", "randomised_response"]
