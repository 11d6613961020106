"""The kernel regression against scikit-learn's, and its shortcut for left-out groups against leaving them out."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from scaletot_jax.encoder import kernel
from scaletot_jax.encoder import spread as spread_module
from scaletot_jax.encoder.model import EncoderSpec, Inputs

SPEC = EncoderSpec(
    fields=("a", "b", "c"), cat_sizes=(6,), multi_sizes=(9,), cat_fields=(0,), num_fields=(1, 1), multi_fields=(2,),
    knots=((0.0, 1.0), (0.0, 1.0)), segments=("s",), target_dims=(2,),
)  # fmt: skip


def profiles(count=60, seed=0):
    rng = np.random.default_rng(seed)
    multi = rng.integers(4, 9, (count, 1, 3))
    multi[rng.random(count) < 0.3, :, 1:] = 0
    num = rng.normal(size=(count, 2)).astype(np.float32)
    missing = np.repeat(rng.random((count, 1)) < 0.2, 2, 1)
    return Inputs(rng.integers(1, 6, (count, 1)), np.where(missing, 0, num), missing, multi)


def test_fields_are_alike_as_stated():
    x = profiles()
    found = dict(kernel.field_kernels(SPEC, x, x))
    for field in range(3):
        np.testing.assert_allclose(np.diag(found[field]), 1, atol=1e-6)
        assert found[field].min() >= 0 and np.linalg.eigvalsh(found[field].astype(float)).min() > -1e-4
    np.testing.assert_array_equal(found[0], x.cat == x.cat[:, 0])
    gone = x.missing[:, 0]
    assert (found[1][gone][:, gone] == 1).all() and (found[1][gone][:, ~gone] == 0).all()
    one = Inputs(*(part[:1].copy() for part in x))
    one.multi[0, 0] = [4, 5, 0]
    other = Inputs(*(part[:1].copy() for part in x))
    other.multi[0, 0] = [5, 4, 0]
    swapped = dict(kernel.field_kernels(SPEC, one, other))[2][0, 0]
    assert swapped == pytest.approx(2 * 0.5 / 1.25)  # order counts: (1, ½)·(½, 1)
    near = np.eye(9) + 0.5 * (1 - np.eye(9))
    assert dict(kernel.field_kernels(SPEC, one, other, [None, near]))[2][0, 0] > swapped


def test_an_empty_list_is_like_an_empty_one_only():
    x = profiles(6)
    x.multi[:] = np.array([[4, 5, 0], [0, 0, 0], [0, 0, 0], [5, 4, 6], [0, 0, 0], [4, 0, 0]])[:, None]
    empty = np.array([False, True, True, False, True, False])
    alike = dict(kernel.field_kernels(SPEC, x, x))[2]
    assert (alike[empty][:, empty] == 1).all() and (alike[empty][:, ~empty] == 0).all()
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-6)
    assert np.linalg.eigvalsh(alike.astype(float)).min() > -1e-6  # still a kernel


def test_leaving_a_group_out_without_refitting():
    x, rng = profiles(), np.random.default_rng(1)
    k = kernel.profile_kernel(SPEC, x, x, np.array([0.3, 1.0, 0.3]))
    y, groups = rng.normal(size=(60, 2)), np.arange(60) // np.array([1, 3])[rng.integers(0, 2, 60)]
    found = kernel.group_errors(k, y, groups, (0.1, 1.0))
    for i, penalty in enumerate((0.1, 1.0)):
        error = np.zeros(2)
        for group in np.unique(groups):
            out = groups == group
            model = KernelRidge(alpha=penalty, kernel="precomputed").fit(k[~out][:, ~out], y[~out])
            error += ((y[out] - model.predict(k[out][:, ~out])) ** 2).sum(0)
        np.testing.assert_allclose(found[i], error, rtol=1e-6)


def test_it_finds_the_field_that_matters_and_shrinks_noise_to_the_mean():
    x, rng = profiles(300), np.random.default_rng(2)
    signal = np.sin(2 * x.num[:, 0]) + (x.cat[:, 0] == 3)
    y = np.stack([signal, rng.normal(size=300)], 1)
    fit = kernel.fit_kernel(SPEC, Inputs(*(part[:200] for part in x)), y[:200], np.arange(200))
    assert fit.weights[2] <= min(fit.weights[:2]) and fit.penalties[1] > fit.penalties[0]
    guess = kernel.predict_kernel(fit, SPEC, Inputs(*(part[200:] for part in x)), chunk=33)
    assert np.corrcoef(guess[:, 0], signal[200:])[0, 1] > 0.9
    assert guess[:, 1].std() < 1 and abs(guess[:, 1].mean() - y[:200, 1].mean()) < 0.5


def test_beyond_its_limit_the_regression_keeps_everybody_s_own_state(monkeypatch):
    x, rng = profiles(90), np.random.default_rng(3)
    own = [rng.normal(size=(60, 2)), rng.normal(size=(60, 1))]
    train, pool = (Inputs(*(part[rows] for part in x)) for rows in (slice(60), slice(60, None)))
    whole = spread_module.spread(SPEC, train, own, np.arange(60), pool)
    assert whole.record["fitted"] == 60 and (np.abs(whole.targets[0][:60] - own[0]).max(1) > 1e-6).all()
    monkeypatch.setattr(spread_module, "MAX_ROWS", 40)
    found = spread_module.spread(SPEC, train, own, np.arange(60), pool)
    assert found.record["fitted"] == 40 and found.record["profiles"] == 60
    kept = (found.targets[0][:60] == own[0]).all(1)
    assert kept.sum() == 20 and not kept[40:].all()  # drawn from all, not cut off at the end
    assert np.array_equal(found.targets[1][:60][kept], own[1][kept])
    assert found.targets[0].shape == (90, 2) and np.isfinite(found.targets[0]).all()
