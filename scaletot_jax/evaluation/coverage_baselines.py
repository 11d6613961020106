"""What needs no language model and no encoder, under the same labels as a point of the coverage curve. No files.

With a hundred labels a ridge or a segment mean is hard to beat; a curve that shows only networks hides it. None of these is a
rival of the verdict's rule: they say what the whole approach is worth, the rule says what reasoning adds to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from scaletot_jax.evaluation.baselines.boosting import boosted_hurdle
from scaletot_jax.evaluation.baselines.known import Known
from scaletot_jax.evaluation.baselines.neighbours import neighbours
from scaletot_jax.evaluation.baselines.registry import Fit, fit_baselines
from scaletot_jax.evaluation.baselines.segment_mean import segment_mean
from scaletot_jax.evaluation.baselines.target_encoding import target_encoding
from scaletot_jax.evaluation.coverage import Scores
from scaletot_jax.evaluation.heads import Scaler, ridge
from scaletot_jax.evaluation.metrics import rps_rows
from scaletot_jax.evaluation.predictions import Predictions, Target, average, of_mean


def profile_ridge(known: Known, target: Target) -> list[Predictions]:
    """Ridge on the profile features; validation rows choose the penalty."""
    x, rows, y = Scaler.fit(known.dense[known.rows.head]).apply(known.dense), known.rows, target.labels
    return [of_mean(ridge(x[rows.head], y[rows.head], x[rows.val], y[rows.val], x[rows.test]))]


BASELINES: Mapping[str, Fit] = {
    "segment_mean": segment_mean,
    "target_encoding": target_encoding,
    "ridge": profile_ridge,
    "neighbours": neighbours,
    "boosted_hurdle": boosted_hurdle,
}


def baseline_scores(known: Known, target: Target) -> dict[str, Scores]:
    """Scores of the test rows by each baseline that can be fitted; those whose package is not there are left out."""
    fitted, _ = fit_baselines(known, target, BASELINES)
    y = target.labels[known.rows.test]
    out = {}
    for name, seeds in fitted.items():
        said = average(seeds)
        out[name] = Scores(None if said.distribution is None else rps_rows(y, said.distribution), said.mean)
    return out
