"""What is measured: accuracies, compositions, and metrics beyond them."""

from __future__ import annotations

from interfuse.evaluation.accuracy import (
    MOST_COMPOSED,
    Accuracies,
    CommonTest,
    Evaluation,
    Evidence,
    Mode,
    common_test,
    compose,
    evaluate,
    evaluation,
    evaluation_on,
    measure,
)
from interfuse.evaluation.adaptation import STEPS, Adaptation, adapted_scores, unseen_share
from interfuse.evaluation.drawn import Pictures, draw, drawn_by
from interfuse.evaluation.metrics import ACROSS_TASKS, METRICS, Measurements, OwnMetric, Side, measured_on, try_metrics
from interfuse.evaluation.sequences import (
    SequenceScores,
    continued,
    exact_match,
    rouge_l,
    sequence_scores,
    token_f1,
)
from interfuse.evaluation.similarity import (
    features_by_group,
    groups_of_stages,
    linear_cka,
    similarity,
    similarity_by_group,
)

__all__ = [
    "ACROSS_TASKS",
    "METRICS",
    "MOST_COMPOSED",
    "STEPS",
    "Accuracies",
    "Adaptation",
    "CommonTest",
    "Evaluation",
    "Evidence",
    "Measurements",
    "Mode",
    "OwnMetric",
    "Pictures",
    "SequenceScores",
    "Side",
    "adapted_scores",
    "common_test",
    "compose",
    "continued",
    "draw",
    "drawn_by",
    "evaluate",
    "evaluation",
    "evaluation_on",
    "exact_match",
    "features_by_group",
    "groups_of_stages",
    "linear_cka",
    "measure",
    "measured_on",
    "rouge_l",
    "sequence_scores",
    "similarity",
    "similarity_by_group",
    "token_f1",
    "try_metrics",
    "unseen_share",
]
