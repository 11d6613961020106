"""What the backward pass of a layer keeps, and what it computes again.

``"none"`` keeps everything. ``"full"`` keeps a layer's input alone, one [B, T, D] array a layer, and runs the layer once
more. ``"dots"`` keeps besides it the products with weights (q, k, v, o, gate, up), each with its adapter's part added,
so that what is computed again is attention itself, the adapter's thin products and everything elementwise: the [H, T, T]
arrays of attention, the largest of all, are never kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from scaletot_jax.lm.config import LMConfig

POLICIES = ("none", "full", "dots")
PROJECTION = "projection"  # the name of a kept product


def checkpointed(function: Callable[..., Any], remat: bool | str) -> Callable[..., Any]:
    """``function`` under a policy.

    Args:
      remat: one of :data:`POLICIES`; False is ``"none"``, True is ``"full"``. Static under jit.

    Raises:
      ValueError: another policy.
    """
    if remat in (False, "none"):
        return function
    if remat in (True, "full"):
        return jax.checkpoint(function)
    if remat == "dots":
        return jax.checkpoint(function, policy=jax.checkpoint_policies.save_only_these_names(PROJECTION))
    raise ValueError(f"remat must be one of {', '.join(POLICIES)}, got {remat!r}")


def kept_bytes(config: LMConfig, rows: int, length: int, remat: bool | str) -> float:
    """Bytes that a backward pass over [rows, length] tokens holds at its peak, by count of float32 arrays.

    A layer's own arrays are 6 D + 3 F + 4 H T floats a token, the last for attention's scores; ``"none"`` keeps them for
    all L layers. ``"dots"`` keeps 3 D + 2 KV·hd + 2 F of each and ``"full"`` D, and both hold one layer's own at a time.
    """
    width, wide = config.hidden_size, config.intermediate_size
    layer = 6 * width + 3 * wide + 4 * config.num_heads * length
    if remat in (False, "none"):
        floats = config.num_layers * layer
    elif remat in (True, "full"):
        floats = config.num_layers * width + layer
    else:
        floats = config.num_layers * (3 * width + 2 * config.num_kv_heads * config.head_dim + 2 * wide) + layer
    return 4.0 * rows * length * floats
