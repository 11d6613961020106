"""Leaving a model early: keep its first layers and map their output to what the head expects.

The output of a middle layer is far from what the final norm and head were trained on. The affine map

    z_n ≈ h_n W + b,   (W, b) = argmin Σ_n ‖h_n W + b − z_n‖² + λ N ‖W‖²

from the state h_n after the last kept layer to the state z_n after the last layer of the whole model calibrates it
(after the tuned lens, arXiv 2303.08112).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.model import Params


def fit_exit(states: Any, final_states: Any, ridge: float) -> dict[str, np.ndarray]:
    """The closed-form ridge regression above, solved in float64; the bias is not penalised.

    Args:
      states: [N, D] raw residual stream after the last kept layer, at valid tokens only.
      final_states: [N, D] raw residual stream after the last layer, at the same tokens.
      ridge: λ ≥ 0, relative to the mean squared deviation of a state's entry, so that it has no unit.

    Returns:
      ``{"weight": [D, D], "bias": [D]}`` float32, for ``truncate``.

    Raises:
      ValueError: the shapes differ, or ``ridge`` is negative.
    """
    source, target = np.asarray(states, np.float64), np.asarray(final_states, np.float64)
    if source.shape != target.shape or source.ndim != 2:
        raise ValueError(f"states {source.shape} and final_states {target.shape} must both be [N, D]")
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge}")
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    gram = centred.T @ centred
    penalty = ridge * np.trace(gram) / len(gram)
    moments = centred.T @ (target - target_mean)
    # lstsq and not solve: with few tokens and no ridge the Gram matrix is singular, and the smallest solution is meant.
    weight = np.linalg.lstsq(gram + penalty * np.eye(len(gram)), moments, rcond=None)[0]
    return {"weight": weight.astype(np.float32), "bias": (target_mean - source_mean @ weight).astype(np.float32)}


def truncate(
    params: Params, config: LMConfig, num_layers: int, exit: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], LMConfig]:
    """The model of the first ``num_layers`` layers.

    Args:
      params, config: the whole model.
      num_layers: layers to keep, 1..L.
      exit: map of :func:`fit_exit`; None keeps the parameters' own, if any.

    Returns:
      Parameters (sharing the arrays that did not change) and configuration of the smaller model.

    Raises:
      ValueError: ``num_layers`` is out of range.
    """
    if not 1 <= num_layers <= config.num_layers:
        raise ValueError(f"num_layers must lie in 1..{config.num_layers}, got {num_layers}")
    kept = dict(params)
    layers = params["layers"]
    is_tuple = isinstance(layers, tuple)
    kept["layers"] = layers[:num_layers] if is_tuple else jax.tree.map(lambda leaf: leaf[:num_layers], layers)
    if exit is not None:
        kept["exit"] = {name: jnp.asarray(exit[name]) for name in ("weight", "bias")}
    return kept, replace(config, num_layers=num_layers, windows=config.windows[:num_layers])
