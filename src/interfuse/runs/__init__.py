"""The run folder: configuration, metrics, commits, resume, results."""

from __future__ import annotations

from interfuse.runs.config import Execution, RunConfig, parse_config, read_config
from interfuse.runs.loop import Given, Progress, Silent, execute, resume
from interfuse.runs.result import Result

__all__ = [
    "Execution",
    "Given",
    "Progress",
    "Result",
    "RunConfig",
    "Silent",
    "execute",
    "parse_config",
    "read_config",
    "resume",
]
