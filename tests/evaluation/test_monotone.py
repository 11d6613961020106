"""Nested horizons: isotonic regression against scikit-learn, and distributions that agree afterwards."""

from itertools import pairwise

import numpy as np
from sklearn.isotonic import IsotonicRegression

from scaletot_jax.evaluation.monotone import isotonic, order_horizons, raise_to_monotone
from scaletot_jax.evaluation.predictions import Predictions, Target, of_distribution


def test_isotonic_against_scikit_learn():
    values = np.random.default_rng(0).normal(size=(5, 40))
    found = isotonic(values)
    for j in range(values.shape[1]):
        expected = IsotonicRegression().fit_transform(np.arange(5), values[:, j])
        np.testing.assert_allclose(found[:, j], expected, atol=1e-12)


def test_distributions_of_nested_horizons_are_ordered_and_remain_distributions():
    rng = np.random.default_rng(1)
    given = [of_distribution(rng.dirichlet(np.ones(h + 1) * 0.4, size=50)) for h in (7, 14, 30)]
    found = order_horizons(given)
    assert (found[0].mean > found[1].mean + 1e-9).sum() == 0 < (given[0].mean > given[1].mean).sum()
    above = [np.pad(1 - np.cumsum(p.distribution, 1), ((0, 0), (0, 31 - p.distribution.shape[1]))) for p in found]
    for short, long in pairwise(above):
        assert (short <= long + 1e-12).all()
    for p, q in zip(found, given):
        assert p.distribution.shape == q.distribution.shape and p.distribution.min() >= -1e-12
        np.testing.assert_allclose(p.distribution.sum(1), 1)
        np.testing.assert_allclose(p.mean, p.distribution @ np.arange(p.distribution.shape[1]))
        np.testing.assert_allclose(p.positive, 1 - p.distribution[:, 0])


def test_predictions_that_agree_are_not_changed():
    short = of_distribution(np.array([[0.6, 0.3, 0.1]]))
    long = of_distribution(np.array([[0.5, 0.3, 0.1, 0.1]]))
    for a, b in zip(order_horizons([short, long]), (short, long)):
        np.testing.assert_allclose(a.distribution, b.distribution, atol=1e-12)


def test_only_days_labels_are_ordered_and_systems_without_a_distribution_by_their_means():
    y = np.zeros(2)
    targets = [Target("lt30", "days", 30, y), Target("ltv30", "value", 0, y), Target("lt7", "days", 7, y)]

    def mean(*values):
        return [Predictions(np.array(values), np.array(values), probability=False)]

    said = {"lt30": {"ridge": mean(1.0, 3.0)}, "ltv30": {"ridge": mean(0.0, 9.0)}, "lt7": {"ridge": mean(2.0, 2.0)}}
    found = raise_to_monotone(targets, said)
    assert found["lt7"]["ridge"][0].mean.tolist() == [1.5, 2.0] and found["lt30"]["ridge"][0].mean.tolist() == [
        1.5,
        3.0,
    ]
    assert found["ltv30"]["ridge"][0] is said["ltv30"]["ridge"][0]
