"""What is measured: accuracies and compositions."""

from __future__ import annotations

from interfuse.evaluation.accuracy import Accuracies, Evaluation, compose, evaluate, evaluation

__all__ = ["Accuracies", "Evaluation", "compose", "evaluate", "evaluation"]
