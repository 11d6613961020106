"""Pooled labels and the expected outcome, against loops, closed forms and the outcome itself."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses.cases import central_difference, compiled, compiled_gradient, float64
from losses.test_sharding import ROWS, mesh_of

from scaletot_jax.losses import expected_rps_outcome, pooled_targets, rps_outcome

BUCKETS, PROFILES, USERS = 4, 6, 24
SIZES = dict(num_buckets=BUCKETS, num_profiles=PROFILES)
seeds = st.integers(0, 2**32 - 1)


def population(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(-1, BUCKETS, USERS), rng.integers(0, PROFILES, USERS)  # −1: no label


def expected_concentration(buckets, profiles):
    """By looking at every pair of labelled users."""
    pairs = [(i, j) for i in range(USERS) for j in range(i) if buckets[i] >= 0 and buckets[j] >= 0]
    within = [abs(buckets[i] - buckets[j]) for i, j in pairs if profiles[i] == profiles[j]]
    anybody = [abs(buckets[i] - buckets[j]) for i, j in pairs]
    if not within or np.mean(within) >= np.mean(anybody):
        return 1e6
    return min(np.mean(within) / (np.mean(anybody) - np.mean(within)), 1e6)


@given(seeds, st.sampled_from([None, 0.0, 2.5]))
def test_targets_equal_the_loop_reference(seed, alpha):
    buckets, profiles = population(seed)
    with float64():
        function = compiled(pooled_targets, **SIZES)
        actual, used = (
            function(buckets, profiles) if alpha is None else function(buckets, profiles, concentration=alpha)
        )
    alpha = expected_concentration(buckets, profiles) if alpha is None else alpha
    np.testing.assert_allclose(used, alpha, rtol=1e-9)
    shares = np.array([np.mean(buckets[buckets >= 0] == b) for b in range(BUCKETS)])
    for u in range(USERS):
        mine = buckets[(profiles == profiles[u]) & (buckets >= 0)]
        if len(mine) + alpha == 0:
            np.testing.assert_allclose(actual[u], shares)
        else:
            counts = np.array([(mine == b).sum() for b in range(BUCKETS)])
            np.testing.assert_allclose(actual[u], (counts + alpha * shares) / (len(mine) + alpha), atol=1e-12)
    np.testing.assert_allclose(np.asarray(actual).sum(1), 1)


@pytest.mark.parametrize("alpha", [0.5, 4.0])
def test_the_concentration_of_a_dirichlet_is_found(alpha):
    rng = np.random.default_rng(1)
    chances = rng.dirichlet(alpha * np.array([0.6, 0.1, 0.1, 0.2]), 400)
    profiles = np.repeat(np.arange(400), 12)
    buckets = np.array([rng.choice(BUCKETS, p=chances[p]) for p in profiles])
    _, found = pooled_targets(buckets, profiles, num_buckets=BUCKETS, num_profiles=400)
    assert 0.8 * alpha < float(found) < 1.25 * alpha


def test_pooled_targets_are_nearer_to_the_truth_than_labels_and_than_the_population():
    rng = np.random.default_rng(2)
    chances = rng.dirichlet(np.full(BUCKETS, 0.7), 60)
    profiles = rng.integers(0, 60, 400)
    buckets = np.array([rng.choice(BUCKETS, p=chances[p]) for p in profiles])
    pooled, _ = pooled_targets(buckets, profiles, num_buckets=BUCKETS, num_profiles=60)
    far, _ = pooled_targets(buckets, profiles, num_buckets=BUCKETS, num_profiles=60, concentration=1e6)
    error = [np.mean((np.asarray(q) - chances[profiles]) ** 2) for q in (pooled, far, np.eye(BUCKETS)[buckets])]
    assert error[0] < 0.7 * error[1] and error[0] < 0.3 * error[2]


def test_without_equal_profiles_or_with_equal_labels_only_the_population_is_left():
    alone, alpha = pooled_targets(np.arange(4), np.arange(4), num_buckets=4, num_profiles=4)
    np.testing.assert_allclose(alone, 0.25, atol=1e-5)
    assert float(alpha) == 1e6
    same, _ = pooled_targets(np.full(4, 2), np.array([0, 0, 1, 1]), num_buckets=4, num_profiles=2)
    np.testing.assert_allclose(same, np.eye(4)[[2] * 4], atol=1e-6)


def test_users_may_lie_across_devices():
    buckets, profiles = population(5)
    parallel = jax.shard_map(
        lambda *x: pooled_targets(*x, axis_name="data", **SIZES)[0],
        mesh=mesh_of(), in_specs=(ROWS, ROWS), out_specs=ROWS,
    )  # fmt: skip
    one, _ = compiled(pooled_targets, **SIZES)(buckets, profiles)
    np.testing.assert_allclose(jax.jit(parallel)(buckets, profiles), one, rtol=1e-6)


@given(seeds)
def test_the_expected_outcome_is_the_mean_of_the_outcome(seed):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(0, 3, (5, BUCKETS)), rng.dirichlet(np.full(BUCKETS, 0.4), 5)
    with float64():
        actual = compiled(expected_rps_outcome)(logits, targets)
        each = [compiled(rps_outcome)(logits, np.full(5, b)) for b in range(BUCKETS)]
        np.testing.assert_allclose(actual, (np.stack(each, 1) * targets).sum(1), atol=1e-12)
        certain = compiled(expected_rps_outcome)(logits, np.eye(BUCKETS)[[2] * 5])
        np.testing.assert_allclose(certain, each[2], atol=1e-12)


def test_gradient_and_masked_buckets():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(1, BUCKETS)), rng.dirichlet(np.ones(BUCKETS), 1)
    with float64():
        loss = compiled_gradient(first, targets=tuple(targets[0]))
        (_, _), gradient = loss(logits)
        np.testing.assert_allclose(gradient, central_difference(first, logits, targets=tuple(targets[0])), atol=1e-8)
    masked = expected_rps_outcome(np.array([[0.0, -np.inf, -np.inf, -np.inf]]), np.array([[0.0, 0, 0, 1]]))
    assert float(masked[0]) == 0.0


def first(logits, targets):
    return expected_rps_outcome(logits, np.array([targets]))[0], {}


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="targets must have shape"):
        expected_rps_outcome(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="at least two buckets"):
        expected_rps_outcome(np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="profile_ids must have shape"):
        pooled_targets(np.zeros(3, int), np.zeros(2, int), num_buckets=2, num_profiles=1)
    with pytest.raises(ValueError, match="at least two buckets and one profile"):
        pooled_targets(np.zeros(3, int), np.zeros(3, int), num_buckets=1, num_profiles=1)
