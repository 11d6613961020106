"""The trained part of the student: a low-rank adapter, its optimiser state, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scaletot_jax.files import read_arrays, write_arrays

Adapter = dict[str, jax.Array]
SCHEDULES = ("constant", "linear", "cosine")


class TrainState(NamedTuple):
    """One adapter under training.

    Attributes:
      lora: leaves ``q_a`` [L, in, r], ``q_b`` [L, r, out] and so on, float32.
      opt_state: the optimiser's state for it.
      step: int32 scalar, updates done.
    """

    lora: Adapter
    opt_state: Any
    step: jax.Array


def adamw(
    learning_rate: float,
    *,
    steps: int,
    warmup: int,
    weight_decay: float,
    clip_norm: float,
    schedule: str = "cosine",
    decayed: Any = None,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) behind global-norm clipping, on a schedule of :func:`rates`.

    Args:
      learning_rate: the peak.
      steps, warmup, schedule: see :func:`rates`.
      decayed: tree of bools like the weights, which of them decay; None: all.
    """
    rate = rates(learning_rate, steps=steps, warmup=warmup, schedule=schedule)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adamw(rate, weight_decay=weight_decay, mask=decayed))


def rates(learning_rate: float, *, steps: int, warmup: int, schedule: str) -> optax.Schedule:
    """Linear warm-up from ``learning_rate / (warmup + 1)`` to the peak, then the schedule.

    ``"constant"`` stays at the peak, ``"linear"`` and ``"cosine"`` fall to a tenth of it, which they would reach one update after the last.

    Args:
      learning_rate: the peak.
      steps: updates in all.
      warmup: updates of linear warm-up, at most ``steps − 1``.

    Raises:
      ValueError: another schedule.
    """
    warmup = max(0, min(warmup, steps - 1))
    first, last, end = learning_rate / (warmup + 1), learning_rate / 10, max(steps, warmup + 1)
    if schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(first, learning_rate, warmup, end, end_value=last)
    if schedule == "linear":
        falling = optax.linear_schedule(learning_rate, last, end - warmup)
    elif schedule == "constant":
        falling = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    return optax.join_schedules([optax.linear_schedule(first, learning_rate, warmup), falling], [warmup])


def cast(weights: Any, dtype: Any) -> Any:
    """The adapter in the dtype it is multiplied in; its gradient comes back in the dtype it was given in."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), weights)


def start(lora: Mapping[str, jax.Array], optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh training state for an adapter."""
    lora = dict(lora)
    return TrainState(lora, optimizer.init(lora), jnp.int32(0))


def apply_gradients(
    state: TrainState, gradients: Adapter, optimizer: optax.GradientTransformation, *, enabled: jax.Array | bool = True
) -> TrainState:
    """One optimiser update; where ``enabled`` is False the adapter and the optimiser state stay as they are."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.lora)
    after = TrainState(optax.apply_updates(state.lora, updates), opt_state, state.step + 1)  # type: ignore[arg-type]
    return jax.tree.map(lambda new, old: jnp.where(enabled, new, old), after, state)


def save_adapter(path: str | Path, lora: Mapping[str, Any]) -> None:
    """Writes an adapter as safetensors."""
    write_arrays(path, {name: np.asarray(value) for name, value in lora.items()})


def load_adapter(path: str | Path) -> Adapter:
    """Reads an adapter written by :func:`save_adapter`."""
    return {name: jnp.asarray(value) for name, value in read_arrays(path).items()}
