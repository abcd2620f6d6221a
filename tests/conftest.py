"""Lies here so that tests in every folder find the helper modules beside it."""

from __future__ import annotations
