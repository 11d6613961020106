"""The heads learn what is there, keep the best step, and say the base rate where there is nothing."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from scaletot_jax.errors import DataError
from scaletot_jax.evaluation import heads, metrics
from scaletot_jax.losses.ltv import hurdle_distribution, hurdle_nll

SETTINGS = {"width": 16, "batch_size": 128, "learning_rate": 5e-3, "penalties": (1e-3, 1e-1)}
MIXING = heads.hurdle_mixing(10)


def table(rows, seed, signal=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    return x, np.minimum(rng.poisson(np.exp(signal * (x[:, 0] * 0.7 + x[:, 1] * x[:, 2] * 0.4))), 10).astype(float)


def fit(x, y, x_val, y_val, steps=400, seeds=(0, 1), **other):
    return heads.fit_heads(
        x, y, x_val, y_val, loss=hurdle_nll, mixing=MIXING, seeds=seeds, steps=steps, **{**SETTINGS, **other}
    )


@pytest.fixture(scope="module")
def learnt():
    (x, y), (x_val, y_val) = table(1500, 0), table(500, 1)
    return fit(x, y, x_val, y_val)


def test_learns_the_distribution(learnt):
    x, y = table(800, 2)
    distribution = np.asarray(hurdle_distribution(heads.predict_heads(learnt, x, width=16, mixing=MIXING))).mean(0)
    base = np.tile(np.bincount(table(1500, 0)[1].astype(int), minlength=11) / 1500, (800, 1))
    assert metrics.rps(y, distribution) < 0.9 * metrics.rps(y, base)
    assert metrics.spearman(y, distribution @ np.arange(11)) > 0.4
    assert distribution[:, 0].mean() == pytest.approx((y == 0).mean(), abs=0.06)


def test_same_arguments_same_bytes_and_seeds_differ(learnt):
    (x, y), (x_val, y_val) = table(1500, 0), table(500, 1)
    again = fit(x, y, x_val, y_val)
    jax.tree.map(np.testing.assert_array_equal, learnt, again)
    kernel = learnt.params["scores"]["kernel"]
    assert (kernel[0] != kernel[1]).any()
    swapped = fit(x, y, x_val, y_val, seeds=(1, 0))
    np.testing.assert_array_equal(swapped.params["scores"]["kernel"][0], kernel[1])


def test_kept_step_is_the_best_on_validation_rows():
    """There is nothing to learn from forty rows without signal: the base rate is kept, not what was learnt by heart."""
    (x, y), (x_val, y_val) = table(40, 0, signal=0), table(500, 1, signal=0)
    fitted = fit(x, y, x_val, y_val, steps=1000, width=64)
    assert (fitted.best_step < 200).all()
    logits = heads.predict_heads(fitted, x_val, width=64, mixing=MIXING)
    for seed in range(2):
        assert np.mean(hurdle_nll(logits[seed], y_val)) == pytest.approx(fitted.val_loss[seed], rel=1e-5)


def test_scaler_uses_training_rows_and_silences_constant_columns():
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(5, 3, 200), np.full(200, 7.0)]
    scaler = heads.Scaler.fit(x)
    z = scaler.apply(x)
    np.testing.assert_allclose(z[:, 0].std(), 1, atol=1e-5)
    assert (z[:, 1] == 0).all() and z.dtype == np.float32
    assert scaler.apply(np.array([[1e9, -1e9]]))[0].tolist() == [8, 0]


def test_ridge_is_scikit_learns_at_the_chosen_penalty():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(300, 8)), rng.normal(size=300)
    y = x @ rng.normal(size=8) + noise + 3
    x = (x - x[:200].mean(0)) / x[:200].std(0)
    got = heads.ridge(x[:200], y[:200], x[200:250], y[200:250], x[250:])
    candidates = [Ridge(alpha=200 * 10.0**p).fit(x[:200], y[:200]) for p in range(-4, 3)]
    best = min(candidates, key=lambda model: np.mean((model.predict(x[200:250]) - y[200:250]) ** 2))
    np.testing.assert_allclose(got, best.predict(x[250:]), atol=1e-8)


def test_bad_inputs_are_refused():
    x, y = table(20, 0)
    with pytest.raises(DataError, match="rows"):
        fit(x, y, x[:0], y[:0])
    with pytest.raises(DataError, match="finite"):
        fit(x * np.nan, y, x, y)


def test_the_penalty_is_chosen_on_validation_rows():
    """With two hundred columns of noise beside one that counts, the strong penalty wins; the weak one learns by heart."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(700, 200)).astype(np.float32)
    y = np.minimum(rng.poisson(np.exp(0.8 * x[:, 0])), 10).astype(float)
    parts = (x[:300], y[:300], x[300:500], y[300:500])
    both, weak = fit(*parts, penalties=(1e-4, 3e-1)), fit(*parts, penalties=(1e-4,))
    assert (both.penalty == np.float32(3e-1)).all() and (both.val_loss < weak.val_loss).all()

    def skill(fitted):
        logits = heads.predict_heads(fitted, x[500:], width=16, mixing=MIXING)
        return metrics.spearman(y[500:], np.asarray(hurdle_distribution(logits)).mean(0) @ np.arange(11))

    assert skill(both) > 0.4


def test_all_hazards_share_one_score():
    mixing = np.asarray(heads.hurdle_mixing(4))
    np.testing.assert_array_equal(np.array([2.0, -1.0]) @ mixing, [2, -1, -1, -1])
    np.testing.assert_array_equal(heads.free_mixing(3), np.eye(3))


def test_with_a_shared_penalty_the_first_seed_chooses_and_each_seed_is_the_head_of_that_penalty():
    parts = (*table(100, 0), *table(80, 1))
    shared = fit(*parts, seeds=(3, 4, 5), steps=50, shared_penalty=True)
    alone = fit(*parts, seeds=(3,), steps=50)
    assert (shared.penalty == alone.penalty[0]).all()
    same = fit(*parts, seeds=(3, 4, 5), steps=50, penalties=(float(alone.penalty[0]),))
    np.testing.assert_allclose(shared.val_loss, same.val_loss, rtol=1e-5)
    np.testing.assert_allclose(shared.params["bias"], same.params["bias"], rtol=1e-4, atol=1e-5)
