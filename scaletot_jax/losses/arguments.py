"""Argument checks and the precision rule shared by every loss.

A loss checks what is static (ranks, shapes, option names) and raises ``ValueError``; nothing here looks at values, so
everything stays jit-, grad-, vmap- and shard-safe. Arithmetic is float32, or float64 where the caller's arrays are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def floating(values: ArrayLike) -> jax.Array:
    """``values`` in float32 (float64 stays): bfloat16 log-probabilities must not give bfloat16 losses."""
    array = jnp.asarray(values)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def require_shape(name: str, array: Any, shape: tuple[int | str, ...]) -> None:
    """Raises ``ValueError`` unless ``array`` has ``shape``; a letter stands for any size."""
    actual = jnp.shape(array)
    fits = len(actual) == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(actual, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{wanted}], not {list(actual)}")


def require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises ``ValueError`` unless ``value`` is one of ``choices``."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def require_segments(num_segments: object) -> None:
    """Raises ``ValueError`` unless ``num_segments`` is a static integer of at least 1."""
    if isinstance(num_segments, bool) or not isinstance(num_segments, int) or num_segments < 1:
        raise ValueError(f"num_segments must be a Python int of at least 1, not {num_segments!r}")


def require_rollouts(segment_ids: Any, outcomes: Any, group_ids: Any, valid: Any, **by_segment: Any) -> int:
    """Raises ``ValueError`` unless the arrays describe the same rollouts; returns K.

    Args:
      segment_ids: [B, T]. outcomes, group_ids: [B]. valid: [B, K].
      by_segment: one array [B, K] with K at least 1, under the name it has for the caller.
    """
    [(name, values)] = by_segment.items()
    require_shape("segment_ids", segment_ids, ("B", "T"))
    rows = jnp.shape(segment_ids)[0]
    require_shape(name, values, (rows, "K"))
    require_shape("valid", valid, jnp.shape(values))
    require_shape("outcomes", outcomes, (rows,))
    require_shape("group_ids", group_ids, (rows,))
    if jnp.shape(values)[1] < 1:
        raise ValueError(f"{name} must have at least one segment")
    return jnp.shape(values)[1]


def divide(total: jax.Array, count: jax.Array) -> jax.Array:
    """``total / count``, and 0 where ``count`` is 0: an empty mask has loss 0 and gradient 0, never NaN."""
    return jnp.where(count > 0, total, 0) / jnp.where(count > 0, count, 1)


def all_sum(values: Any, axis_name: str | tuple[str, ...] | None) -> Any:
    """The sum over the devices of a mapped axis of an array or a tree of arrays; ``values`` themselves without one."""
    return values if axis_name is None else jax.lax.psum(values, axis_name)
