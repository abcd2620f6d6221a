"""Values of a whole ``summary.json``, for tests that care about some of them."""

from __future__ import annotations

from typing import Any

NOBODY: dict[str, Any] = {"mean": None, "std": None, "per_client": []}
NOTHING = {"raw": 0, "wire": 0}
UNKNOWN: dict[str, Any] = {"global_accuracy": NOBODY, "own_accuracy": NOBODY, "composition_matrix": None}


def summary_values(**changes: Any) -> dict[str, Any]:
    """A run of which hardly anything is known, with these values."""
    both = {"uplink": NOTHING, "downlink": NOTHING}
    return {
        "interfuse": "0.1.0",
        "method": "ifl",
        "data": "digits",
        "seed": 0,
        "rounds": 1,
        "score": "accuracy",
        "seconds": 0.0,
        "run": "runs/run",
        "note": "",
        "codecs": {},
        "discloses": ["features", "labels"],
        "notice": None,
        "data_notices": [],
        "reading_notices": [],
        **UNKNOWN,
        "best": None,
        "similarity": {"before": None, "after": None},
        "stability": None,
        "gradient_steps": {"clients": 1, "server": 0},
        "virtual_seconds": {},
        "missing_replies": {"failed": 0, "late": 0, "away": 0},
        "uplink_bytes": NOTHING,
        "downlink_bytes": NOTHING | {"raw_broadcast": 0, "wire_broadcast": 0},
        "start_bytes": both,
        "evaluation_bytes": both,
        "bytes_by_kind": {},
        "seconds_by_phase": {},
        "clients": [],
        "class_names": [],
        "class_counts": None,
        "evaluation": "shared",
        "parties": False,
        "headline": {"text": "", "on": None, "gain": None, "doubts": [], "clients": 0, "rows": None},
        "warnings": [],
        "beside": {},
    } | changes


def best_round(accuracy: float) -> dict[str, Any]:
    """A best round with this mean validation accuracy."""
    return {"round": 1, "validation_accuracy": accuracy, **UNKNOWN}
