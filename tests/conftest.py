"""Lies here so that tests in every folder find the helper modules beside it."""

from __future__ import annotations

import torch

# oracles are compared bit for bit with what runs on one thread
torch.set_num_threads(1)
