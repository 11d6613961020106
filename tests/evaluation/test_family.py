"""p-values, Holm's correction and detectable differences against statsmodels and closed forms; and what an A/A comparison says."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from scaletot_jax.evaluation.catalogue import METRICS
from scaletot_jax.evaluation.comparison import score_systems
from scaletot_jax.evaluation.family import bootstrap_p, detectable_after_holm, holm, minimal_detectable
from scaletot_jax.evaluation.predictions import Predictions, Rows, Target
from scaletot_jax.evaluation.verdict import HELPED, REQUIRED, UNDECIDED, WITH, WITHOUT, decide

DRAWS, LEVEL = 1000, 0.95
GROUPS, HORIZON = 150, 7


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
    after = detectable_after_holm(found, LEVEL, 5)
    assert stats.norm.sf(stats.norm.isf(0.05 / 5 / 2) - after / se) == pytest.approx(0.8, abs=1e-4)
    assert detectable_after_holm(found, LEVEL, 1) == found and 1.2 < after / found < 1.23


def world(rng, rivals):
    """One draw: 150 groups of 1–5 rows, whose states, labels and forecast errors are alike within a group, and equally good systems.

    Each system knows the state up to noise of one size, independent of the others', and says an ordinal distribution.
    """
    sizes = rng.integers(1, 6, GROUPS)
    group = np.repeat(np.arange(GROUPS), sizes)

    def shared(size):
        return size * (rng.normal(size=GROUPS)[group] + 0.5 * rng.normal(size=len(group)))

    state = shared(1.0)
    y = np.clip(np.round(2 + 2 * state + shared(0.7)), 0, HORIZON)
    edges = np.arange(HORIZON) + 0.5
    systems = {}
    for name in (WITH, *rivals):
        below = special.ndtr((edges - (2 + 2 * (state + shared(0.5)))[:, None]) / 1.6)
        p = np.diff(below, axis=1, prepend=0, append=1)
        systems[name] = [Predictions(p @ np.arange(HORIZON + 1), 1 - p[:, 0], p)]
    rows = Rows(np.arange(len(y)), np.arange(0), np.arange(len(y)))  # the base rate is fitted on as many rows
    return Target("lt7", "days", HORIZON, y), systems, rows, group


def compare(draw, rivals, metrics=("rps_skill",)):
    """What ``evaluate`` asks, of these metrics alone: differences as JSON, and the gains that the verdict is made of."""
    target, systems, rows, group = world(np.random.default_rng(draw), rivals)
    with mock.patch.dict(METRICS, days=metrics):
        return score_systems(target, systems, rows, group, resamples=400, level=LEVEL, seed=draw)[1:]


@pytest.fixture(scope="module")
def nothing():
    """A/A: 1,000 draws of two equally good systems, the first 300 also by Spearman's ρ. Metric → difference of each draw."""
    found = {"rps_skill": [], "spearman": []}
    for draw in range(DRAWS):
        differences, _ = compare(draw, (WITHOUT,), ("spearman", "rps_skill") if draw < 300 else ("rps_skill",))
        for metric, difference in differences[f"{WITH} - {WITHOUT}"].items():
            found[metric].append(difference)
    return found


@pytest.mark.parametrize(("metric", "low", "high"), [("rps_skill", 0.93, 0.97), ("spearman", 0.92, 0.98)])
def test_the_interval_of_an_a_a_comparison_covers_zero_as_often_as_it_says(nothing, metric, low, high):
    """Of 1,000 draws within 93–97 %; of the 300 of the rank correlation two standard errors of a share wider."""
    assert len(nothing[metric]) == (DRAWS if metric == "rps_skill" else 300)
    assert low <= np.mean([found["low"] <= 0 <= found["high"] for found in nothing[metric]]) <= high


def test_rows_taken_for_independent_cover_zero_less_often():
    """What the groups are for, and that the counts above can fail."""
    covered = []
    for draw in range(200):
        target, systems, rows, group = world(np.random.default_rng(draw), (WITHOUT,))
        with mock.patch.dict(METRICS, days=("rps_skill",)):
            _, found, _ = score_systems(
                target, systems, rows, np.arange(len(group)), resamples=400, level=LEVEL, seed=draw
            )
        row = found[f"{WITH} - {WITHOUT}"]["rps_skill"]
        covered.append(row["low"] <= 0 <= row["high"])
    assert np.mean(covered) < 0.88


def test_an_a_a_comparison_is_hardly_ever_a_verdict():
    """Against five rivals at once: the family's error stays near 5 %, and all five are never beaten by chance."""
    words = []
    for draw in range(200):
        gains = compare(draw, REQUIRED)[1]
        found = decide({name: gains[name]["rps_skill"] for name in REQUIRED}, level=LEVEL)
        words.append((found["word"], bool(found["beaten"] or found["lost"])))
    assert not any(word == HELPED for word, _ in words)
    assert np.mean([word == UNDECIDED for word, _ in words]) >= 0.95
    assert np.mean([any_ for _, any_ in words]) <= 0.1
