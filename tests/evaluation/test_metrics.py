"""Metrics against scipy, scikit-learn, closed forms and their own invariances."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn import metrics as sk

from scaletot_jax.errors import DataError
from scaletot_jax.evaluation import metrics

small = st.integers(0, 5).map(float)


@st.composite
def tables(draw):
    rows = draw(st.integers(2, 30))
    column = hnp.arrays(np.float64, rows, elements=small)
    return draw(column), draw(column)


def example(rows=400, seed=0, levels=9):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=rows)
    y = np.maximum(0, np.round(2 * latent + rng.normal(size=rows)))
    return y, np.round((latent + 0.5 * rng.normal(size=rows)) * levels) / levels


def test_against_scipy_and_sklearn():
    y, p = example()
    assert len(np.unique(p)) < len(p) / 2, "the example must have ties"
    np.testing.assert_allclose(metrics.spearman(y, p), stats.spearmanr(y, p).statistic, atol=1e-12)
    np.testing.assert_allclose(metrics.auc(y, p), sk.roc_auc_score(y > 0, p), atol=1e-12)
    np.testing.assert_allclose(metrics.auc(y, p, threshold=2), sk.roc_auc_score(y > 2, p), atol=1e-12)
    np.testing.assert_allclose(metrics.rmse(y, p), sk.root_mean_squared_error(y, p), atol=1e-12)
    np.testing.assert_allclose(metrics.mae(y, p), sk.mean_absolute_error(y, p), atol=1e-12)
    np.testing.assert_allclose(metrics.r2(y, p), sk.r2_score(y, p), atol=1e-12)
    np.testing.assert_allclose(metrics.ambe(y, p), abs(p.mean() - y.mean()), atol=1e-12)


def test_real_weights_against_sklearn():
    y, p = example(seed=3)
    w = np.random.default_rng(1).random(len(y))
    np.testing.assert_allclose(metrics.auc(y, p, w), sk.roc_auc_score(y > 0, p, sample_weight=w), atol=1e-12)
    np.testing.assert_allclose(metrics.r2(y, p, w), sk.r2_score(y, p, sample_weight=w), atol=1e-12)
    np.testing.assert_allclose(metrics.rmse(y, p, w), sk.root_mean_squared_error(y, p, sample_weight=w), atol=1e-12)


ALL = [metrics.spearman, metrics.auc, metrics.normalised_gini, metrics.rmse, metrics.mae, metrics.ambe, metrics.r2]


@pytest.mark.parametrize("metric", ALL, ids=lambda f: f.__name__)
def test_integer_weights_equal_repeated_rows(metric):
    y, p = example(rows=60, seed=5)
    w = np.random.default_rng(2).integers(0, 4, size=(7, 60))
    many = metric(y, p, w)
    assert many.shape == (7,)
    for row, value in zip(w, many):
        np.testing.assert_allclose(value, metric(np.repeat(y, row), np.repeat(p, row)), atol=1e-12)


def test_gini_covariance_form_and_tie_average():
    """G = 2 cov(y, F(ŷ))/mean(y) in general; with ties, the mean over every order of the tied rows."""
    y, p = example(rows=50, seed=7)

    def raw(score):
        return 2 * np.cov(y, stats.rankdata(score) / len(y), bias=True)[0, 1] / y.mean()

    np.testing.assert_allclose(metrics.normalised_gini(y, p), raw(p) / raw(y), atol=1e-12)
    y, p = np.array([4.0, 0.0, 1.0, 3.0]), np.array([2.0, 2.0, 2.0, 1.0])
    orders = [metrics.normalised_gini(y, p + 1e-3 * np.r_[list(perm), 0]) for perm in itertools.permutations(range(3))]
    np.testing.assert_allclose(metrics.normalised_gini(y, p), np.mean(orders), atol=1e-12)


def test_gini_known_values():
    y = np.array([0.0, 0.0, 0.0, 1.0])
    assert metrics.normalised_gini(y, y) == pytest.approx(1)
    assert metrics.normalised_gini(y, -y) == pytest.approx(-1)
    assert metrics.normalised_gini(y, np.zeros(4)) == pytest.approx(0)


def test_gini_of_a_binary_label_is_two_auc_minus_one():
    y, p = example(seed=11)
    y = (y > 0).astype(float)
    np.testing.assert_allclose(metrics.normalised_gini(y, p), 2 * metrics.auc(y, p) - 1, atol=1e-12)


def test_rps_closed_forms():
    certain = np.eye(4)
    np.testing.assert_allclose(metrics.rps_rows(np.arange(4), certain), 0)
    np.testing.assert_allclose(metrics.rps_rows([3], certain[:1]), 1)
    np.testing.assert_allclose(metrics.rps_rows([1], certain[:1]), 1 / 3)
    half = np.array([[0.5, 0.5]])
    np.testing.assert_allclose(metrics.rps_rows([0], half), sk.brier_score_loss([0], [0.5]))
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), size=20)
    y = rng.integers(0, 5, 20)
    slow = [sum((p[i, : c + 1].sum() - (y[i] <= c)) ** 2 for c in range(4)) / 4 for i in range(20)]
    np.testing.assert_allclose(metrics.rps_rows(y, p), slow, atol=1e-12)
    np.testing.assert_allclose(metrics.rps(y, p), np.mean(slow), atol=1e-12)
    w = rng.integers(1, 4, 20)
    np.testing.assert_allclose(metrics.rps(y, p, w), np.average(slow, weights=w), atol=1e-12)


@given(hnp.arrays(np.float64, 4, elements=st.floats(0.01, 1)), hnp.arrays(np.float64, 4, elements=st.floats(0.01, 1)))
def test_rps_is_proper(truth, other):
    """The expected score under a distribution is least when that very distribution is predicted."""
    truth, other = truth / truth.sum(), other / other.sum()

    def expected(p):
        return truth @ metrics.rps_rows(np.arange(4), np.tile(p, (4, 1)))

    assert expected(truth) <= expected(other) + 1e-12


RANKING = [metrics.spearman, metrics.auc, metrics.normalised_gini]


@given(tables(), st.randoms(use_true_random=False))
def test_invariances(table, random):
    y, p = table
    order = list(range(len(y)))
    random.shuffle(order)
    for metric in ALL:
        np.testing.assert_allclose(metric(y[order], p[order]), metric(y, p), atol=1e-10)
    for metric in RANKING:
        value = metric(y, p)
        np.testing.assert_allclose(metric(y, np.exp(p) * 3 - 7), value, atol=1e-10)
        assert np.isnan(value) or -1 - 1e-12 <= value <= 1 + 1e-12
        np.testing.assert_allclose(
            metric(y, np.full_like(p, 2.0)), np.nan if np.isnan(metric(y, y)) else _chance(metric)
        )
    np.testing.assert_allclose(metrics.auc(y, -p), 1 - metrics.auc(y, p), atol=1e-12)
    np.testing.assert_allclose(metrics.normalised_gini(y, -p), -metrics.normalised_gini(y, p), atol=1e-10)


def _chance(metric):
    return {"spearman": np.nan, "auc": 0.5, "normalised_gini": 0.0}[metric.__name__]


@given(tables())
def test_spearman_against_scipy(table):
    y, p = table
    if len(np.unique(y)) > 1 and len(np.unique(p)) > 1:
        np.testing.assert_allclose(metrics.spearman(y, p), stats.spearmanr(y, p).statistic, atol=1e-10)
    else:
        assert np.isnan(metrics.spearman(y, p))


def test_undefined_is_nan_not_zero():
    ones = np.ones(5)
    p = np.arange(5.0)
    assert np.isnan(metrics.spearman(ones, p)) and np.isnan(metrics.spearman(p, ones))
    assert np.isnan(metrics.auc(ones, p)) and np.isnan(metrics.auc(0 * ones, p))
    assert np.isnan(metrics.normalised_gini(0 * ones, p)) and np.isnan(metrics.normalised_gini(ones, p))
    assert np.isnan(metrics.r2(ones * 0.1, p)) and np.isnan(metrics.rmse(ones, p, 0 * ones))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad):
    with pytest.raises(DataError, match="row 2"):
        metrics.rmse([0.0, 1, 2], [0, 1, bad])


def test_bad_shapes_and_labels_are_refused():
    with pytest.raises(DataError):
        metrics.spearman([1.0, 2], [1.0])
    with pytest.raises(DataError):
        metrics.spearman([1.0, 2], [1.0, 2], [1.0, -1])
    with pytest.raises(DataError):
        metrics.normalised_gini([-1.0, 2], [1.0, 2])
    with pytest.raises(DataError, match="classes"):
        metrics.rps_rows([3], [[0.5, 0.3, 0.2]])
    with pytest.raises(DataError, match="sum to 1"):
        metrics.rps_rows([1], [[0.5, 0.3, 0.1]])
