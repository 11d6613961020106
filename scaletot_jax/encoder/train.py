"""Training the encoder: one compiled block of steps, every random choice a function of the step's number.

Step s of a run draws its rows and its withheld fields from (seed, s) alone, so a run that is stopped between two blocks
and continued goes through the same numbers, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scaletot_jax.encoder.model import EncoderSpec, Inputs, apply, redact
from scaletot_jax.losses.distill import distill_loss, regression_loss

CHECK_EVERY = 25  # steps between two looks at the selection profiles


class Data(NamedTuple):
    """Profiles and the whitened states they should be given."""

    inputs: Inputs  # U encoded profiles
    targets: tuple[jax.Array, ...]  # K arrays [U, d_k] float32


class TrainState(NamedTuple):
    """Everything a step changes, and the best weights so far."""

    params: Any
    optimizer: Any
    step: jax.Array  # [] int32, steps done
    best: Any  # the weights with the least error on the selection profiles
    best_error: jax.Array  # [] float32
    best_step: jax.Array  # [] int32


class LossWeights(NamedTuple):
    """Of the parts of ``losses.distill_loss`` beside the squared error."""

    cosine: float
    gram: float
    contrast: float


STATES = LossWeights(0.5, 0.5, 0.1)
LABELS = LossWeights(0.0, 0.0, 0.0)  # equal labels are no pair to be told apart


def distillation_loss(
    predicted: tuple[jax.Array, ...], targets: tuple[jax.Array, ...], weights: LossWeights = STATES
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over segments of ``losses.distill_loss``; segments of one width, as a rule all, are one call.

    No label enters, unless the targets are the placebo of labels (:mod:`scaletot_jax.encoder.targets`).
    """
    loss = jnp.zeros(())
    total: dict[str, jax.Array] = {}
    for z, target in _stacked(predicted, targets):
        share = z.shape[1] / len(targets)
        value, parts = distill_loss(
            z, target, cosine_weight=weights.cosine, gram_weight=weights.gram, contrast_weight=weights.contrast
        )
        loss += share * value
        total = {name: total.get(name, jnp.zeros(())) + share * part for name, part in parts.items()}
    return loss, total


def squared_error(predicted: tuple[jax.Array, ...], targets: tuple[jax.Array, ...]) -> jax.Array:
    """Mean over segments of the squared error a whitened dimension; 1 is what predicting the mean costs."""
    parts = [jnp.sum(regression_loss(z, target)) for z, target in _stacked(predicted, targets)]
    return jnp.sum(jnp.stack(parts)) / len(targets)


def _stacked(predicted: tuple[jax.Array, ...], targets: tuple[jax.Array, ...]) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Pairs [B, k, d] of the segments that share a width d (a segment of low rank is narrower)."""
    for width in sorted({target.shape[1] for target in targets}):
        members = [k for k, target in enumerate(targets) if target.shape[1] == width]
        yield jnp.stack([predicted[k] for k in members], axis=1), jnp.stack([targets[k] for k in members], axis=1)


@lru_cache(maxsize=8)
def make_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clipping, a linear warm-up over 5 % of the steps and a cosine to 0.

    Equal arguments give one object: jit compares optimisers by identity.
    """
    warmup = max(1, steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. It takes ``params`` over: training donates their buffers."""
    zero = jnp.zeros((), jnp.int32)
    best = jax.tree.map(jnp.copy, params)  # a buffer of its own: the state is donated
    return TrainState(params, optimizer.init(params), zero, best, jnp.asarray(jnp.inf, jnp.float32), jnp.copy(zero))


def draw_withheld(key: jax.Array, batch: int, early: jax.Array, rate: float) -> jax.Array:
    """Field dropout: which fields of which row are withheld, bool [B, F].

    Each field by itself with probability ``rate``; besides, with the same probability all ``early`` (behavioural) fields
    of a row at once, so that the encoder has also learnt the profile that evaluation calls *static*.

    Args:
      key: a random key.
      batch: B.
      early: bool [F].
      rate: in [0, 1).
    """
    one, all_early = jax.random.split(key)
    alone = jax.random.bernoulli(one, rate, (batch, early.shape[0]))
    together = jax.random.bernoulli(all_early, rate, (batch, 1))
    return alone | (together & early)


def draw_rows(seed: int, first: int, checks: int, users: int, batch_size: int) -> np.ndarray:
    """Distinct profiles of each step of a block, int32 [checks, CHECK_EVERY, B], B = min(batch_size, users).

    Drawn on the host: a sort compiled for the device would cost seconds, and this costs microseconds a step.
    """
    steps = range(first, first + checks * CHECK_EVERY)
    rows = [np.random.default_rng([seed, step]).permutation(users)[:batch_size] for step in steps]
    return np.asarray(rows, np.int32).reshape(checks, CHECK_EVERY, -1)


@partial(jax.jit, static_argnames=("spec", "optimizer", "rate", "weights"), donate_argnames="state")
def train_block(
    state: TrainState,
    train: Data,
    select: Data,
    rows: jax.Array,
    early: jax.Array,
    key: jax.Array,
    *,
    spec: EncoderSpec,
    optimizer: optax.GradientTransformation,
    rate: float,
    weights: LossWeights = STATES,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs a block of steps on the device, keeping the weights that do best on ``select``.

    Args:
      state: where to start; its buffers are donated.
      train: U profiles to learn from.
      select: profiles of other users that choose the step to keep.
      rows: int32 [checks, CHECK_EVERY, B], which profiles each step sees, see :func:`draw_rows`.
      early: bool [F], fields withheld together.
      key: of the whole run, the same for every block; the step's number is folded in.
      spec, optimizer: what is trained, and how.
      rate: of field dropout.
      weights: of the parts of the loss.

    Returns:
      the new state, and for each check the means over its steps of ``loss`` and its parts, and ``select_error``.
    """

    def step(state: TrainState, chosen: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        withheld_key, unknown_key = jax.random.split(jax.random.fold_in(key, state.step))
        withheld = draw_withheld(withheld_key, chosen.shape[0], early, rate)
        unknown = jax.random.bernoulli(unknown_key, 0.5, chosen.shape)
        batch = redact(Inputs(*(column[chosen] for column in train.inputs)), withheld, spec, unknown=unknown)
        wanted = tuple(target[chosen] for target in train.targets)

        def objective(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            return distillation_loss(apply(params, spec, batch).segments, wanted, weights)

        (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, optimizer=moments, step=state.step + 1), {"loss": value, **metrics}

    def check(state: TrainState, rows: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = jax.lax.scan(step, state, rows)
        error = squared_error(apply(state.params, spec, select.inputs).segments, select.targets)
        better = error < state.best_error  # NaN is never better
        state = state._replace(
            best=jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best),
            best_error=jnp.where(better, error, state.best_error),
            best_step=jnp.where(better, state.step, state.best_step),
        )
        return state, {**{name: jnp.mean(values) for name, values in metrics.items()}, "select_error": error}

    return jax.lax.scan(check, state, rows)
