"""Labels with less noise: users with the same canonical profile share what happened to them.

No chain can explain why one of two users with equal profiles stayed and the other left. A reward read from one user's
label carries that noise into every rollout of the user, where no baseline within the group removes it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import all_sum, divide, floating, require_shape
from scaletot_jax.losses.groups import AxisName

# What the concentration is bounded by: beyond, a profile says nothing that could be told from nothing.
_MAX_CONCENTRATION = 1e6


def pooled_targets(
    buckets: jax.Array,
    profile_ids: jax.Array,
    *,
    num_buckets: int,
    num_profiles: int,
    concentration: float | jax.Array | None = None,
    axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
    """Each user's label as a distribution: the labels of equal profiles, shrunk towards those of the population.

        q_u(b) = ( n_p(b) + α m(b) ) / ( N_p + α ),   p the profile of u, n_p its N_p labels, m the population's shares

    the posterior mean under a Dirichlet prior of concentration α. Since the expected outcome is linear in the target
    (:func:`~scaletot_jax.losses.expected_rps_outcome`), this is the mean outcome of equal profiles, shrunk towards the
    population's expected outcome given the predicted distribution. α → 0 trusts a profile's own labels alone, α → ∞ only
    the population. Without ``concentration`` it is estimated from how much closer two labels of one profile are than two
    of anybody, in the distance the ranked probability score is made of:

        α = D_within / (D_all − D_within),   D = mean of |b − b'| over pairs of users (for a Dirichlet D_within/D_all = α/(α+1))

    Use the labels of the training split alone, once, before training: a user's own label is in his target.

    >>> targets, alpha = pooled_targets(jnp.array([0, 2, 2]), jnp.array([0, 0, 1]), num_buckets=3, num_profiles=2, concentration=0.0)
    >>> targets.tolist()
    [[0.5, 0.0, 0.5], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]

    Args:
      buckets: b, int [U], one a user, in 0..num_buckets−1; any other value: no label (the user still gets a target).
      profile_ids: int [U], the number of the user's canonical profile in 0..num_profiles−1, e.g. the inverse of
        ``numpy.unique``.
      num_buckets: K_b ≥ 2. num_profiles: P. Python ints.
      concentration: α ≥ 0, in labels; None: estimated, between 0 and 10⁶ (the latter where profiles explain nothing, or
        no two users share one).
      axis_name: mapped axis of ``jax.shard_map`` the users are split over; counts are then global.

    Returns:
      q [U, K_b], float32 (a profile without any label, with α = 0, gets the population's shares), and α.

    Raises:
      ValueError: shapes that disagree, fewer than two buckets or one profile.
    """
    require_shape("buckets", buckets, ("U",))
    require_shape("profile_ids", profile_ids, jnp.shape(buckets))
    if num_buckets < 2 or num_profiles < 1:
        raise ValueError(f"needs at least two buckets and one profile, not {num_buckets} and {num_profiles}")
    labels = jax.nn.one_hot(buckets, num_buckets)  # a row of zeros outside the range
    counts = all_sum(jax.ops.segment_sum(labels, profile_ids, num_profiles), axis_name)  # [P, K_b]
    if concentration is None:
        concentration = _concentration(counts)
    everybody = counts.sum(axis=0)
    shares = divide(everybody, everybody.sum())
    known = counts.sum(axis=1, keepdims=True)
    alpha = jnp.asarray(concentration, counts.dtype)
    posterior = divide(counts + alpha * shares, known + alpha)
    posterior = jnp.where(known + alpha > 0, posterior, shares)
    return posterior[jnp.asarray(profile_ids)], alpha


def _concentration(counts: jax.Array) -> jax.Array:
    """α from the counts [P, K_b] of each profile's labels."""

    def distances(counts):
        """Σ |b − b'| over unordered pairs, Σ_c C_c (N − C_c), and the number of pairs."""
        below = jnp.cumsum(counts, axis=-1)[..., :-1]
        number = counts.sum(axis=-1)
        return (below * (number[..., None] - below)).sum(), (number * (number - 1)).sum() / 2

    within, within_pairs = distances(counts)
    anybody, pairs = distances(counts.sum(axis=0))
    same, other = divide(within, within_pairs), divide(anybody, pairs)
    alpha = same / jnp.maximum(other - same, 1e-12)
    return jnp.where((within_pairs > 0) & (other > same), jnp.clip(alpha, 0, _MAX_CONCENTRATION), _MAX_CONCENTRATION)


def expected_rps_outcome(bucket_logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The outcome :func:`~scaletot_jax.losses.rps_outcome` of a chain, averaged over a distribution of true buckets.

        Ū_i = Σ_b q_ib U_i(b) = 1 − 1/(K_b−1) · Σ_c [ (F_i(c) − G_i(c))² + G_i(c) (1 − G_i(c)) ],   G the cumulative q

    The second term is the same for all chains of a user: between them only the squared distance to q counts.

    >>> logits = jnp.log(jnp.array([[0.5, 0.5]]))
    >>> expected_rps_outcome(logits, jnp.array([[0.5, 0.5]])).tolist()
    [0.75]

    Args:
      bucket_logits: [..., K_b], K_b ≥ 2 ordered buckets. Masked buckets may be −inf.
      targets: q [..., K_b], each row summing to 1; one-hot rows give ``rps_outcome``.

    Returns:
      Ū in [0, 1], [...]. Gradients flow.

    Raises:
      ValueError: fewer than two buckets, or shapes that disagree.
    """
    logits = floating(bucket_logits)
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(f"bucket_logits must end in at least two buckets, not shape {list(logits.shape)}")
    require_shape("targets", targets, logits.shape)
    forecast = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)[..., :-1]
    truth = jnp.cumsum(floating(targets), axis=-1)[..., :-1]
    return 1 - jnp.mean((forecast - truth) ** 2 + truth * (1 - truth), axis=-1)
