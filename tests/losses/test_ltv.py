"""Distributions of days and of money: against enumeration, torch's log-normal, and simulation."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses.cases import central_difference, compiled, compiled_gradient, float64
from losses.reference import sigmoid

from scaletot_jax.losses import hurdle_distribution, hurdle_mean, hurdle_nll, ziln_mean, ziln_nll

seeds = st.integers(0, 2**32 - 1)


def enumerated(logits):
    """P(y = 0..H) of one user, day by day."""
    active, *hazards = [sigmoid(x) for x in logits]
    probabilities, reached = [1 - active], active
    for hazard in [*hazards, 1.0]:
        probabilities.append(reached * hazard)
        reached *= 1 - hazard
    return np.array(probabilities)


@given(seeds, st.sampled_from([1, 2, 30]))
def test_hurdle_equals_enumeration(seed, horizon):
    rng = np.random.default_rng(seed)
    logits, days = rng.normal(0, 2, (4, horizon)), rng.integers(0, horizon + 1, 4)
    with float64():
        loss = np.asarray(compiled(hurdle_nll)(logits, days))
        distribution = np.asarray(compiled(hurdle_distribution)(logits))
        mean = np.asarray(compiled(hurdle_mean)(logits))
    for i in range(4):
        expected = enumerated(logits[i])
        np.testing.assert_allclose(distribution[i], expected, rtol=1e-9, atol=1e-300)
        np.testing.assert_allclose(distribution[i].sum(), 1, atol=1e-12)
        np.testing.assert_allclose(mean[i], expected @ np.arange(horizon + 1), rtol=1e-10)
        np.testing.assert_allclose(loss[i], -np.log(expected[days[i]]), rtol=1e-8)


def test_hurdle_fits_any_distribution():
    """H logits reach every distribution on 0..H: solve for the logits of a given one, and find it again."""
    target = np.random.default_rng(1).dirichlet(np.ones(31))
    tail = target[::-1].cumsum()[::-1]  # P(y ≥ j)
    probabilities = np.concatenate([[tail[1]], target[1:-1] / tail[1:-1]])
    logits = np.log(probabilities) - np.log1p(-probabilities)
    with float64():
        np.testing.assert_allclose(compiled(hurdle_distribution)(logits), target, rtol=1e-9)


def test_gradients_equal_finite_differences():
    rng = np.random.default_rng(2)
    with float64():
        logits, days = rng.normal(0, 2, (5, 6)), rng.integers(0, 7, 5)
        _, gradient = compiled_gradient(total_hurdle)(logits, days)
        np.testing.assert_allclose(gradient, central_difference(total_hurdle, logits, days), atol=1e-7)
        logits, value = rng.normal(0, 1, (5, 3)), np.array([0.0, 0.0, 0.01, 3.0, 900.0])
        _, gradient = compiled_gradient(total_ziln)(logits, value)
        np.testing.assert_allclose(gradient, central_difference(total_ziln, logits, value), rtol=1e-5, atol=1e-6)


def total_hurdle(logits, days):
    return hurdle_nll(logits, days).sum(), None


def total_ziln(logits, value):
    return ziln_nll(logits, value).sum(), None


@given(seeds)
def test_ziln_equals_the_published_formula(seed):
    """Bernoulli times log-normal, the density from torch."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    logits, value = rng.normal(0, 1, (6, 3)), np.where(rng.random(6) < 0.5, 0, rng.lognormal(1, 1, 6))
    with float64():
        loss, mean = np.asarray(compiled(ziln_nll)(logits, value)), np.asarray(compiled(ziln_mean)(logits))
    p, sigma = sigmoid(logits[:, 0]), np.log1p(np.exp(logits[:, 2]))
    normal = torch.distributions.LogNormal(torch.tensor(logits[:, 1]), torch.tensor(sigma))
    density = normal.log_prob(torch.tensor(np.where(value > 0, value, 1))).numpy()
    np.testing.assert_allclose(loss, np.where(value > 0, -np.log(p) - density, -np.log(1 - p)), rtol=1e-9)
    np.testing.assert_allclose(mean, p * normal.mean.numpy(), rtol=1e-9)


def test_ziln_density_integrates_to_the_probability_of_paying():
    """Over y > 0, on a logarithmic grid: ∫ p(y) dy = σ(l_0), ∫ y p(y) dy = the mean."""
    logits = np.array([0.4, 0.8, -0.2])
    log_value = np.linspace(-12, 14, 4001)
    value = np.exp(log_value)
    with float64():
        density = np.exp(-np.asarray(compiled(ziln_nll)(np.tile(logits, (4001, 1)), value)))
        mean = float(compiled(ziln_mean)(logits))
    step = log_value[1] - log_value[0]
    np.testing.assert_allclose((density * value).sum() * step, sigmoid(0.4), rtol=1e-9)
    np.testing.assert_allclose((density * value**2).sum() * step, mean, rtol=1e-9)


def test_ziln_caps_and_extremes_stay_finite():
    logits = np.array([[0.0, 0.0, 50.0], [0.0, 900.0, 0.0], [800.0, -800.0, -800.0]], np.float32)
    mean = np.asarray(compiled(ziln_mean)(logits))
    np.testing.assert_allclose(mean, [0.5 * np.exp(12.5), 0.5 * np.exp(20.0), 0.0], rtol=1e-5)
    for value in (0.0, 1e-30, 1e30):
        (loss, _), gradient = compiled_gradient(total_ziln)(np.zeros((1, 3), np.float32), np.array([value], np.float32))
        assert np.isfinite(loss) and np.isfinite(gradient).all()
    (_, _), gradient = compiled_gradient(total_ziln)(logits, np.zeros(3, np.float32))
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[:, 1:].any()
    wide = np.array([[0.0, 0.0, 8.0]], np.float32)
    _, gradient = compiled_gradient(total_ziln)(wide, np.ones(1, np.float32))
    assert gradient[0, 2] > 0  # a σ beyond the cap of the mean is still pulled back


def test_labels_that_cannot_be_are_heard():
    logits = np.zeros((3, 4))
    np.testing.assert_array_equal(np.isnan(compiled(hurdle_nll)(logits, np.array([-1, 5, 4]))), [True, True, False])
    np.testing.assert_array_equal(
        np.isnan(compiled(ziln_nll)(np.zeros((3, 3)), np.array([-1.0, np.nan, 0.0]))), [True, True, False]
    )


def test_precision_and_misuse():
    assert hurdle_nll(jnp.zeros((2, 3), jnp.bfloat16), np.zeros(2, int)).dtype == jnp.float32
    assert ziln_nll(jnp.zeros((2, 3), jnp.bfloat16), jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="days must have shape"):
        hurdle_nll(np.zeros((2, 3)), np.zeros(3, int))
    with pytest.raises(ValueError, match="logits must have shape"):
        ziln_mean(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="logits must have shape"):
        hurdle_mean(np.zeros((2, 0)))
