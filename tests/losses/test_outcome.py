"""The ranked probability score and its logarithmic counterpart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses.cases import central_difference, compiled, compiled_gradient, float64

from scaletot_jax.losses import ordinal_cross_entropy, rps_outcome

BUCKETS = 7
seeds = st.integers(0, 2**32 - 1)


def distribution(logits):
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


@given(seeds)
def test_rps_equals_its_definition_and_lies_in_the_unit_interval(seed):
    rng = np.random.default_rng(seed)
    logits, bucket = rng.normal(0, 3, (5, BUCKETS)), rng.integers(0, BUCKETS, 5)
    with float64():
        actual = np.asarray(compiled(rps_outcome)(logits, bucket))
    for i, p in enumerate(distribution(logits)):
        score = sum((p[: c + 1].sum() - (bucket[i] <= c)) ** 2 for c in range(BUCKETS - 1)) / (BUCKETS - 1)
        np.testing.assert_allclose(actual[i], 1 - score, atol=1e-12)
    assert (actual >= 0).all() and (actual <= 1).all()


def test_rps_of_certainty_falls_with_the_distance():
    certain = np.where(np.eye(BUCKETS, dtype=bool), 0.0, -np.inf)
    scores = np.asarray(compiled(rps_outcome)(certain, np.full(BUCKETS, 2)))
    np.testing.assert_allclose(scores, 1 - np.abs(np.arange(BUCKETS) - 2) / (BUCKETS - 1), rtol=1e-6)


@given(seeds)
def test_the_calibrated_distribution_has_the_best_mean_score(seed):
    """Strictly proper: no other forecast does as well on average, by score or by cross-entropy."""
    rng = np.random.default_rng(seed)
    truth, other = rng.dirichlet(np.ones(BUCKETS)), rng.dirichlet(np.ones(BUCKETS))
    with float64():
        scores = {
            name: np.asarray(compiled(rps_outcome)(np.tile(np.log(p), (BUCKETS, 1)), np.arange(BUCKETS))) @ truth
            for name, p in {"truth": truth, "other": other}.items()
        }
        losses = {
            name: np.asarray(compiled(ordinal_cross_entropy)(np.tile(np.log(p), (BUCKETS, 1)), np.arange(BUCKETS)))
            @ truth
            for name, p in {"truth": truth, "other": other}.items()
        }
    assert scores["truth"] > scores["other"]
    assert losses["truth"] < losses["other"]


def test_zero_inflation_does_not_reward_always_answering_zero():
    """The reason for a proper score: a sampled answer's absolute error prefers "0 days" here, the score does not."""
    truth = np.array([0.6] + [0.4 / 6] * 6)
    always_zero = np.where(np.arange(BUCKETS) == 0, 0.0, -np.inf)
    function = compiled(rps_outcome)
    calibrated = np.asarray(function(np.tile(np.log(truth), (BUCKETS, 1)), np.arange(BUCKETS))) @ truth
    degenerate = np.asarray(function(np.tile(always_zero, (BUCKETS, 1)), np.arange(BUCKETS))) @ truth
    assert calibrated > degenerate + 0.05
    distance = np.abs(np.arange(BUCKETS)[:, None] - np.arange(BUCKETS)) / (BUCKETS - 1)
    assert 1 - truth @ distance @ truth < 1 - distance[0] @ truth


@given(seeds, st.booleans())
def test_ordinal_cross_entropy_equals_its_definition_and_finite_differences(seed, soft):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3, BUCKETS))
    targets = rng.dirichlet(np.ones(BUCKETS), 3) if soft else rng.integers(0, BUCKETS, 3)
    with float64():
        actual, (_, gradient) = (
            np.asarray(compiled(ordinal_cross_entropy)(logits, targets)),
            compiled_gradient(summed)(logits, targets),
        )
        numeric = central_difference(summed, logits, targets)
    below = np.cumsum(distribution(logits), -1)[:, :-1]
    goal = np.cumsum(targets, -1)[:, :-1] if soft else (targets[:, None] <= np.arange(BUCKETS - 1)).astype(float)
    expected = -(goal * np.log(below) + (1 - goal) * np.log(1 - below)).mean(-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-7)
    np.testing.assert_allclose(gradient, numeric, atol=1e-7)


def summed(logits, targets):
    return ordinal_cross_entropy(logits, targets).sum(), None


def test_masked_and_extreme_buckets_stay_finite():
    logits = np.array([[0.0, 1.0, -np.inf], [-np.inf, 0.0, 0.0], [500.0, -500.0, 0.0]], np.float32)
    (loss, _), gradient = compiled_gradient(summed)(logits, np.array([0, 1, 2]))
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert loss < 1100  # certainty in the wrong bucket is dear, the masked buckets are not


def test_two_buckets_are_binary_cross_entropy():
    logits = np.array([[0.3, -0.7]])
    expected = -np.log(distribution(logits)[0, 0])
    np.testing.assert_allclose(compiled(ordinal_cross_entropy)(logits, np.array([0])), [expected], rtol=1e-6)


def test_precision_ranks_and_misuse():
    assert rps_outcome(jnp.zeros((2, 3, 4), jnp.bfloat16), np.zeros((2, 3), int)).dtype == jnp.float32
    assert jax.eval_shape(ordinal_cross_entropy, jnp.zeros((2, 4), jnp.bfloat16), np.zeros(2, int)).dtype == jnp.float32
    with pytest.raises(ValueError, match="at least two buckets"):
        rps_outcome(np.zeros((2, 1)), np.zeros(2, int))
    with pytest.raises(ValueError, match="bucket must have shape"):
        rps_outcome(np.zeros((2, 3)), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="targets must have shape"):
        ordinal_cross_entropy(np.zeros((2, 3)), np.zeros((2, 4)))
