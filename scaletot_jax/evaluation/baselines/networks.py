"""The same small network with the other label family: a zero-inflated log-normal for days, a hurdle-ordinal one for values.

The network ``profile`` of the comparison is hurdle-ordinal for days and zero-inflated log-normal for values; these two are its
opposites, so that each label is tried with both. Values become ordinal by ten bins at the quantiles of the training payers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scaletot_jax.evaluation.baselines.known import Known, NotApplicable
from scaletot_jax.evaluation.comparison import base_rate, read_logits
from scaletot_jax.evaluation.heads import Loss, Scaler, fit_heads, free_mixing, hurdle_mixing, predict_heads
from scaletot_jax.evaluation.predictions import Predictions, Target
from scaletot_jax.losses.ltv import hurdle_nll, ziln_nll

BINS = 10


def ziln_network(known: Known, target: Target) -> list[Predictions]:
    """Zero-inflated log-normal network for a label that is not a value."""
    if target.kind != "days":
        raise NotApplicable(
            "for a value this is the head without ẑ" if target.kind == "value" else "the label is binary"
        )
    as_value = target._replace(kind="value", horizon=0)
    return [read_logits(as_value, one, known.rows, quantiles=False) for one in _fit(known, as_value, ziln_nll)]


def ordinal_network(known: Known, target: Target) -> list[Predictions]:
    """Hurdle-ordinal network for a value in bins; a bin's value is the mean of the training payers in it."""
    if target.kind != "value":
        raise NotApplicable("for this label it is the head without ẑ")
    y, head = target.labels, known.rows.head
    paid = y[head][y[head] > 0]
    # Edges are amounts that were paid, the lowest of all left out: so every bin has a payer, also where many pay the same.
    cuts = np.linspace(0, 1, BINS + 1)[1:-1]
    edges = np.unique(np.quantile(paid, cuts, method="higher")) if len(paid) else np.zeros(0)
    edges = edges[edges > paid.min(initial=np.inf)]
    if not len(edges):
        raise NotApplicable("too few different values among the training payers")
    bins = np.where(y > 0, 1 + np.searchsorted(edges, y, side="right"), 0).astype(np.float64)
    values = np.array(
        [0.0, *(paid[np.searchsorted(edges, paid, side="right") == b].mean() for b in range(len(edges) + 1))]
    )
    ordinal = Target(target.column, "days", len(values) - 1, bins)
    out = []
    for one in _fit(known, ordinal, hurdle_nll):
        p = read_logits(ordinal, one, known.rows)
        assert p.distribution is not None
        out.append(Predictions(p.distribution @ values, p.positive))
    return out


def _fit(known: Known, target: Target, loss: Loss) -> Any:
    """Outputs [S, T, O] of the heads on the profile features."""
    rows, y, head = known.rows, target.labels, known.head
    x = Scaler.fit(known.dense[rows.head]).apply(known.dense)
    if (
        known.z is not None
    ):  # ẑ's columns are zeros, as in the head without ẑ: the same shape, the same compiled program
        x = np.pad(x, ((0, 0), (0, known.z.shape[1])))
    mixing = free_mixing(3) if target.kind == "value" else hurdle_mixing(target.horizon)
    fitted = fit_heads(
        x[rows.head], y[rows.head], x[rows.val], y[rows.val], loss=loss, mixing=mixing,
        seeds=[known.seed + i for i in range(head["seeds"])], bias=base_rate(target, rows), shared_penalty=True,
        **{key: head[key] for key in ("width", "steps", "batch_size", "learning_rate", "penalties")},
    )  # fmt: skip
    return predict_heads(fitted, x[rows.test], width=head["width"], mixing=mixing)
