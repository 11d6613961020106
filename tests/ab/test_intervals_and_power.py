"""Closed forms and simulations of what the libraries lack."""

import math

import numpy as np
import pytest

from scaletot_jax.ab.intervals import fieller, sequential_p, sequential_radius
from scaletot_jax.ab.power import detectable_lift, power_of, units_needed

pytest.importorskip("statsmodels")


def test_fieller_is_the_set_that_the_test_keeps():
    low, high = fieller(3.0, 3.3, 0.2, 0.3, 0.9)
    z = 1.6448536269514722
    for bound in (low, high):
        assert abs(3.3 - (1 + bound) * 3.0) / math.hypot(0.3, (1 + bound) * 0.2) == pytest.approx(z, rel=1e-9)
    assert low < 0.1 < high
    assert fieller(0.1, 3.3, 0.2, 0.3) == (-math.inf, math.inf) == fieller(0.0, 1.0, 0.1, 0.1)
    flipped = fieller(-3.0, -3.3, 0.2, 0.3, 0.9)
    assert flipped == pytest.approx((low, high))


def test_fieller_covers_where_the_denominator_is_noisy():
    rng = np.random.default_rng(0)
    control, treatment = rng.normal(1.0, 0.15, 20_000), rng.normal(1.2, 0.15, 20_000)
    inside = [low <= 0.2 <= high for low, high in (fieller(c, t, 0.15, 0.15) for c, t in zip(control, treatment))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.006)


def test_the_sequence_covers_every_look():
    """1,000 experiments without effect, looked at 40 times: the plain interval excludes zero in many, the sequence in few."""
    rng = np.random.default_rng(1)
    looks = np.arange(50, 2001, 50)
    sums = rng.normal(size=(1000, 2000)).cumsum(1)[:, looks - 1]
    errors = 1 / np.sqrt(looks)
    radius = np.array([sequential_radius(e, int(n), 2000) for e, n in zip(errors, looks)])
    means = sums / looks
    assert np.mean(np.any(np.abs(means) > 1.96 * errors, axis=1)) > 0.25
    assert np.mean(np.any(np.abs(means) > radius, axis=1)) < 0.05
    assert radius[-1] < 1.6 * 1.96 * errors[-1]  # at the planned size it costs little


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("units", [1, 40, 3000])
def test_the_p_value_of_any_look_is_that_of_the_interval(level, units):
    radius = sequential_radius(0.3, units, 1000, level)
    assert sequential_p(radius, 0.3, units, 1000, level) == pytest.approx(1 - level)
    assert (
        sequential_p(-1.1 * radius, 0.3, units, 1000, level)
        < 1 - level
        < sequential_p(0.9 * radius, 0.3, units, 1000, level)
    )
    assert sequential_p(0.0, 0.3, units, 1000, level) == 1.0


def test_users_needed_for_the_papers_lift():
    control, treatment = units_needed(1.0, 0.06738)
    assert control == treatment == pytest.approx(3458, abs=1)
    assert units_needed(2.0, 0.06738)[0] == pytest.approx(4 * 3458, abs=4)
    few, many = units_needed(1.0, 0.05, share=0.9)
    assert many == pytest.approx(9 * few, abs=9)
    assert detectable_lift(1.0, control, treatment) == pytest.approx(0.06738, rel=1e-3)
    assert power_of(1.0, 0.06738, control, treatment) == pytest.approx(0.8, abs=1e-3)
    rng = np.random.default_rng(3)
    z = (rng.normal(0.06738, 1, (4000, 900)).mean(1) - rng.normal(0, 1, (4000, 900)).mean(1)) / np.sqrt(2 / 900)
    assert power_of(1.0, 0.06738, 900, 900) == pytest.approx(np.mean(np.abs(z) > 1.96), abs=0.03)
