"""The mean of a segment: rows with the same value of one profile field, the field that predicts the validation rows best."""

from __future__ import annotations

import numpy as np

from scaletot_jax.evaluation.baselines.grouped import shrunk_mean, shrunk_predictions
from scaletot_jax.evaluation.baselines.known import Known, NotApplicable
from scaletot_jax.evaluation.predictions import Predictions, Target

_STRENGTH = 10.0


def segment_mean(known: Known, target: Target) -> list[Predictions]:
    """What a marketing table by segment would say."""
    y, rows = target.labels, known.rows
    if not known.fields:
        raise NotApplicable("there is no profile field")
    errors = []
    for field in known.codes.T:
        said = shrunk_mean(field[rows.head], y[rows.head], field[rows.val], _STRENGTH)
        errors.append(np.mean((said - y[rows.val]) ** 2))
    best = known.codes[:, int(np.argmin(errors))]
    return [shrunk_predictions(target, best, rows.head, rows.test, _STRENGTH)]
