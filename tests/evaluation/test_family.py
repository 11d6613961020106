"""p-values, Holm's correction and detectable differences against statsmodels and closed forms; and what an A/A comparison says."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scaletot_jax.evaluation import metrics
from scaletot_jax.evaluation.bootstrap import Interval, resample_weights
from scaletot_jax.evaluation.family import bootstrap_p, holm, minimal_detectable
from scaletot_jax.evaluation.verdict import HELPED, REQUIRED, UNDECIDED, Gain, decide

DRAWS, LEVEL = 1000, 0.95


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_against_statsmodels(p):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    with mock.patch("gc.collect"):  # called each time: half a minute in a process that runs all tests
        expected = multitest.multipletests(p, method="holm")[1]
    np.testing.assert_allclose(list(holm({f"c{i}": value for i, value in enumerate(p)}).values()), expected, atol=1e-12)


def test_holm_of_a_comparison_that_does_not_exist():
    found = holm({"a": 0.01, "b": float("nan")})
    assert found["a"] == 0.02 and np.isnan(found["b"])


def test_a_bootstrap_p_inverts_the_percentile_interval():
    rng = np.random.default_rng(0)
    for shift in np.linspace(-3, 3, 13):
        samples = rng.normal(shift, 1, 4000)
        low, high = np.percentile(samples, [2.5, 97.5])
        assert (bootstrap_p(samples) <= 0.05) == (low > 0 or high < 0)
        assert bootstrap_p(samples) == pytest.approx(2 * stats.norm.sf(abs(shift)), abs=0.04)
    assert bootstrap_p(np.ones(999)) == 2 / 1000 and bootstrap_p(np.zeros(99)) == 1
    assert np.isnan(bootstrap_p(np.full(9, np.nan)))


def test_the_detectable_difference_has_the_power_it_says():
    samples = np.random.default_rng(0).normal(0, 2, 100_000)
    found = minimal_detectable(samples, LEVEL)
    assert found == pytest.approx(2 * (1.959964 + 0.841621), rel=0.01)
    se = found / (1.959964 + 0.841621)
    assert stats.norm.sf(1.959964 - found / se) == pytest.approx(0.8, abs=1e-4)


@pytest.fixture(scope="module")
def nothing():
    """A/A: 1,000 draws of 300 users whose two forecasts err by independent noise of one size. Paired differences of the error,
    and of Spearman's ρ in the first 300 draws: [draws], bootstrap [draws, R]."""
    rng = np.random.default_rng(1)
    users, resamples = 300, 400
    weights = np.concatenate(list(resample_weights(np.arange(users), resamples, 3)))
    state = rng.normal(size=(DRAWS, users))
    y = np.maximum(0, np.round(2 * state + rng.normal(size=state.shape)))
    a, b = (state + 0.8 * rng.normal(size=state.shape) for _ in range(2))
    d = np.abs(2 * a - y) - np.abs(2 * b - y)
    error = d.mean(1), d @ weights.T / users
    rho = [
        [metrics.spearman(y[i], p[i], w) for p in (a, b)] for i in range(300) for w in (np.ones((1, users)), weights[:200])
    ]  # fmt: skip
    points = np.array([(p - q)[0] for p, q in rho[::2]])
    return {"error": error, "spearman": (points, np.array([p - q for p, q in rho[1::2]]))}


@pytest.mark.parametrize(("name", "low", "high"), [("error", 0.93, 0.97), ("spearman", 0.92, 0.98)])
def test_the_interval_of_an_a_a_comparison_covers_zero_as_often_as_it_says(nothing, name, low, high):
    """Of 1,000 draws within 93–97 %; of the 300 of the rank correlation two standard errors of a share wider."""
    _, samples = nothing[name]
    ends = np.percentile(samples, [2.5, 97.5], axis=1)
    assert low <= ((ends[0] <= 0) & (ends[1] >= 0)).mean() <= high


def test_an_a_a_comparison_is_hardly_ever_a_verdict(nothing):
    """Against five rivals at once: the family's error stays below 5 %, and all five are never beaten by chance."""
    points, samples = nothing["error"]
    words = []
    for begin in range(0, DRAWS, len(REQUIRED)):
        family = {}
        for k, name in enumerate(REQUIRED):
            one = samples[begin + k]
            interval = Interval(points[begin + k], *np.percentile(one, [2.5, 97.5]))
            family[name] = Gain.of(interval, one, LEVEL)
        found = decide(family, level=LEVEL)
        words.append((found["word"], bool(found["beaten"] or found["lost"])))
    assert not any(word == HELPED for word, _ in words)
    assert np.mean([word == UNDECIDED for word, _ in words]) >= 0.95
    assert np.mean([any_ for _, any_ in words]) <= 0.1
