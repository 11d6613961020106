"""Calibration against hand-derived values and its invariants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scaletot_jax.teacher import calibrate

log_probs = hnp.arrays(np.float64, (5, 2, 3), elements=st.floats(-30, 0))


def test_calibration_removes_what_a_wording_prefers():
    """Two users of opposite leaning, under wordings that both love value 0."""
    leaning = np.array([[[1.0, -1.0]], [[-1.0, 1.0]]])  # [users, 1, V]
    bias = np.array([[5.0, 0.0], [9.0, 0.0]])  # [J, V]
    scores = leaning + bias
    mean = calibrate.pilot_mean(scores)
    p = calibrate.pooled(scores, mean)
    np.testing.assert_allclose(p[0], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))])
    np.testing.assert_allclose(p[0], p[1][::-1])
    assert scores.mean(1).argmax(-1).tolist() == [0, 0]  # raw, everybody is the same
    np.testing.assert_allclose(calibrate.disagreement(calibrate.by_stem(scores, mean)), 0, atol=1e-12)


@given(log_probs, hnp.arrays(np.float64, (2, 3), elements=st.floats(-20, 20)))
def test_a_constant_per_wording_and_value_changes_nothing(scores, bias):
    plain = calibrate.pooled(scores, calibrate.pilot_mean(scores))
    shifted = calibrate.pooled(scores + bias, calibrate.pilot_mean(scores + bias))
    np.testing.assert_allclose(shifted, plain, atol=1e-9)


@given(log_probs)
def test_measures_lie_between_0_and_1(scores):
    mean = calibrate.pilot_mean(scores)
    p = calibrate.by_stem(scores, mean)
    for values in (calibrate.entropy(p), calibrate.disagreement(p)):
        assert np.all((values >= 0) & (values <= 1))
    np.testing.assert_allclose(p.sum(-1), 1)
    sample = calibrate.entropy(calibrate.pooled(scores, mean))
    u = calibrate.uncertainty(sample, sample, calibrate.disagreement(p))
    assert np.all((u >= 0) & (u <= 1))
    assert -1 - 1e-9 <= calibrate.agreement(scores, mean) <= 1 + 1e-9


def test_entropy_and_disagreement_at_their_ends():
    assert calibrate.entropy([0.25] * 4) == pytest.approx(1)
    assert calibrate.entropy([1.0, 0, 0]) == 0
    assert calibrate.disagreement([[1.0, 0, 0], [0, 1.0, 0]]) == pytest.approx(1)  # disjoint: ln 2 over ln 2
    assert calibrate.disagreement([[0.2, 0.8], [0.2, 0.8]]) == pytest.approx(0, abs=1e-12)
    assert calibrate.disagreement([[0.2, 0.8]]) == 0


def test_mid_rank_counts_ties_half():
    np.testing.assert_allclose(calibrate.mid_rank([1, 2, 2, 4], [0, 1, 2, 3, 9]), [0, 1 / 8, 1 / 2, 3 / 4, 1])
    assert calibrate.mid_rank([], 3.0) == 0.5


def test_agreement_sees_order_not_sharpness():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(50, 1, 4))
    same = np.concatenate([signal, 0.01 * signal], axis=1)
    assert calibrate.agreement(same, calibrate.pilot_mean(same)) == pytest.approx(1)
    opposite = np.concatenate([signal, -signal], axis=1)
    assert calibrate.agreement(opposite, calibrate.pilot_mean(opposite)) == pytest.approx(-1)
    constant = np.concatenate([signal, np.zeros_like(signal)], axis=1)
    assert calibrate.agreement(constant, calibrate.pilot_mean(constant)) == 0


def test_the_base_rate_is_a_prior():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(80, 2, 4)) * 2
    mean, base = calibrate.pilot_mean(scores), np.array([0.6, 0.25, 0.1, 0.05])
    plain, shifted = calibrate.pooled(scores, mean), calibrate.pooled(scores, mean, np.log(base))
    np.testing.assert_allclose(shifted, plain * base / (plain * base).sum(-1, keepdims=True))
    np.testing.assert_allclose(calibrate.pooled(mean, mean, np.log(base)), base)  # who is average gets the base rate


def test_pooled_answers_are_the_geometric_mean():
    p = calibrate.pool_answers([0.5, 0.5], [0.9, 0.1])
    np.testing.assert_allclose(p, np.array([3.0, 1.0]) / 4)


def test_redistribution_touches_only_the_contest():
    p = calibrate.redistribute([0.5, 0.3, 0.2, 0.0], (0, 2), [0.0, np.log(3)])
    np.testing.assert_allclose(p, [0.7 / 4, 0.3, 2.1 / 4, 0.0])


def test_the_guide_chooses_what_uncertainty_is_made_of():
    sample, entropies, spreads = [0.1, 0.2, 0.3, 0.4], np.asarray([0.0, 0.25, 0.9]), np.asarray([0.6, 0.2, 0.0])
    ranks = np.asarray([0.0, 0.5, 1.0])
    np.testing.assert_allclose(calibrate.uncertainty(sample, entropies, spreads, "entropy"), ranks)
    np.testing.assert_allclose(calibrate.uncertainty(sample, entropies, spreads, "disagreement"), spreads)
    np.testing.assert_allclose(calibrate.uncertainty(sample, entropies, spreads), (ranks + spreads) / 2)
