"""Semantic groups: rows are clustered by an embedding of what a language model says of them, and a row gets its group's mean.

The idea of ChoirRec, which gives users without history the behaviour of a semantic group, in its plainest form: k-means on
the embedding of the training rows, group means shrunk towards the mean of all. One variant on ẑ (the distilled chains), one on
the sentence embedding of the profile. The number of groups is chosen on the validation rows. Needs scikit-learn.
"""

from __future__ import annotations

import numpy as np

from scaletot_jax.evaluation.baselines.grouped import choose_strength, shrunk_mean, shrunk_predictions
from scaletot_jax.evaluation.baselines.known import Known, Missing, NotApplicable
from scaletot_jax.evaluation.baselines.sentence import text_of
from scaletot_jax.evaluation.heads import Scaler
from scaletot_jax.evaluation.predictions import Predictions, Target

GROUPS = (8, 16, 32, 64)


def chain_groups(known: Known, target: Target) -> list[Predictions]:
    """Groups by ẑ."""
    if known.z is None:
        raise NotApplicable("there is no ẑ")
    return _grouped(known.z, known, target)


def sentence_groups(known: Known, target: Target) -> list[Predictions]:
    """Groups by the sentence embedding."""
    return _grouped(text_of(known), known, target)


def _grouped(embedding: np.ndarray, known: Known, target: Target) -> list[Predictions]:
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise Missing("the package scikit-learn is not installed", "pip install 'scaletot_jax[baselines]'") from error
    rows, y = known.rows, target.labels
    used = np.concatenate([rows.head, rows.val, rows.test])
    x = np.zeros(embedding.shape, np.float32)
    x[used] = Scaler.fit(embedding[rows.head]).apply(embedding[used])
    distinct = len(np.unique(x[rows.head], axis=0))
    best, chosen = np.inf, None
    for count in [count for count in GROUPS if count <= distinct]:
        codes = np.zeros(len(x), np.int64)
        codes[used] = KMeans(count, n_init=2, random_state=known.seed).fit(x[rows.head]).predict(x[used])
        strength = choose_strength(codes[rows.head], y[rows.head], known.groups[rows.head])
        loss = np.mean((shrunk_mean(codes[rows.head], y[rows.head], codes[rows.val], strength) - y[rows.val]) ** 2)
        if loss < best:
            best, chosen = loss, (codes, strength)
    if chosen is None:
        raise NotApplicable(f"{distinct} different embeddings make no groups")
    return [shrunk_predictions(target, chosen[0], rows.head, rows.test, chosen[1])]
