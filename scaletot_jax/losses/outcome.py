"""The outcome of a chain, and the supervised loss of its answer: both score the distribution over ordered buckets."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import floating, require_shape

# Stands for −inf, so that a bucket that is masked out has a finite, huge loss instead of 0 · inf.
_LOWEST_LOGIT = -1e4


def rps_outcome(bucket_logits: jax.Array, bucket: jax.Array) -> jax.Array:
    """One minus the ranked probability score of the answer's distribution.

        U_i = 1 − 1/(K_b−1) · Σ_{c<K_b−1} ( F_i(c) − 1[b_i ≤ c] )²,    F_i(c) = Σ_{b≤c} softmax(logits_i)_b

    1 for certainty in the right bucket, 0 for certainty at the far end of the scale. The score is strictly proper: its
    mean is largest for the calibrated distribution. The reward 1 − |b̂ − b|/(K_b−1) of a sampled answer is not; with 60 %
    zeros it is largest for always answering "none".

    >>> rps_outcome(jnp.array([[0.0, -jnp.inf, -jnp.inf], [0.0, 0.0, -jnp.inf]]), jnp.array([2, 1])).tolist()
    [0.0, 0.875]

    Args:
      bucket_logits: [..., K_b], K_b ≥ 2 ordered buckets; log-probabilities will do. Masked buckets may be −inf.
      bucket: int [...], the true bucket, in 0..K_b−1.

    Returns:
      U in [0, 1], float32 (float64 stays), [...]. Gradients flow.

    Raises:
      ValueError: fewer than two buckets, or shapes that disagree.

    Source: Epstein (1969), "A scoring system for probability forecasts of ranked categories".
    """
    logits = _check(bucket_logits)
    require_shape("bucket", bucket, logits.shape[:-1])
    buckets = logits.shape[-1]
    cumulative = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)[..., :-1]
    target = jnp.arange(buckets - 1) >= jnp.asarray(bucket)[..., None]
    return 1 - jnp.sum((cumulative - target) ** 2, axis=-1) / (buckets - 1)


def ordinal_cross_entropy(bucket_logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Logarithmic counterpart of the ranked probability score, for training the answer.

        L_i = −1/(K_b−1) · Σ_{c<K_b−1} [ G_i(c) log F_i(c) + (1 − G_i(c)) log(1 − F_i(c)) ]

    with F the predicted and G the target's cumulative distribution (G(c) = 1[b ≤ c] for a hard label): the mean binary
    cross-entropy of the events "at most bucket c", where the ranked probability score is their mean squared error. It is
    strictly proper, so minimised by the same distributions F = G that maximise :func:`rps_outcome`, and like it charges
    a miss by its distance; plain cross-entropy does not know that bucket 3 is nearer to 4 than 0 is.

    >>> print(ordinal_cross_entropy(jnp.zeros((1, 2)), jnp.array([1])))
    [0.6931472]

    Args:
      bucket_logits: [..., K_b], K_b ≥ 2 ordered buckets.
      targets: int [...] true buckets in 0..K_b−1, or float [..., K_b] target distributions.

    Returns:
      Loss in nats [...], one an example: mask and average outside, dividing once.

    Raises:
      ValueError: fewer than two buckets, or shapes that disagree.
    """
    logits = jnp.maximum(_check(bucket_logits), _LOWEST_LOGIT)
    buckets = logits.shape[-1]
    if jnp.ndim(targets) == logits.ndim:
        require_shape("targets", targets, logits.shape)
        at_most = jnp.cumsum(floating(targets), axis=-1)[..., :-1]
    else:
        require_shape("targets", targets, logits.shape[:-1])
        at_most = (jnp.arange(buckets - 1) >= jnp.asarray(targets)[..., None]).astype(logits.dtype)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    axis = logits.ndim - 1
    log_below = jax.lax.cumlogsumexp(log_probs, axis=axis)[..., :-1]
    log_above = jax.lax.cumlogsumexp(log_probs, axis=axis, reverse=True)[..., 1:]
    return -jnp.mean(at_most * log_below + (1 - at_most) * log_above, axis=-1)


def _check(bucket_logits: jax.Array) -> jax.Array:
    logits = floating(bucket_logits)
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(f"bucket_logits must end in at least two buckets, not shape {list(logits.shape)}")
    return logits
