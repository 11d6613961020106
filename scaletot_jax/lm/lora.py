"""Low-rank adapters: y = x W + scale · (x A) B (arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from scaletot_jax.lm.config import LMConfig


def init(config: LMConfig, key: jax.Array, rank: int) -> dict[str, jax.Array]:
    """A fresh adapter for all seven projections of every layer.

    Args:
      config: the model's shape.
      key: random key for the A matrices.
      rank: r ≥ 1.

    Returns:
      For each projection ``n`` in q, k, v, o, gate, up, down: ``n_a`` [L, inputs, r] ~ N(0, 1/inputs) and ``n_b``
      [L, r, outputs] = 0, both float32, so that a fresh adapter changes nothing.

    Raises:
      ValueError: ``rank`` < 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    adapter: dict[str, jax.Array] = {}
    keys = jax.random.split(key, len(config.projections))
    for name_key, (name, (inputs, outputs)) in zip(keys, config.projections.items()):
        adapter[f"{name}_a"] = jax.random.normal(name_key, (config.num_layers, inputs, rank)) * inputs**-0.5
        adapter[f"{name}_b"] = jnp.zeros((config.num_layers, rank, outputs))
    return adapter


def merge(params: Mapping[str, Any], adapter: Mapping[str, jax.Array], scale: float) -> dict[str, Any]:
    """The model with the adapter added into its weights, W + scale · A B: the same outputs to rounding, no extra work.

    Args:
      params: parameters with stacked layers.
      adapter: as made by :func:`init`.
      scale: the ``lora_scale`` it was trained with.
    """
    layers = dict(params["layers"])
    for name in [key.removesuffix("_a") for key in adapter if key.endswith("_a")]:
        weight = layers[name]
        update = jnp.matmul(adapter[f"{name}_a"], adapter[f"{name}_b"], preferred_element_type=jnp.float32)
        layers[name] = (weight + scale * update).astype(weight.dtype)
    return {**params, "layers": layers}
