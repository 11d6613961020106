"""Gradient-boosted trees (LightGBM): one Tweedie model, and a hurdle of P(y > 0) and the mean of what is above 0.

Trees are added until the validation rows stop improving. One model a seed of the heads. Needs lightgbm.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scaletot_jax.evaluation.baselines.known import Known, Missing, NotApplicable
from scaletot_jax.evaluation.predictions import Predictions, Rows, Target, of_mean

ROUNDS, PATIENCE = 400, 30
SETTINGS = {
    "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 20, "lambda_l2": 1.0, "feature_fraction": 0.7,
    "bagging_fraction": 0.8, "bagging_freq": 1, "max_bin": 63, "verbosity": -1, "deterministic": True, "force_row_wise": True,
    "num_threads": 1,
}  # fmt: skip


def boosted_tweedie(known: Known, target: Target) -> list[Predictions]:
    """Tweedie loss of power 1.5, a compound of a Poisson number of gamma amounts: zeros and a tail in one model."""
    if target.kind == "binary":
        raise NotApplicable("a binary label has no tail; see the hurdle")
    return tweedie(known.dense, known, target)


def boosted_hurdle(known: Known, target: Target) -> list[Predictions]:
    """P(y > 0) by logistic loss times E[y | y > 0] by gamma loss."""
    return hurdle(known.dense, known, target)


def tweedie(x: np.ndarray, known: Known, target: Target) -> list[Predictions]:
    """The Tweedie model on features x [U, P]."""
    y, rows = target.labels, known.rows
    settings = {"objective": "tweedie", "tweedie_variance_power": 1.5}
    return [of_mean(_fit(x, y, rows.head, rows.val, settings, seed).predict(x[rows.test])) for seed in _seeds(known)]


def hurdle(x: np.ndarray, known: Known, target: Target) -> list[Predictions]:
    """The hurdle on features x [U, P]."""
    y, rows = target.labels, known.rows
    any_label = (y > 0).astype(float)
    if any_label[rows.head].min() == any_label[rows.head].max():
        raise NotApplicable("all training labels are on one side of the hurdle")
    paid = Rows(*(part[y[part] > 0] for part in rows))
    out = []
    for seed in _seeds(known):
        positive = _fit(x, any_label, rows.head, rows.val, {"objective": "binary"}, seed).predict(x[rows.test])
        if target.kind == "binary":
            out.append(Predictions(positive, positive, np.stack([1 - positive, positive], 1)))
            continue
        amount = np.full(len(rows.test), y[paid.head].mean())
        if len(paid.val) >= 10:
            amount = _fit(x, y, paid.head, paid.val, {"objective": "gamma"}, seed).predict(x[rows.test])
        out.append(Predictions(positive * amount, positive))
    return out


def _seeds(known: Known) -> list[int]:
    return [known.seed + i for i in range(known.head["seeds"])]


def _fit(x: np.ndarray, y: np.ndarray, train: np.ndarray, val: np.ndarray, settings: dict[str, Any], seed: int) -> Any:
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: without OpenMP's library
        raise Missing("the package lightgbm is not installed", "pip install 'scaletot_jax[baselines]'") from error
    fitted = lightgbm.Dataset(x[train].astype(np.float64), y[train], params={"max_bin": 63, "verbosity": -1})
    checked = lightgbm.Dataset(x[val].astype(np.float64), y[val], reference=fitted)
    return lightgbm.train(
        {**SETTINGS, **settings, "seed": seed}, fitted, ROUNDS, valid_sets=[checked],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )  # fmt: skip
