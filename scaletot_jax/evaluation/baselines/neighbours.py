"""k nearest neighbours in the standardised profile features; k chosen on the validation rows. Needs scikit-learn."""

from __future__ import annotations

import numpy as np

from scaletot_jax.evaluation.baselines.known import Known, Missing
from scaletot_jax.evaluation.heads import Scaler
from scaletot_jax.evaluation.predictions import LEVELS, Predictions, Target, of_distribution

SIZES = (10, 30, 100, 300)


def neighbours(known: Known, target: Target) -> list[Predictions]:
    """The labels of the nearest training rows, as a distribution."""
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise Missing("the package scikit-learn is not installed", "pip install 'scaletot_jax[baselines]'") from error
    rows, y = known.rows, target.labels
    x = Scaler.fit(known.dense[rows.head]).apply(known.dense)
    sizes = [size for size in SIZES if size <= len(rows.head)] or [len(rows.head)]
    index = NearestNeighbors(n_neighbors=max(sizes)).fit(x[rows.head])
    near = {
        part: y[rows.head][index.kneighbors(x[getattr(rows, part)], return_distance=False)] for part in ("val", "test")
    }
    errors = [np.mean((near["val"][:, :size].mean(1) - y[rows.val]) ** 2) for size in sizes]
    found = near["test"][:, : sizes[int(np.argmin(errors))]]  # [T, k]
    if target.kind == "value":
        quantiles = np.quantile(found, LEVELS, axis=1).T
        return [Predictions(found.mean(1), (found > 0).mean(1), None, quantiles)]
    shares = (found[:, :, None] == np.arange(target.horizon + 1)).mean(1)
    return [of_distribution(shares)]
