"""Typed segments of a response, as an integer label for every token.

``segment_ids`` [B, T] int32 says what each position is:

====== ============================================================
0..K−1 content of that typed segment
−1     structural: delimiters, end of text, an unparsed tail
−2     the answer
−3     padding, and everything that is no response (the prompt)
====== ============================================================

Positions of one segment need not be adjacent. Any other label (below −3, K or above) counts as padding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import divide, floating, require_choice, require_segments, require_shape

STRUCTURAL = -1
ANSWER = -2
PADDING = -3


def segment_mask(segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Membership of every token in every typed segment, m_itk = 1[seg_it = k].

    Args:
      segment_ids: int32 [B, T].
      num_segments: K.

    Returns:
      bool [B, T, K].

    Raises:
      ValueError: ``segment_ids`` is not of rank 2, or ``num_segments`` is no positive int.
    """
    require_segments(num_segments)
    require_shape("segment_ids", segment_ids, ("B", "T"))
    return jnp.asarray(segment_ids)[..., None] == jnp.arange(num_segments)


def segment_counts(segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Number of tokens of each typed segment, n_ik = Σ_t 1[seg_it = k], int32 [B, K]."""
    return segment_mask(segment_ids, num_segments).sum(axis=1, dtype=jnp.int32)


def segment_sums(values: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Sum of ``values`` over each typed segment, Σ_{t: seg_it = k} x_it.

    >>> segment_sums(jnp.array([[1.0, 2.0, 4.0, jnp.nan]]), jnp.array([[0, 0, 1, -3]]), 2).tolist()
    [[3.0, 4.0]]

    Args:
      values: [B, T]; NaN and infinity outside the segments do not enter, forward or backward.
      segment_ids: int32 [B, T].
      num_segments: K.

    Returns:
      float [B, K]; 0 for a segment without tokens.
    """
    mask = segment_mask(segment_ids, num_segments)
    require_shape("values", values, mask.shape[:2])
    return jnp.where(mask, floating(values)[..., None], 0).sum(axis=1)


def segment_means(values: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Mean of ``values`` over each typed segment, float [B, K]; 0 for a segment without tokens."""
    sums = segment_sums(values, segment_ids, num_segments)
    return divide(sums, segment_counts(segment_ids, num_segments).astype(sums.dtype))


def spread_segments(per_segment: jax.Array, segment_ids: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Gives every content token its segment's number, and every other token ``otherwise``.

    Args:
      per_segment: [B, K].
      segment_ids: int32 [B, T].
      otherwise: broadcastable to [B, T].

    Returns:
      [B, T].
    """
    num_segments = per_segment.shape[1]
    segment_ids = jnp.asarray(segment_ids)
    content = (segment_ids >= 0) & (segment_ids < num_segments)
    token_values = jnp.take_along_axis(per_segment, jnp.clip(segment_ids, 0, num_segments - 1), axis=1)
    return jnp.where(content, token_values, otherwise)


def response_tokens(segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Tokens the policy emitted (content, structural, answer), bool [B, T]."""
    segment_ids = jnp.asarray(segment_ids)
    return (segment_ids >= ANSWER) & (segment_ids < num_segments)


def credited_tokens(segment_ids: jax.Array, num_segments: int, answer: str = "zero") -> jax.Array:
    """Tokens that take part in the policy gradient, and in every denominator of it.

    Left out by design are padding, whatever follows the answer (it cannot have changed the outcome), and with
    ``answer="zero"`` the answer itself: an outcome read from the answer's *distribution* does not depend on which
    answer was sampled, so a policy gradient through that token would be noise.

    >>> credited_tokens(jnp.array([[-3, 0, -1, 1, -2, -1]]), 2).astype(int).tolist()
    [[0, 1, 1, 1, 0, 0]]

    Args:
      segment_ids: int32 [B, T].
      num_segments: K.
      answer: ``"zero"``, or ``"outcome"`` where the outcome was read from the sampled answer.

    Returns:
      bool [B, T].

    Raises:
      ValueError: unknown ``answer``, or ``segment_ids`` is not of rank 2.
    """
    require_choice("answer", answer, ("zero", "outcome"))
    require_segments(num_segments)
    require_shape("segment_ids", segment_ids, ("B", "T"))
    is_answer = jnp.asarray(segment_ids) == ANSWER
    reached = jnp.cumsum(is_answer, axis=1) > 0
    kept = ~reached if answer == "zero" else ~reached | is_answer
    return response_tokens(segment_ids, num_segments) & kept
