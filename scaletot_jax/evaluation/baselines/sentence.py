"""A frozen sentence embedding of the profile's text, with ridge regression or boosted trees on it: a language model's general
knowledge without any reasoning about the label."""

from __future__ import annotations

import numpy as np

from scaletot_jax.evaluation.baselines.boosting import hurdle
from scaletot_jax.evaluation.baselines.known import Known, Missing
from scaletot_jax.evaluation.heads import Scaler, ridge
from scaletot_jax.evaluation.predictions import Predictions, Target, of_mean

TREE_COLUMNS = 32  # principal components that the trees see


def sentence_ridge(known: Known, target: Target) -> list[Predictions]:
    """Embedding and ridge."""
    x, rows, y = text_of(known), known.rows, target.labels
    x = Scaler.fit(x[rows.head]).apply(x)
    return [of_mean(ridge(x[rows.head], y[rows.head], x[rows.val], y[rows.val], x[rows.test]))]


def sentence_boosted(known: Known, target: Target) -> list[Predictions]:
    """Embedding, its first principal components, and a boosted hurdle."""
    x = text_of(known)
    head = x[known.rows.head]
    centre = head.mean(0)
    axes = np.linalg.svd(head - centre, full_matrices=False)[2][:TREE_COLUMNS]
    return hurdle((x - centre) @ axes.T, known, target)


def text_of(known: Known) -> np.ndarray:
    """The embedding [U, D] float64; raises what says why there is none."""
    if known.text is None:
        raise known.no_text or Missing("no text was embedded")
    return np.asarray(known.text, np.float64)
