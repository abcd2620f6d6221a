"""The run folder: configuration, metrics, commits, resume, results."""

from __future__ import annotations

from interfuse.runs.callbacks import Callback
from interfuse.runs.config import NETWORK_FILE, Execution, RunConfig, RunSettings, parse_config, read_config
from interfuse.runs.loop import Given, Progress, Silent, conduct, execute, resume
from interfuse.runs.stopping import EarlyStopping
from interfuse.runs.summary import Row, Summary

__all__ = [
    "NETWORK_FILE",
    "Callback",
    "EarlyStopping",
    "Execution",
    "Given",
    "Progress",
    "Row",
    "RunConfig",
    "RunSettings",
    "Silent",
    "Summary",
    "conduct",
    "execute",
    "parse_config",
    "read_config",
    "resume",
]
