"""The LTV heads of the evaluation: small networks of one shape, so that only their *inputs* differ.

Inputs that are left out are columns of zeros, not missing columns: every variant has the same number of parameters, the
same initial weights and the same mini-batches for the same seed, and runs through one compiled program. Training rows are
the head split; the step with the least loss on validation rows is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scaletot_jax.errors import DataError

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # (outputs [B, O], labels [B]) -> per-row loss [B]


class Head(nn.Module):
    """Two hidden layers and a linear output: [B, P] → [B, O]."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in range(2):
            x = nn.gelu(nn.Dense(self.width, name=f"hidden_{layer}")(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.normal(1e-2), name="outputs")(x)


class Fitted(NamedTuple):
    """Heads of S seeds.

    Attributes:
      params: pytree with a leading axis [S].
      val_loss: [S] loss on validation rows at the step kept.
      best_step: [S] that step.
    """

    params: Any
    val_loss: np.ndarray
    best_step: np.ndarray


class Scaler(NamedTuple):
    """Column means and standard deviations of the training rows."""

    mean: np.ndarray  # [P]
    std: np.ndarray  # [P], infinite for a constant column, which becomes 0

    @classmethod
    def fit(cls, x: np.ndarray) -> Scaler:
        std = x.std(0, dtype=np.float64)
        return cls(x.mean(0, dtype=np.float64), np.where(std > 1e-8, std, np.inf))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Standardised columns, float32, within ±8 (one wild value must not steer a head)."""
        return np.clip((x - self.mean) / self.std, -8, 8).astype(np.float32)


def fit_heads(
    x: np.ndarray,
    y: np.ndarray,
    x_val: np.ndarray,
    y_val: np.ndarray,
    *,
    loss: Loss,
    outputs: int,
    seeds: Sequence[int],
    width: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    bias: np.ndarray | None = None,
    check_every: int = 50,
) -> Fitted:
    """Trains one head a seed with AdamW and keeps its best step on the validation rows.

    Args:
      x: [N, P] standardised inputs of training rows; y: [N] labels.
      x_val: [V, P]; y_val: [V].
      loss: per-row loss of outputs and labels. Pass the same function object again to reuse the compiled program.
      outputs: O.
      seeds: S seeds: initial weights and mini-batches.
      width, steps, batch_size, learning_rate, weight_decay: of the network and AdamW (cosine to 0).
      bias: [O] initial output bias, e.g. that of the base rate; zeros by default.
      check_every: steps between two looks at the validation loss.

    Returns:
      the heads; the same arguments give the same bytes.

    Raises:
      DataError: no training or validation rows, or inputs that are not finite.
    """
    if not len(x) or not len(x_val):
        raise DataError("the heads need rows in the head and val splits", why=f"{len(x)} and {len(x_val)} rows")
    if not (np.isfinite(x).all() and np.isfinite(x_val).all()):
        raise DataError("an input of the heads is not finite")
    blocks = max(1, -(-steps // check_every))
    optimizer = _optimizer(learning_rate, weight_decay, blocks * check_every)
    start = np.zeros(outputs, np.float32) if bias is None else np.asarray(bias, np.float32)
    fit = partial(
        _fit,
        loss=loss,
        optimizer=optimizer,
        width=width,
        blocks=blocks,
        block=check_every,
        batch=min(batch_size, len(x)),
    )
    params, val_loss, best = fit(
        jnp.asarray(seeds, jnp.uint32), jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32),
        jnp.asarray(x_val, jnp.float32), jnp.asarray(y_val, jnp.float32), jnp.asarray(start),
    )  # fmt: skip
    return Fitted(jax.tree.map(np.asarray, params), np.asarray(val_loss), np.asarray(best) * check_every)


def predict_heads(fitted: Fitted, x: np.ndarray, *, width: int, outputs: int) -> np.ndarray:
    """Raw outputs of every seed's head, [S, U, O] float32."""
    return np.asarray(_predict(fitted.params, jnp.asarray(x, jnp.float32), width=width, outputs=outputs))


@lru_cache(maxsize=8)
def _optimizer(learning_rate: float, weight_decay: float, steps: int) -> optax.GradientTransformation:
    """One object a setting: jit compares optimisers by identity."""
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay))


@partial(jax.jit, static_argnames=("width", "outputs"))
def _predict(params: Any, x: jax.Array, *, width: int, outputs: int) -> jax.Array:
    return jax.lax.map(lambda one: Head(width, outputs).apply({"params": one}, x), params)


@partial(jax.jit, static_argnames=("loss", "optimizer", "width", "blocks", "block", "batch"))
def _fit(seeds, x, y, x_val, y_val, bias, *, loss, optimizer, width, blocks, block, batch):
    head = Head(width, bias.shape[0])

    def mean_loss(params, inputs, labels):
        return jnp.mean(loss(head.apply({"params": params}, inputs), labels))

    def one(seed):
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        params = head.init(init_key, x[:1])["params"]
        params["outputs"]["bias"] = bias

        def step(carry, number):
            params, moments = carry
            rows = jax.random.randint(jax.random.fold_in(batch_key, number), (batch,), 0, x.shape[0])
            gradient = jax.grad(mean_loss)(params, x[rows], y[rows])
            updates, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, updates), moments), None

        def check(carry, number):
            params, moments, best, best_loss, best_block = carry
            (params, moments), _ = jax.lax.scan(step, (params, moments), number * block + jnp.arange(block))
            now = mean_loss(params, x_val, y_val)
            better = now < best_loss  # NaN is never better
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, best)
            return (
                params,
                moments,
                best,
                jnp.where(better, now, best_loss),
                jnp.where(better, number + 1, best_block),
            ), None

        begin = (params, optimizer.init(params), params, mean_loss(params, x_val, y_val), jnp.zeros((), jnp.int32))
        (_, _, best, best_loss, best_block), _ = jax.lax.scan(check, begin, jnp.arange(blocks))
        return best, best_loss, best_block

    return jax.lax.map(one, seeds)


def ridge(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Ridge regression of the label on standardised columns, penalty chosen on validation rows. Predictions [U] for x_test."""
    x, x_val, x_test = (np.asarray(part, np.float64) for part in (x, x_val, x_test))
    mean = y.mean()
    gram, moment = x.T @ x / len(x), x.T @ (y - mean) / len(x)
    values, vectors = np.linalg.eigh(gram)
    moment = vectors.T @ moment
    best, chosen = np.inf, np.zeros_like(moment)
    for penalty in 10.0 ** np.arange(-4, 3):
        weights = vectors @ (moment / (np.maximum(values, 0) + penalty))
        error = np.mean((x_val @ weights + mean - y_val) ** 2)
        if error < best:
            best, chosen = error, weights
    return x_test @ chosen + mean
