"""How far a quantile is from being one, in probability: the measure in which two programs' quantiles can be compared.

A quantile jumps where the distribution is flat: an error of 1e-7 in P(y ≤ 3) can move a median from 3 days to 4, and at a
share of payers near the level it moves the amount from 0 to the smallest payment. What is asked of v as the quantile at
level q is therefore

    error = max( P(y < v) − q,  q − P(y ≤ v),  0 )

under the Flax model's own distribution; it is 0 for every exact quantile, however far apart two of them lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.encoder.model import apply as apply_encoder
from scaletot_jax.losses.ltv import _MIN_SIGMA, hurdle_distribution
from scaletot_jax.population.forward import ServedSpec, TargetSpec, dense, head_logits

_erf = np.vectorize(math.erf, otypes=[np.float64])


def all_logits(params: Mapping[str, Any], spec: ServedSpec, inputs: Inputs) -> tuple[jax.Array, ...]:
    """Raw outputs of the heads, one array [B, S, O] a label; the first half of ``population.forward.apply``."""
    embedding = apply_encoder(params["encoder"], spec.encoder, inputs).embedding
    x = jnp.concatenate([dense(spec, inputs), embedding], axis=1)
    x = jnp.clip((x - params["scaler"]["mean"]) / params["scaler"]["std"], -8, 8)
    return tuple(head_logits(head, target.mixing, x) for target, head in zip(spec.targets, params["heads"]))


def level_error(
    target: TargetSpec, logits: np.ndarray, level: float, values: np.ndarray, survival: np.ndarray | None = None
) -> np.ndarray:
    """The error of the module's text, float64.

    Args:
      target: the label.
      logits: [B, S, O] of its heads.
      level: q.
      values: [B] alleged quantiles.
      survival: P(y > 0..H−1) [B, H] of days whose distribution is not that of their heads alone, see
        :func:`scaletot_jax.population.forward.nested_survivals`.

    Returns:
      [B] in probability; infinite where a value is no value of the label (below 0, above the cap, half a day).
    """
    below, until = _days(target, logits, values, survival) if target.kind == "days" else _money(target, logits, values)
    error = np.maximum(np.maximum(below - level, level - until), 0)
    top = target.horizon if target.kind == "days" else np.float32(target.cap)
    impossible = (values < 0) | (values > top) | ((target.kind == "days") & (values != np.round(values)))
    return np.where(impossible, np.inf, error)


def _days(
    target: TargetSpec, logits: np.ndarray, values: np.ndarray, survival: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """P(y < v), P(y ≤ v)."""
    if survival is None:
        distribution = np.asarray(hurdle_distribution(jnp.asarray(logits)), np.float64).mean(1)
        reached = np.cumsum(distribution / distribution.sum(1, keepdims=True), axis=1)  # [B, H + 1]
    else:
        reached = np.pad(1 - np.asarray(survival, np.float64), ((0, 0), (0, 1)), constant_values=1.0)
    day = np.clip(np.nan_to_num(values), 0, target.horizon).astype(np.int64)
    rows = np.arange(len(day))
    return np.where(day > 0, reached[rows, np.maximum(day - 1, 0)], 0.0), reached[rows, day]


def _money(target: TargetSpec, logits: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(min(y, cap) < v), P(min(y, cap) ≤ v)."""
    hurdle, centre, raw = np.moveaxis(np.asarray(logits, np.float64), -1, 0)  # [B, S]
    positive, sigma = 1 / (1 + np.exp(-hurdle)), np.maximum(np.logaddexp(0, raw), _MIN_SIGMA)
    with np.errstate(divide="ignore"):
        z = (np.log(np.maximum(values, 0))[:, None] - centre) / sigma  # −∞ at 0
    until = np.mean(1 - positive + positive * 0.5 * (1 + _erf(z / 2**0.5)), axis=1)
    below = np.where(values > 0, until, 0.0)
    return below, np.where(values >= np.float32(target.cap), 1.0, until)
