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
Mixing = tuple[tuple[float, ...], ...]  # [S, O]


class Head(nn.Module):
    """A generalised linear model with a small network beside it: [B, P] → [B, O].

        scores = x W + gelu(x V + c) U        [B, S]
        logits = b + scores M                 [B, O]

    ``mixing`` M ([S, O], fixed) says which scores move which outputs. Thirty hazards that share one score are a
    proportional-hazards model: with a thousand rows, thirty free columns of W would learn them by heart. U starts at 0,
    so the head starts as the base rate b and grows linear first.
    """

    width: int
    mixing: Mixing

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mixing = jnp.asarray(self.mixing, jnp.float32)
        scores, outputs = mixing.shape
        zeros = nn.initializers.zeros_init()
        hidden = nn.gelu(nn.Dense(self.width, name="hidden")(x))
        linear = nn.Dense(scores, use_bias=False, kernel_init=zeros, name="linear")(x)
        beside = nn.Dense(scores, use_bias=False, kernel_init=zeros, name="scores")(hidden)
        return self.param("bias", zeros, (outputs,)) + (linear + beside) @ mixing


def hurdle_mixing(horizon: int) -> Mixing:
    """Two scores for a hurdle-ordinal head: one for P(y > 0), one for all hazards of 1..H together."""
    return (1.0, *[0.0] * (horizon - 1)), (0.0, *[1.0] * (horizon - 1))


def free_mixing(outputs: int) -> Mixing:
    """A score of its own for every output."""
    return tuple(tuple(float(i == j) for j in range(outputs)) for i in range(outputs))


class Fitted(NamedTuple):
    """Heads of S seeds.

    Attributes:
      params: pytree with a leading axis [S].
      val_loss: [S] loss on validation rows at the step kept.
      best_step: [S] that step.
      penalty: [S] the λ kept.
    """

    params: Any
    val_loss: np.ndarray
    best_step: np.ndarray
    penalty: np.ndarray


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
    mixing: Mixing,
    seeds: Sequence[int],
    width: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    penalties: Sequence[float],
    bias: np.ndarray | None = None,
    check_every: int = 50,
    shared_penalty: bool = False,
) -> Fitted:
    """Trains one head a seed and penalty with Adam; keeps the penalty and the step that do best on the validation rows.

    Args:
      x: [N, P] standardised inputs of training rows; y: [N] labels.
      x_val: [V, P]; y_val: [V].
      loss: per-row loss of outputs and labels. Pass the same function object again to reuse the compiled program.
      mixing: which scores move which outputs, see :class:`Head`.
      seeds: S seeds: initial weights and mini-batches.
      width, steps, batch_size, learning_rate: of the network and Adam (cosine to 0).
      penalties: candidates of λ in mean loss + λ/2 · (‖W‖² + ‖V‖² + ‖U‖²).
      bias: [O] initial output bias, e.g. that of the base rate; zeros by default.
      check_every: steps between two looks at the validation loss.
      shared_penalty: the first seed chooses λ for all: P + S − 1 trainings in place of P · S.

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
    optimizer = _optimizer(learning_rate, blocks * check_every)
    start = np.zeros(len(mixing[0]), np.float32) if bias is None else np.asarray(bias, np.float32)
    fit = partial(
        _fit,
        loss=loss,
        optimizer=optimizer,
        width=width,
        mixing=mixing,
        blocks=blocks,
        block=check_every,
        batch=min(batch_size, len(x)),
    )
    arrays = [jnp.asarray(value, jnp.float32) for value in (x, y, x_val, y_val, start)]

    def run(some: Sequence[int], candidates: Sequence[float]) -> Fitted:
        jobs = (
            np.repeat(np.asarray(some, np.uint32), len(candidates)),
            np.tile(np.asarray(candidates, np.float32), len(some)),
        )
        params, losses, steps = jax.tree.map(np.asarray, fit(*map(jnp.asarray, jobs), *arrays))
        losses = losses.reshape(len(some), len(candidates))
        best = losses.argmin(axis=1)
        chosen = np.arange(len(some)) * len(candidates) + best
        kept = jax.tree.map(lambda leaf: leaf[chosen], params)
        return Fitted(kept, losses.min(axis=1), steps[chosen] * check_every, jobs[1][: len(candidates)][best])

    if not shared_penalty or len(seeds) == 1 or len(penalties) == 1:
        return run(seeds, penalties)
    first = run(seeds[:1], penalties)
    rest = run(seeds[1:], [float(first.penalty[0])])
    return Fitted(*(jax.tree.map(lambda one, more: np.concatenate([one, more]), a, b) for a, b in zip(first, rest)))


def predict_heads(fitted: Fitted, x: np.ndarray, *, width: int, mixing: Mixing) -> np.ndarray:
    """Raw outputs of every seed's head, [S, U, O] float32."""
    return np.asarray(_predict(fitted.params, jnp.asarray(x, jnp.float32), width=width, mixing=mixing))


@lru_cache(maxsize=8)
def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """One object a setting: jit compares optimisers by identity."""
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


@partial(jax.jit, static_argnames=("width", "mixing"))
def _predict(params: Any, x: jax.Array, *, width: int, mixing: Mixing) -> jax.Array:
    return jax.lax.map(lambda one: Head(width, mixing).apply({"params": one}, x), params)


@partial(jax.jit, static_argnames=("loss", "optimizer", "width", "mixing", "blocks", "block", "batch"))
def _fit(seeds, penalties, x, y, x_val, y_val, bias, *, loss, optimizer, width, mixing, blocks, block, batch):
    head = Head(width, mixing)

    def mean_loss(params, inputs, labels):
        return jnp.mean(loss(head.apply({"params": params}, inputs), labels))

    def objective(params, inputs, labels, penalty):
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
        return mean_loss(params, inputs, labels) + penalty / 2 * squares

    def one(job):
        seed, penalty = job
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        params = head.init(init_key, x[:1])["params"]
        params["bias"] = bias

        def step(carry, number):
            params, moments = carry
            rows = jax.random.randint(jax.random.fold_in(batch_key, number), (batch,), 0, x.shape[0])
            gradient = jax.grad(objective)(params, x[rows], y[rows], penalty)
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

    return jax.lax.map(one, (seeds, penalties))


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
