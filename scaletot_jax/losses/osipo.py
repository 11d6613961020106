"""The clipped policy loss of OSIPO, with the ratios and aggregations of its relatives (GRPO, DAPO, Dr.GRPO, GSPO, RLOO)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import (
    all_sum,
    divide,
    floating,
    require_choice,
    require_segments,
    require_shape,
)
from scaletot_jax.losses.groups import AxisName
from scaletot_jax.losses.segments import PADDING, credited_tokens, segment_counts, segment_means, spread_segments

RATIOS = ("segment", "token", "sequence")
AGGREGATIONS = ("segment_mean", "token_mean", "sequence_mean", "constant")

# exp(±20) is far outside any clip range and far inside float32.
_MAX_LOG_RATIO = 20.0


def osipo_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    segment_ids: jax.Array,
    *,
    aggregation: str,
    num_segments: int,
    ratio: str = "segment",
    clip_low: float | jax.Array = 0.2,
    clip_high: float | jax.Array = 0.28,
    ref_logps: jax.Array | None = None,
    kl_weight: float | jax.Array = 0.0,
    answer: str = "zero",
    constant: float | jax.Array = 1.0,
    axis_name: AxisName = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate over the tokens of a batch of chains, plus a KL penalty.

        ℓ_it = −min( ρ_it A_it, clip(ρ_it, 1 − ε_low, 1 + ε_high) A_it ) + κ · k3_it
        k3_it = exp(d) − d − 1,   d = log π_ref − log π_θ                      (log-ratios clipped to ±20 before exp)

    with the ratio ρ_it = exp of the mean of δ = log π_θ − log π_old over

    * ``"segment"``: the token's own typed segment (structural tokens: the token alone),
    * ``"token"``: the token alone (PPO, GRPO),
    * ``"sequence"``: all credited tokens of the chain (GSPO).

    A shared ratio is differentiated in the form stop_gradient(ρ)·exp(δ − stop_gradient(δ)) of GSPO-token, so each token
    keeps its own advantage, ∂ℓ_it/∂log π_it = −ρ_it A_it; where a unit's tokens share advantage and weight, as in
    OSIPO, this is exactly the gradient of the plain form. And with the tokens C_i that take part
    (:func:`~scaletot_jax.losses.segments.credited_tokens`), over the N chains that have any, the loss is

    * ``"segment_mean"``:  (1/N) Σ_i (1/K_i) Σ_k (1/|S_ik|) Σ_{t∈S_ik} ℓ_it; all structural tokens are one more segment,
    * ``"token_mean"``:    Σ_i Σ_t ℓ_it / Σ_i |C_i|   (DAPO),
    * ``"sequence_mean"``: (1/N) Σ_i (1/|C_i|) Σ_t ℓ_it   (GRPO, GSPO),
    * ``"constant"``:      (1/N) Σ_i (1/constant) Σ_t ℓ_it   (Dr.GRPO; RLOO with constant 1).

    There is no default: a hidden aggregation is a hidden learning rate.

    >>> ids = jnp.array([[0, 0, -1, -3]])
    >>> logps = jnp.array([[-1.0, -2.0, -0.5, jnp.nan]])
    >>> advantages = jnp.array([[1.0, 1.0, 3.0, 0.0]])
    >>> loss, metrics = osipo_loss(logps, logps, advantages, ids, aggregation="segment_mean", num_segments=1)
    >>> float(loss), float(metrics["clip_fraction"])
    (-2.0, 0.0)

    Args:
      logps: log π_θ of the sampled tokens, nats [B, T]; the only argument a gradient enters.
      old_logps: log π_old under the policy that sampled them, nats [B, T].
      advantages: A [B, T].
      segment_ids: int32 [B, T]. NaN or infinity at tokens that take no part never reaches loss or gradient.
      aggregation: see above; required.
      num_segments: K, a Python int.
      ratio: see above.
      clip_low, clip_high: ε_low, ε_high; ``float("inf")`` turns a side off.
      ref_logps: log π_ref, nats [B, T]; needed for the penalty, else None.
      kl_weight: κ.
      answer: ``"zero"`` leaves answer tokens out (and out of every denominator); ``"outcome"`` counts them as structural.
        Must be what the advantages were made with.
      constant: divisor of ``"constant"``, e.g. the maximal response length; unused otherwise.
      axis_name: mapped axis of ``jax.shard_map`` the rows are split over; the loss is then that of the global batch.

    Returns:
      The scalar loss (0 when no token takes part) and metrics, scalars without gradient: ``count`` (what the sum was
      divided by: multiply the loss by it to accumulate micro-batches, and divide once at the end), ``policy_loss``,
      ``clip_fraction``, ``ratio`` (mean over tokens), ``old_kl`` (KL(π_old ‖ π_θ) by k3, mean over tokens), ``tokens``,
      and ``kl`` if ``ref_logps`` is given: KL(π_θ ‖ π_ref) by k3, each token weighted by its own ratio because π_old drew
      it, mean over tokens. The penalty has no such weight, as in GRPO.

    Raises:
      ValueError: shapes that disagree, an unknown option, or a ``kl_weight`` without ``ref_logps``.

    Source: arXiv:2402.03300 (GRPO), 2503.14476 (DAPO), 2503.20783 (Dr.GRPO), 2507.18071 (GSPO), 2402.14740 (RLOO);
    the segment ratio follows 2605.01327 (SAPO), on typed segments.
    """
    require_choice("aggregation", aggregation, AGGREGATIONS)
    require_choice("ratio", ratio, RATIOS)
    require_segments(num_segments)
    require_shape("segment_ids", segment_ids, ("B", "T"))
    shape = jnp.shape(segment_ids)
    for name, array in (("logps", logps), ("old_logps", old_logps), ("advantages", advantages)):
        require_shape(name, array, shape)
    if ref_logps is not None:
        require_shape("ref_logps", ref_logps, shape)
    elif isinstance(kl_weight, (int, float)) and kl_weight != 0:
        raise ValueError("kl_weight needs ref_logps")

    mask = credited_tokens(segment_ids, num_segments, answer)
    segment_ids = jnp.where(mask, segment_ids, PADDING)
    logps = jnp.where(mask, floating(logps), 0)
    old_logps, advantages = (jax.lax.stop_gradient(jnp.where(mask, floating(x), 0)) for x in (old_logps, advantages))

    change = logps - old_logps
    ratios = _ratios(change, mask, segment_ids, ratio, num_segments)
    low, high = 1 - clip_low, 1 + clip_high
    clipped = ((advantages > 0) & (ratios > high)) | ((advantages < 0) & (ratios < low))
    # The minimum of the two terms, written so that a clipped token has exactly no gradient, and no 0 · inf.
    policy = -advantages * jnp.where(clipped, jax.lax.stop_gradient(jnp.clip(ratios, low, high)), ratios)

    weights, count = _weights(mask, segment_ids, aggregation, num_segments, constant, policy.dtype)
    tokens = mask.sum().astype(policy.dtype)
    sums = {"policy_loss": (weights * policy).sum(), "penalty": jnp.zeros_like(tokens)}
    token_sums = {
        "clip_fraction": clipped.sum().astype(policy.dtype),
        "ratio": jnp.where(mask, ratios, 0).sum(),
        "old_kl": _k3(change).sum(),
    }
    if ref_logps is not None:
        divergence = _k3(jax.lax.stop_gradient(jnp.where(mask, floating(ref_logps), 0)) - logps)
        sums["penalty"] = (weights * divergence).sum()
        drawn = jnp.exp(jnp.clip(change, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
        token_sums["kl"] = (drawn * divergence).sum()
    sums, token_sums, count, tokens = all_sum((sums, token_sums, count, tokens), axis_name)
    loss = divide(sums["policy_loss"], count) + kl_weight * divide(sums["penalty"], count)
    metrics = {name: divide(total, tokens) for name, total in token_sums.items()}
    metrics |= {"policy_loss": divide(sums["policy_loss"], count), "count": count, "tokens": tokens}
    return loss, jax.lax.stop_gradient(metrics)


def _ratios(change, mask, segment_ids, ratio, num_segments):
    """ρ [B, T]: the value of its unit's ratio, the gradient of its own token's."""
    if ratio == "token":
        return jnp.exp(jnp.clip(change, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    constant = jax.lax.stop_gradient(change)
    if ratio == "segment":
        unit = spread_segments(segment_means(constant, segment_ids, num_segments), segment_ids, constant)
    else:
        unit = divide(constant.sum(axis=1, keepdims=True), mask.sum(axis=1, keepdims=True).astype(change.dtype))
    return jnp.exp(jnp.clip(unit, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)) * jnp.exp(change - constant)


def _weights(mask, segment_ids, aggregation, num_segments, constant, dtype):
    """Weight of every token [B, T] and the count the weighted sum is divided by."""
    lengths = mask.sum(axis=1, keepdims=True, dtype=jnp.int32)
    chains = (lengths > 0).sum().astype(dtype)
    weights = mask.astype(dtype)
    if aggregation == "token_mean":
        return weights, lengths.sum().astype(dtype)
    if aggregation == "sequence_mean":
        return divide(weights, lengths.astype(dtype)), chains
    if aggregation == "constant":
        return weights / constant, chains
    counts = segment_counts(segment_ids, num_segments)
    structural = lengths - counts.sum(axis=1, keepdims=True)
    kinds = (counts > 0).sum(axis=1, keepdims=True) + (structural > 0)
    sizes = spread_segments(counts, segment_ids, structural)
    return divide(weights, (sizes * kinds).astype(dtype)), chains


def _k3(difference):
    """exp(d) − d − 1 ≥ 0 (Schulman's low-variance estimator of the KL divergence, joschu.net/blog/kl-approx.html)."""
    difference = jnp.clip(difference, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return jnp.expm1(difference) - difference
