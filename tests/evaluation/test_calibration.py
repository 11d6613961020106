"""Metrics of calibration and money against closed forms, repeated rows and other implementations."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn import metrics as sk

from scaletot_jax.errors import DataError
from scaletot_jax.evaluation import calibration, metrics
from scaletot_jax.evaluation.predictions import LEVELS

ALL = [
    calibration.bias_ratio, calibration.nrmse, calibration.nmae, calibration.decile_mape, calibration.capture,
    calibration.mutual_gini, calibration.ece,
]  # fmt: skip


def example(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=rows)
    y = np.maximum(0, np.round(2 * latent + rng.normal(size=rows)))
    return y, np.round(1 / (1 + np.exp(-latent - 0.5 * rng.normal(size=rows))), 1)


@pytest.mark.parametrize("metric", ALL, ids=lambda f: f.__name__)
def test_integer_weights_equal_repeated_rows_and_order_does_not_matter(metric):
    y, p = example(rows=60, seed=5)
    rng = np.random.default_rng(2)
    w = rng.integers(0, 4, size=(5, 60))
    order = rng.permutation(60)
    many = metric(y, p, w)
    np.testing.assert_allclose(metric(y[order], p[order], w[:, order]), many, atol=1e-12)
    for row, value in zip(w, many):
        np.testing.assert_allclose(value, metric(np.repeat(y, row), np.repeat(p, row)), atol=1e-12)


def test_ratios_against_scikit_learn():
    y, p = example()
    assert calibration.bias_ratio(y, p) == pytest.approx(p.sum() / y.sum())
    assert calibration.nrmse(y, p) == pytest.approx(sk.root_mean_squared_error(y, p) / y.mean())
    assert calibration.nmae(y, p) == pytest.approx(sk.mean_absolute_error(y, p) / y.mean())


def test_decile_mape_closed_forms():
    y = np.arange(1.0, 101)
    assert calibration.decile_mape(y, y) == pytest.approx(0, abs=1e-12)
    assert calibration.decile_mape(y, 1.25 * y) == pytest.approx(0.25)  # each decile is a quarter too high
    assert calibration.decile_mape(y, np.full(100, y.mean())) == pytest.approx(0, abs=1e-12)  # one tie is one bin
    decile = np.repeat(np.arange(10), 10)
    wrong = y + np.where(decile == 3, 1.0, 0.0)
    assert calibration.decile_mape(y, wrong) == pytest.approx(10 / y.sum())
    zeros = np.r_[np.zeros(50), y[:50]]  # five deciles without a payer divide by nothing
    assert calibration.decile_mape(zeros, zeros + 0.0) == pytest.approx(0, abs=1e-12)
    assert np.isnan(calibration.decile_mape(0 * y, y))


def test_ece_closed_forms():
    p = np.repeat([0.2, 0.6], 50)
    y = np.r_[np.ones(10), np.zeros(40), np.ones(40), np.zeros(10)]
    assert calibration.ece(y, p) == pytest.approx(0.5 * 0 + 0.5 * 0.2)
    assert calibration.ece(5 * y, p) == pytest.approx(0.1)  # the event is y > 0
    rng = np.random.default_rng(0)
    q = rng.random(200_000)
    assert calibration.ece((rng.random(200_000) < q).astype(float), q) < 0.01


def test_capture_is_the_mean_over_orders_of_ties():
    y, p = np.array([4.0, 0, 1, 3, 2]), np.array([2.0, 2, 2, 1, 0])
    orders = [
        calibration.capture(y, p + 1e-3 * np.r_[list(perm), 0, 0], share=0.4)
        for perm in itertools.permutations(range(3))
    ]
    assert calibration.capture(y, p, share=0.4) == pytest.approx(np.mean(orders))
    assert calibration.capture(y, y, share=0.2) == pytest.approx(0.4)
    assert calibration.capture(y, 0 * y, share=0.3) == pytest.approx(0.3)


def test_mutual_gini_is_the_area_between_lorenz_curves():
    y = np.arange(1.0, 101)
    assert calibration.mutual_gini(y, 3 * y) == pytest.approx(0, abs=1e-12)
    # equal predictions: the diagonal, so the area is half the Gini coefficient of the labels
    gini = np.abs(y[:, None] - y[None]).mean() / (2 * y.mean())
    assert calibration.mutual_gini(y, np.ones(100)) == pytest.approx(gini / 2, rel=1e-3)
    assert np.isnan(calibration.mutual_gini(y, -y)) and np.isnan(calibration.mutual_gini(0 * y, y))


def test_crps_of_quantiles_is_that_of_the_integral():
    """A log-normal with mass at zero: CRPS = ∫ (F(x) − 1[x ≥ y])² dx."""
    p, mu, sigma = 0.7, 0.4, 0.6
    levels = np.asarray(LEVELS)
    quantiles = np.where(
        levels < 1 - p, 0, stats.lognorm.ppf(np.clip((levels - 1 + p) / p, 1e-12, 1), sigma, scale=np.exp(mu))
    )
    for y in (0.0, 1.0, 3.0):

        def gap(x, y=y):
            return (1 - p + p * stats.lognorm.cdf(x, sigma, scale=np.exp(mu)) - (x >= y)) ** 2

        exact = integrate.quad(gap, 0, y)[0] + integrate.quad(gap, y, 60)[0]
        found = calibration.quantile_crps_rows(np.array([y]), quantiles[None], levels)[0]
        assert found == pytest.approx(exact, rel=0.02)


def test_gini_as_google_computes_it():
    """Its published code, written out: 2 · mean of the cumulative gain − 1, over that of the perfect order."""
    y, p = example(rows=50, seed=3)

    def raw(score):
        ordered = y[sorted(range(len(y)), key=lambda i: -score[i])]  # stable
        return 2 * (np.cumsum(ordered) / y.sum()).mean() - 1

    assert metrics.normalised_gini(y, p, google_compat=True) == pytest.approx(raw(p) / raw(y))
    swapped = np.argsort(p, kind="stable")[::-1]
    assert metrics.normalised_gini(y[swapped], p[swapped], google_compat=True) != metrics.normalised_gini(
        y, p, google_compat=True
    )
    with pytest.raises(DataError, match="no weights"):
        metrics.normalised_gini(y, p, np.ones(50), google_compat=True)
