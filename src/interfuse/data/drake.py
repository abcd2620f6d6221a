"""The tasks of DRAKE and HFLB and who has which, as the release of FedMosaic has them (snumprlab/fedmosaic, 7887f5f).

A task is ``<data set>-<subset>``. Clients have their tasks in the order in which these come.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Clients = tuple[tuple[str, ...], ...]
"""The tasks of each client, in order."""

DRAKE: Clients = (
    ("Fashion200K-0", "MagicBrush-0", "VISION-0", "FashionIQ-0"),
    ("VSR-0", "VISION-1", "Fashion200K-2", "NLVR2-0"),
    ("SEED-Bench-2-2", "Fashion200K-1", "NLVR2-1", "CIRR-0"),
    ("VizWiz-0", "IRFL-2", "Bongard-HOI-1", "MIT-States-0"),
    ("IRFL-1", "Bongard-OpenWorld-1", "COMICS_Dialogue-0", "IRFL-0"),
    ("Bongard-HOI-2", "Bongard-OpenWorld-0", "IRFL-3", "Bongard-HOI-0"),
    ("WCVQA-0", "iconqa-2", "Co-Instruct-DB-2", "SEED-Bench-2-1"),
    ("TQA-0", "WCVQA-3", "iconqa-1", "Co-Instruct-DB-1"),
    ("Co-Instruct-DB-0", "dvqa-0", "WCVQA-1", "iconqa-3"),
    ("iconqa-0", "Co-Instruct-DB-3", "SEED-Bench-2-0", "WCVQA-2"),
)
OPEN_ENDED = ("iconqa-2", "iconqa-3")
"""The tasks of DRAKE whose answers are scored by token F1; those of all others are one of several choices."""
UNSEEN = (
    "RecipeQA_ImageCoherence-0",
    "RecipeQA_VisualCloze-0",
    "Mantis_contrastive_caption-1",
    "HQ_Edit-0",
    "DreamSim-0",
    "Mantis_contrastive_caption-0",
    "imagecode-0",
)
"""Tasks for clients that come later: four of another kind, then three in another visual domain."""
HFLB: Clients = (
    *(tuple(f"GQA-{form}{part}" for part in range(4)) for form in (1, 2, 3)),
    *(
        tuple(f"{name}-{part}" for part in range(4))
        for name in ("Abstract", "SNLI-VE", "COCOQA", "NLVR2_feddat", "VizWiz-Original", "AQUA")
    ),
)

_LLAMA_1B, _LLAMA_3B, _LLAMA_8B = "llama3.2_1B_vl", "llama3.2_3B_vl", "llama3.1_8B_vl"
_QWEN_05B, _QWEN_15B, _QWEN_3B = "qwen2.5_0.5B_vl", "qwen2.5_1.5B_vl", "qwen2.5_3B_vl"


def _dealt(clients: int, usual: str, others: Mapping[str, str]) -> tuple[str, ...]:
    """A model for each client: the usual one, but for clients whose digits stand beside another."""
    return tuple(
        next((model for model, digits in others.items() if str(client) in digits), usual) for client in range(clients)
    )


ASSIGNMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "drake-llama-3b": _dealt(10, _LLAMA_3B, {}),
        "drake-llama-1b-3b": _dealt(10, _LLAMA_3B, {_LLAMA_1B: "0189"}),
        "drake-llama-1b-3b-8b": _dealt(10, _LLAMA_3B, {_LLAMA_1B: "018", _LLAMA_8B: "69"}),
        "drake-qwen-0.5b-1.5b-3b": _dealt(10, _QWEN_3B, {_QWEN_05B: "18", _QWEN_15B: "056"}),
        "drake-llama-1b-3b-qwen-1.5b": _dealt(10, _LLAMA_3B, {_LLAMA_1B: "18", _QWEN_15B: "024"}),
        "drake-llama-3b-qwen-1.5b": _dealt(10, _LLAMA_3B, {_QWEN_15B: "0124"}),
        "drake-llama-3b-qwen-1.5b-3b": _dealt(10, _LLAMA_3B, {_QWEN_15B: "0124", _QWEN_3B: "357"}),
        "hflb-llama-3b": _dealt(9, _LLAMA_3B, {}),
        "hflb-llama-1b-3b": _dealt(9, _LLAMA_3B, {_LLAMA_1B: "015"}),
    }
)
"""The model of each client, by experiment: names of the authors' models (``thkim0305/...`` on Hugging Face)."""
