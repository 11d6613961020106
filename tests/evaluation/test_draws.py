"""Gains over several draws of the reasoned users: the textbook variance, nominal coverage, and what one lucky draw is worth."""

import numpy as np
import pytest
from scipy import stats

from scaletot_jax.evaluation.draws import across, gain
from scaletot_jax.evaluation.verdict import HELPED, UNDECIDED

RIVALS = ("profile", "labels", "shuffled", "random", "prompt_end")


def test_without_noise_of_the_test_users_it_is_the_t_test():
    rng = np.random.default_rng(0)
    for count in (2, 5, 12):
        by_draw = rng.normal(0.3, 1, count)
        found = gain(by_draw, np.full(50, 0.1), 0.95)
        expected = stats.ttest_1samp(by_draw, 0)
        np.testing.assert_allclose(found.interval[1:], expected.confidence_interval(0.95), rtol=1e-12)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


def test_one_draw_and_no_noise_at_all():
    with pytest.raises(ValueError, match="one draw"):
        gain(np.ones(1), np.zeros(9), 0.95)
    same = gain(np.full(3, 0.25), np.full(9, 0.25), 0.95)
    assert same.interval == (0.25, 0.25, 0.25) and same.p == 0
    assert gain(np.zeros(3), np.zeros(9), 0.95).p == 1


def test_the_interval_covers_the_truth_where_draws_and_users_both_vary():
    """Skill differences of draw d on user u: truth + a_d + b_u + noise. The share of intervals that hold the truth."""
    rng, truth, draws, users, held = np.random.default_rng(1), 0.5, 5, 200, 0
    for _ in range(400):
        table = truth + rng.normal(0, 0.4, (draws, 1)) + rng.normal(0, 3, (1, users)) + rng.normal(0, 1, (draws, users))
        weights = rng.multinomial(users, np.full(users, 1 / users), 200)
        found = gain(table.mean(1), (weights @ table.mean(0)) / users, 0.95).interval
        held += found.low <= truth <= found.high
    assert 0.94 <= held / 400 <= 1.0


def systems(rng, gains, users=600):
    """RPS of test rows in each draw: everywhere is better than each rival by that draw's gain, in skill."""
    base = rng.gamma(2, 1, users)
    draws = []
    for one in gains:
        rows = {name: base * 0.8 + rng.normal(0, 0.05, users) for name in RIVALS}
        draws.append(rows | {"everywhere": rows["profile"] - one * base, "only_here": rows["profile"]})
    del draws[-1]["only_here"]
    return draws, base, np.arange(users).astype(str)


def test_a_gain_in_every_draw_helps_and_that_of_a_lucky_draw_does_not():
    rng = np.random.default_rng(2)
    for gains, word in (([0.05, 0.06, 0.05, 0.04], HELPED), ([0.3, -0.01, 0.0, -0.02], UNDECIDED)):
        draws, base, groups = systems(rng, gains)
        found = across(draws, base, groups, resamples=200, level=0.95, seed=0)
        assert found["verdict"]["word"] == word and found["draws"] == 4
        assert set(found["skill"]) == {*RIVALS, "everywhere"}  # what every draw has
        assert found["differences"]["everywhere - profile"]["by_draw"] == pytest.approx(gains, abs=1e-9)


def test_a_rival_that_one_draw_lacks_was_not_run():
    draws, base, groups = systems(np.random.default_rng(3), [0.1, 0.1])
    del draws[1]["labels"]
    found = across(draws, base, groups, resamples=50, level=0.95, seed=0)
    assert found["verdict"]["not_run"] == ["labels"] and found["verdict"]["word"] == UNDECIDED
