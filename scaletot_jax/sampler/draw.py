"""Drawing one token a row from logits, exactly and without a sort.

For a row with logits z, the allowed set C and temperature τ > 0

    p_τ(v)  ∝  1[v ∈ C ∩ K] · exp(z_v / τ),      K: what top-k and top-p leave of C

and the token is the inverse of the cumulative sum at one uniform number u: one random number a row, where the Gumbel trick
takes V of them (on a CPU those cost more than the model's own head). τ = 0 takes the largest allowed logit.

Top-k keeps v iff z_v ≥ t with the largest t that leaves at least k tokens; top-p (arXiv 1904.09751) the same for a mass of
at least p of the tempered distribution. Both thresholds are found by bisection over the ordered bits of a float32: 32
counting passes, exact, and nothing is sorted. Tokens that tie with the last one kept are kept too.

Shape letters: B rows, N tokens (the vocabulary, or a state's alternatives).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LOW = -1e30  # stands for −inf: finite, so that 0 · it is 0 and no difference is NaN
_SURE = 1e-13  # e^-30: allowed tokens of less weight than this may have been lost to rounding
_BLOCK = 256  # tokens of a block in the two-level cumulative sum


class Drawn(NamedTuple):
    """One token a row.

    Attributes:
      place: [B] int32, of the token in 0..N−1.
      logp: [B] float32, log p_τ of it in nats, after every filter; 0 where τ = 0.
      entropy: [B] float32 in nats, of the distribution over C at τ = 1, before top-k and top-p.
    """

    place: jax.Array
    logp: jax.Array
    entropy: jax.Array


class Measured(NamedTuple):
    """What one pass over the logits says, all [B] float32 in nats.

    Attributes:
      normaliser: logsumexp over the vocabulary; log p(v) = z_v − normaliser.
      entropy: of the model's own distribution, at τ = 1 over the vocabulary.
      allowed_entropy: of that distribution restricted to the allowed tokens.
    """

    normaliser: jax.Array
    entropy: jax.Array
    allowed_entropy: jax.Array


def draw(
    logits: jax.Array,
    allowed: jax.Array,
    uniform: jax.Array,
    *,
    temperature: jax.Array,
    top_k: jax.Array | None = None,
    top_p: jax.Array | None = None,
    allowed_entropy: jax.Array | None = None,
) -> Drawn:
    """Draws one token a row.

    Args:
      logits: [B, N] float32.
      allowed: [B, N] bool, the set C. A row without any allowed token returns index 0, whose numbers mean nothing.
      uniform: [B] float32 in [0, 1).
      temperature: [B] float32 ≥ 0; 0 is greedy.
      top_k: [B] int32, 0 = off; None compiles nothing for it.
      top_p: [B] float32 in (0, 1], 1 = off; None compiles nothing for it.
      allowed_entropy: [B], where :func:`measure` has given it already.
    """
    masked = jnp.where(allowed, logits, _LOW)
    greedy = temperature <= 0
    tau = jnp.where(greedy, 1.0, temperature)[:, None]
    scaled = jnp.where(allowed, logits / tau, _LOW)
    kept = allowed
    if top_k is not None:
        kept = kept & _top_k(masked, allowed, top_k)
    if top_p is not None:
        kept = kept & _top_p(scaled, kept, top_p)
    scaled = jnp.where(kept, scaled, _LOW)
    highest = jnp.max(scaled, axis=-1, keepdims=True)
    weights = jnp.where(kept, jnp.exp(scaled - highest), 0.0)
    index, total = _inverse_cumulative(weights, uniform)
    index = jnp.where(greedy, _first_highest(masked), index)
    chosen = jnp.take_along_axis(scaled, index[:, None], axis=-1)[:, 0]
    logp = jnp.where(greedy, 0.0, chosen - highest[:, 0] - jnp.log(jnp.maximum(total, 1e-38)))
    return Drawn(
        index.astype(jnp.int32), logp, entropy(logits, allowed) if allowed_entropy is None else allowed_entropy
    )


def measure(logits: jax.Array, allowed: jax.Array) -> Measured:
    """Both entropies and the normaliser from one set of exponentials, where each alone would take its own.

    With w = exp(z − max z) and sums over all tokens and over the allowed ones C,

        H = ln Σ w − Σ w ln w / Σ w,     H_C = ln Σ_C w − Σ_C w ln w / Σ_C w

    A row whose allowed tokens all lie some 30 nats below the largest logit would lose them to rounding: where there is
    one, :func:`entropy` is taken instead, which has a maximum of its own.
    """
    highest = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - highest
    weights = jnp.exp(shifted)
    mixed = weights * shifted
    total, kept = jnp.sum(weights, axis=-1), jnp.sum(jnp.where(allowed, weights, 0.0), axis=-1)
    known = kept > _SURE
    safe = jnp.where(known, kept, 1.0)
    inside = jnp.log(safe) - jnp.sum(jnp.where(allowed, mixed, 0.0), axis=-1) / safe
    inside = jax.lax.cond(jnp.all(known), lambda: inside, lambda: jnp.where(known, inside, entropy(logits, allowed)))
    log_total = jnp.log(total)
    return Measured(highest[:, 0] + log_total, log_total - jnp.sum(mixed, axis=-1) / total, inside)


def entropy(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """−Σ p ln p [B] in nats of softmax(logits [B, N]) over the allowed tokens: logsumexp(z) − Σ p z."""
    masked = jnp.where(allowed, logits, _LOW)
    shifted = masked - jnp.max(masked, axis=-1, keepdims=True)
    weights = jnp.where(allowed, jnp.exp(shifted), 0.0)
    safe = jnp.maximum(jnp.sum(weights, axis=-1), 1e-38)
    return jnp.log(safe) - jnp.sum(weights * shifted, axis=-1) / safe


def _inverse_cumulative(weights: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first place whose cumulative weight exceeds u · total [B], and the total [B]. Its weight is never 0.

    Two levels, blocks and places within one block: a cumulative sum over all N is the dearest pass of a step on a CPU.
    """
    rows, size = weights.shape
    block = min(_BLOCK, size)
    padded = jnp.pad(weights, ((0, 0), (0, -size % block))).reshape(rows, -1, block)
    sums = jnp.sum(padded, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    total = ends[:, -1]
    goal = uniform * total
    chosen = _first_beyond(ends, sums, goal)
    before = jnp.take_along_axis(ends - sums, chosen[:, None], axis=-1)[:, 0]
    inside = jnp.take_along_axis(padded, chosen[:, None, None], axis=1)[:, 0]
    place = _first_beyond(jnp.cumsum(inside, axis=-1), inside, goal - before)
    return chosen * block + place, total


def _first_highest(values: jax.Array) -> jax.Array:
    """The first place of the largest value [B], in two levels: an argmax over all N is not vectorised on a CPU."""
    rows, size = values.shape
    block = min(_BLOCK, size)
    padded = jnp.pad(values, ((0, 0), (0, -size % block)), constant_values=-jnp.inf).reshape(rows, -1, block)
    chosen = jnp.argmax(jnp.max(padded, axis=-1), axis=-1)
    inside = jnp.take_along_axis(padded, chosen[:, None, None], axis=1)[:, 0]
    return chosen * block + jnp.argmax(inside, axis=-1)


def _first_beyond(ends: jax.Array, weights: jax.Array, goal: jax.Array) -> jax.Array:
    """The first place of positive weight whose cumulative sum exceeds the goal; rounding may leave only the last one."""
    places = jnp.arange(weights.shape[-1])
    last = jnp.max(jnp.where(weights > 0, places, 0), axis=-1)
    beyond = (ends > goal[:, None]) & (weights > 0)
    return jnp.where(jnp.any(beyond, axis=-1), jnp.argmax(beyond, axis=-1), last)


def _top_k(logits: jax.Array, allowed: jax.Array, count: jax.Array) -> jax.Array:
    def enough(threshold: jax.Array) -> jax.Array:
        return jnp.sum((_ordered(logits) >= threshold[:, None]) & allowed, axis=-1) >= count

    return (_ordered(logits) >= _highest(enough, logits.shape[0])[:, None]) | (count <= 0)[:, None]


def _top_p(scaled: jax.Array, kept: jax.Array, mass: jax.Array) -> jax.Array:
    highest = jnp.max(jnp.where(kept, scaled, _LOW), axis=-1, keepdims=True)
    weights = jnp.where(kept, jnp.exp(scaled - highest), 0.0)
    goal = mass * jnp.sum(weights, axis=-1)

    def enough(threshold: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(_ordered(scaled) >= threshold[:, None], weights, 0.0), axis=-1) >= goal

    return (_ordered(scaled) >= _highest(enough, scaled.shape[0])[:, None]) | (mass >= 1)[:, None]


def _ordered(values: jax.Array) -> jax.Array:
    """float32 as uint32 in the same order: the sign bit flipped for positive numbers, all bits for negative ones."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _highest(enough: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The largest uint32 [B] at which ``enough`` still holds, bit by bit from the top; it must hold at 0."""

    def body(i: jax.Array, found: jax.Array) -> jax.Array:
        trial = found | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(enough(trial), trial, found)

    return jax.lax.fori_loop(0, 32, body, jnp.zeros(rows, jnp.uint32))
