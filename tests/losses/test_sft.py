"""Supervised cross-entropy as sums and counts."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses.cases import central_difference, compiled, compiled_gradient, float64

from scaletot_jax.losses import mean_loss, soft_cross_entropy, token_cross_entropy

SHAPE = (3, 5, 4)


def example(seed):
    """Alternatives of a grammar: some do not exist (log-probability −inf, target 0); some tokens do not count."""
    rng = np.random.default_rng(seed)
    exists = rng.random(SHAPE) < 0.7
    exists[..., 0] = True
    targets = np.where(exists, rng.random(SHAPE), 0)
    targets /= targets.sum(-1, keepdims=True)
    logits = np.where(exists, rng.normal(size=SHAPE), -np.inf)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mask = rng.random(SHAPE[:2]) < 0.6
    log_probs[~mask] = rng.choice([np.nan, -np.inf, np.inf])
    return log_probs, np.where(mask[..., None], targets, np.nan), mask


def loss(log_probs, targets, mask):
    return mean_loss(*soft_cross_entropy(log_probs, targets, mask)), None


@given(st.integers(0, 2**32 - 1))
def test_soft_cross_entropy_equals_its_definition(seed):
    log_probs, targets, mask = example(seed)
    total = 0.0
    for i, t in zip(*np.nonzero(mask), strict=True):
        for a in range(SHAPE[2]):
            if targets[i, t, a] > 0:
                total -= targets[i, t, a] * log_probs[i, t, a]
    with float64():
        actual, count = compiled(soft_cross_entropy)(log_probs, targets, mask)
        (mean, _), gradient = compiled_gradient(loss)(log_probs, targets, mask)
    np.testing.assert_allclose(actual, total, atol=1e-12)
    assert float(count) == mask.sum()
    np.testing.assert_allclose(mean, total / max(mask.sum(), 1), atol=1e-12)
    expected = np.where(mask[..., None], -targets, 0) / max(mask.sum(), 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-13)


def test_one_hot_targets_are_token_cross_entropy():
    log_probs, _, mask = example(3)
    chosen = np.zeros(SHAPE[:2], int)
    one_hot = np.eye(SHAPE[2])[chosen]
    soft, hard = (
        compiled(soft_cross_entropy)(log_probs, one_hot, mask),
        compiled(token_cross_entropy)(log_probs[..., 0], mask),
    )
    np.testing.assert_allclose(soft, hard, rtol=1e-6)


def test_weights_count_as_weights():
    logps = np.log(np.array([[0.5, 0.25]]))
    total, count = token_cross_entropy(logps, np.array([[1.0, 3.0]]))
    np.testing.assert_allclose(mean_loss(total, count), (np.log(2) + 3 * np.log(4)) / 4, rtol=1e-6)


def test_gradient_equals_finite_differences():
    log_probs, targets, mask = example(5)
    clean = np.where(np.isfinite(log_probs), log_probs, -3.0)
    with float64():
        _, gradient = compiled_gradient(loss)(clean, targets, mask)
        numeric = central_difference(loss, clean, targets, mask)
    np.testing.assert_allclose(gradient, numeric, atol=1e-9)


def test_nothing_to_learn_costs_nothing():
    _, targets, mask = example(7)
    (value, _), gradient = compiled_gradient(loss)(np.full(SHAPE, np.nan), targets, np.zeros_like(mask))
    assert value == 0 and not np.asarray(gradient).any()


def test_precision_and_misuse():
    total, count = soft_cross_entropy(jnp.zeros(SHAPE, jnp.bfloat16), np.zeros(SHAPE), np.ones(SHAPE[:2], bool))
    assert total.dtype == count.dtype == jnp.float32
    with pytest.raises(ValueError, match="mask must have shape"):
        soft_cross_entropy(np.zeros(SHAPE), np.zeros(SHAPE), np.ones(SHAPE))
    with pytest.raises(ValueError, match="targets must have shape"):
        soft_cross_entropy(np.zeros(SHAPE), np.zeros(SHAPE[:2]), np.ones(SHAPE[:2]))
    with pytest.raises(ValueError, match="logps must have shape"):
        token_cross_entropy(np.zeros(3), np.ones(3))
