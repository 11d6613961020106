"""The share of the ceiling, and what a linear probe reads off the embedding."""

import numpy as np
import pytest

from scaletot_jax.encoder.share import goal, share_of_ceiling
from scaletot_jax.encoder.slot_probe import probe_slots
from scaletot_jax.encoder.transfer import noise_ceiling, transfer_r2


def made(users=4000, chains=3, noise=1.5, seed=0):
    """States of known mean: z = m + e, two segments of different scale."""
    rng = np.random.default_rng(seed)
    mean = [scale * rng.normal(size=(users, 4)) for scale in (1.0, 5.0)]
    return mean, [m[:, None] + noise * m.std() * rng.normal(size=(users, chains, 4)) for m in mean]


def test_the_truth_reaches_the_whole_ceiling_and_half_of_it_reaches_three_quarters():
    mean, chains = made()
    groups = np.arange(4000) // 2
    whole = share_of_ceiling(chains, mean, groups, resamples=100)
    assert whole.estimate == pytest.approx(1, abs=0.02) and whole.low < 1.01 and whole.high > 0.99
    half = share_of_ceiling(chains, [m / 2 for m in mean], groups, resamples=100)
    assert half.estimate == pytest.approx(0.75, abs=0.02) and half.low < half.estimate < half.high
    constant = share_of_ceiling(chains, [np.zeros_like(m) for m in mean], groups, resamples=20)
    assert constant.estimate == pytest.approx(0, abs=0.02)


def test_it_is_the_mean_over_segments_of_r2_over_ceiling():
    mean, chains = made(users=50)
    guess = [m + 0.3 for m in mean]
    shares = [
        transfer_r2(chain.mean(1), prediction) / noise_ceiling(chain).mean_target
        for chain, prediction in zip(chains, guess)
    ]
    found = share_of_ceiling(chains, guess, np.arange(50), resamples=20)
    assert found.estimate == pytest.approx(np.mean(shares))
    assert share_of_ceiling([chain[:, :1] for chain in chains], guess, np.arange(50)) is None
    assert share_of_ceiling([0 * chain for chain in chains], guess, np.arange(50)) is None


def test_a_goal_that_a_collapsed_student_reaches_does_not_count():
    mean, chains = made(users=300)
    share = share_of_ceiling(chains, mean, np.arange(300), resamples=100)
    known, unknown = {"estimate": 0.1, "low": 0.01, "high": 0.2}, {"estimate": 0.1, "low": -0.01, "high": 0.2}
    assert goal(share, known)["reached"] and goal(share, known)["counts"] and not goal(share, unknown)["counts"]
    assert goal(None, None) == {"share": None, "goal": 0.9, "reached": False, "surely": False, "counts": False}


def test_slots_are_read_off_an_embedding_that_knows_them_and_not_off_one_that_does_not():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(600, 6))
    truth = np.digitize(z[:, 0], [-0.5, 0.5])
    slots = np.stack([np.where(rng.random((600, 4)) < 0.9, truth[:, None], 1), np.full((600, 4), -1)], 2)
    train = np.arange(600) < 400
    arguments = (slots, np.arange(600) // 2, train, ~train, ["mood", "text"])
    (knows,) = probe_slots(z, *arguments, resamples=100)
    assert knows["slot"] == "mood" and knows["values"] == 3
    assert knows["majority"] == pytest.approx((slots[~train, :, 0] == 1).mean())
    assert knows["margin"]["low"] > 0.1 and knows["majority"] < knows["accuracy"] <= knows["agreement"]
    (blind,) = probe_slots(rng.normal(size=(600, 6)), *arguments, resamples=100)
    assert blind["accuracy"] < blind["majority"] + 0.05 and blind["margin"]["low"] < 0.02
