"""Smoothed target encoding of every profile field, then ridge regression on the encodings.

A field's value becomes the mean label of the training rows that have it, shrunk by 20 pseudo-rows. For the training rows
themselves it is the mean over the other four of five folds of households or persons, so that no row sees its own label.
Source: Micci-Barreca (2001).
"""

from __future__ import annotations

import numpy as np

from scaletot_jax.evaluation.baselines.grouped import codes_of, shrunk_mean
from scaletot_jax.evaluation.baselines.known import Known, NotApplicable
from scaletot_jax.evaluation.heads import Scaler, ridge
from scaletot_jax.evaluation.predictions import Predictions, Target, of_mean

FOLDS, STRENGTH = 5, 20.0


def target_encoding(known: Known, target: Target) -> list[Predictions]:
    """Target encoding and ridge."""
    if not known.fields:
        raise NotApplicable("there is no profile field")
    rows, y = known.rows, target.labels
    encoded = {part: encode(known, target, part) for part in ("head", "val", "test")}
    scaler = Scaler.fit(encoded["head"])
    x = {part: scaler.apply(value) for part, value in encoded.items()}
    return [of_mean(ridge(x["head"], y[rows.head], x["val"], y[rows.val], x["test"]))]


def encode(known: Known, target: Target, part: str) -> np.ndarray:
    """The encodings [n, F] of the rows of ``part``."""
    head, asked = known.rows.head, getattr(known.rows, part)
    y = target.labels[head]
    if part != "head":
        return np.stack([shrunk_mean(field[head], y, field[asked], STRENGTH) for field in known.codes.T], axis=1)
    fold = np.random.default_rng(known.seed).permutation(len(head))[codes_of(known.groups[head])] % FOLDS
    out = np.zeros((len(head), len(known.fields)))
    for f in np.unique(fold):
        inside, outside = fold == f, fold != f
        if not outside.any():
            return np.full_like(out, y.mean())
        for j, field in enumerate(known.codes.T):
            out[inside, j] = shrunk_mean(field[head][outside], y[outside], field[head][inside], STRENGTH)
    return out
