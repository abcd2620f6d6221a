"""Codecs: what is done to a tensor before it travels, and undone when it has arrived."""

from __future__ import annotations

from interfuse.wire.codecs.codec import NO_CODEC, Codec
from interfuse.wire.codecs.rules import NO_CODECS, Codecs

__all__ = ["NO_CODEC", "NO_CODECS", "Codec", "Codecs"]
