"""The cluster bootstrap: whole groups, reproducible, with known standard errors."""

import time

import numpy as np
import pytest

from scaletot_jax.errors import ConfigError
from scaletot_jax.evaluation import bootstrap as boot
from scaletot_jax.evaluation import metrics


def weights_of(groups, resamples, seed=0):
    return np.concatenate(list(boot.resample_weights(groups, resamples, seed)))


def test_groups_move_together_and_totals_hold():
    groups = np.array(["b", "a", "b", "c", "a", "d"])
    w = weights_of(groups, 200)
    assert w.shape == (200, 6)
    np.testing.assert_array_equal(w[:, 0], w[:, 2])
    np.testing.assert_array_equal(w[:, 1], w[:, 4])
    np.testing.assert_array_equal(w[:, [0, 1, 3, 5]].sum(1), 4)
    assert not (w == w[:1]).all()


def test_seed_decides_and_block_size_does_not(monkeypatch):
    groups = np.arange(50) // 2
    whole = weights_of(groups, 64, seed=3)
    monkeypatch.setattr(boot, "_CHUNK", 333)
    np.testing.assert_array_equal(weights_of(groups, 64, seed=3), whole)
    assert (weights_of(groups, 64, seed=4) != whole).any()


def test_interval_of_a_mean_has_the_clustered_standard_error():
    """Rows repeated five times per group carry no more than the groups do: the naive interval is √5 too narrow."""
    rng = np.random.default_rng(0)
    value = np.repeat(rng.normal(size=400), 5)
    groups = np.repeat(np.arange(400), 5)
    zero = np.zeros_like(value)

    def mean(w):
        return w @ value / w.sum(1)

    samples = boot.bootstrap({"mean": mean, "zero": lambda w: w @ zero}, groups, resamples=2000, seed=1)
    interval = boot.percentile_interval(value.mean(), samples["mean"], 0.95)
    expected = 2 * 1.96 * value[::5].std() / np.sqrt(400)
    assert (interval.high - interval.low) == pytest.approx(expected, rel=0.06)
    assert interval.low < interval.estimate < interval.high
    assert (samples["zero"] == 0).all()


def test_pairing_removes_the_shared_noise():
    rng = np.random.default_rng(0)
    y = rng.poisson(2, 300).astype(float)
    p = y + rng.normal(size=300)
    samples = boot.bootstrap(
        {name: (lambda w, q=q: metrics.rmse(y, q, w)) for name, q in {"a": p, "b": p + 0.01}.items()},
        np.arange(300), resamples=300, seed=0,
    )  # fmt: skip
    same = boot.paired_difference(1.0, 1.0, samples["a"], samples["a"], 0.9)
    assert same == boot.Interval(0.0, 0.0, 0.0)
    near = boot.paired_difference(metrics.rmse(y, p), metrics.rmse(y, p + 0.01), samples["a"], samples["b"], 0.9)
    alone = boot.percentile_interval(metrics.rmse(y, p), samples["a"], 0.9)
    assert (near.high - near.low) < 0.1 * (alone.high - alone.low)


def test_coverage_is_near_nominal():
    rng = np.random.default_rng(0)
    hits = 0
    for draw in range(300):
        value = rng.normal(size=80)
        samples = np.concatenate([w @ value / w.sum(1) for w in boot.resample_weights(np.arange(80), 300, draw)])
        low, high = boot.percentile_interval(value.mean(), samples, 0.95)[1:]
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_undefined_metrics_have_no_interval_and_become_null():
    samples = np.r_[np.full(60, np.nan), np.zeros(40)]
    interval = boot.percentile_interval(0.0, samples, 0.95)
    assert interval.to_dict() == {"estimate": 0.0, "low": None, "high": None}
    assert boot.percentile_interval(np.nan, samples, 0.95).to_dict()["estimate"] is None
    assert np.isnan(boot.paired_difference(np.nan, np.nan, samples, samples, 0.95).low)


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError):
        boot.percentile_interval(0.0, np.zeros(3), 1.0)
    with pytest.raises(ConfigError):
        next(boot.resample_weights(np.arange(3), 0, 0))


def test_a_thousand_resamples_of_two_thousand_rows_are_fast():
    rng = np.random.default_rng(0)
    y, p = rng.poisson(2, 2000).astype(float), rng.normal(size=2000)
    functions = {
        f.__name__: (lambda w, f=f: f(y, p, w))
        for f in (metrics.spearman, metrics.auc, metrics.normalised_gini, metrics.rmse)
    }
    start = time.monotonic()
    boot.bootstrap(functions, np.arange(2000), resamples=1000, seed=0)
    assert time.monotonic() - start < 20
