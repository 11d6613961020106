"""Distillation losses against loops, their optimum, and their masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses.cases import central_difference, compiled, compiled_gradient, float64

from scaletot_jax.losses import cosine_loss, distill_loss, gram_loss, info_nce, regression_loss

SHAPE = B, K, D = 6, 2, 3


def example(seed):
    rng = np.random.default_rng(seed)
    predictions, targets = rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    valid = rng.random((B, K)) < 0.7
    targets[~valid] = np.nan
    predictions[~valid] = rng.choice([np.nan, np.inf])
    return predictions, targets, valid, rng.integers(0, 4, B)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def loop_reference(predictions, targets, valid, ids, temperature=0.07):
    out = {name: np.zeros(K) for name in ("regression", "cosine", "gram", "contrast")}
    for k in range(K):
        rows = np.flatnonzero(valid[:, k])
        if not len(rows):
            continue
        p, z = predictions[:, k], targets[:, k]
        out["regression"][k] = np.mean([np.mean((p[i] - z[i]) ** 2) for i in rows])
        out["cosine"][k] = np.mean([1 - cosine(p[i], z[i]) for i in rows])
        out["gram"][k] = np.mean([((p[i] @ p[j] - z[i] @ z[j]) / D) ** 2 for i in rows for j in rows])
        nce = []
        for i in rows:
            others = [j for j in rows if j == i or ids[j] != ids[i]]
            scores = np.array([cosine(p[i], z[j]) / temperature for j in others])
            nce.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - cosine(p[i], z[i]) / temperature)
        out["contrast"][k] = np.mean(nce)
    return out


@given(st.integers(0, 2**32 - 1))
def test_each_loss_equals_its_definition(seed):
    predictions, targets, valid, ids = example(seed)
    expected = loop_reference(predictions, targets, valid, ids)
    with float64():
        arguments = predictions, targets, valid
        np.testing.assert_allclose(compiled(regression_loss)(*arguments), expected["regression"], atol=1e-12)
        np.testing.assert_allclose(compiled(cosine_loss)(*arguments), expected["cosine"], atol=1e-9)
        np.testing.assert_allclose(compiled(gram_loss)(*arguments), expected["gram"], atol=1e-12)
        np.testing.assert_allclose(compiled(info_nce)(*arguments, profile_ids=ids), expected["contrast"], atol=1e-8)
        weights = np.array([1.0, 3.0])
        loss, parts = compiled(distill_loss)(*arguments, segment_weights=weights, profile_ids=ids)
    means = {name: (weights * values).sum() / 4 for name, values in expected.items()}
    total = means["regression"] + 0.5 * means["cosine"] + 0.5 * means["gram"] + 0.1 * means["contrast"]
    np.testing.assert_allclose(loss, total, atol=1e-8)
    for name, value in means.items():
        np.testing.assert_allclose(parts[name], value, atol=1e-8)


def test_gradient_equals_finite_differences_and_stays_finite():
    predictions, targets, valid, ids = example(4)
    with float64():
        _, gradient = compiled_gradient(distill_loss)(predictions, targets, valid, profile_ids=ids)
        assert np.isfinite(gradient).all() and not np.asarray(gradient)[~valid].any()
        clean = np.where(valid[..., None], predictions, 0.5)
        numeric = central_difference(functools.partial(distill_loss, profile_ids=ids), clean, targets, valid)
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)


def test_the_targets_themselves_cost_only_the_contrast():
    _, targets, _, _ = example(2)
    targets = np.nan_to_num(targets, nan=0.3)
    loss, parts = compiled(distill_loss)(targets, targets)
    for name in ("regression", "cosine", "gram"):
        np.testing.assert_allclose(parts[name], 0, atol=1e-6)
    np.testing.assert_allclose(loss, 0.1 * parts["contrast"], atol=1e-6)


def test_equal_profiles_are_no_negatives():
    rng = np.random.default_rng(0)
    predictions, targets = rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    alone = compiled(info_nce)(predictions, targets, profile_ids=np.zeros(B, int))
    np.testing.assert_allclose(alone, 0, atol=1e-6)
    different = compiled(info_nce)(predictions, targets, profile_ids=np.arange(B))
    np.testing.assert_array_equal(different, compiled(info_nce)(predictions, targets))


def test_no_gradient_enters_the_targets_and_zero_vectors_are_safe():
    predictions, targets = np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    gradient, target_gradient = jax.jit(jax.grad(lambda p, z: distill_loss(p, z)[0], argnums=(0, 1)))(
        predictions, targets
    )
    assert np.isfinite(gradient).all() and not np.asarray(target_gradient).any()
    value, gradient = jax.jit(jax.value_and_grad(lambda p: distill_loss(p, targets, np.zeros((B, K), bool))[0]))(
        predictions
    )
    assert value == 0 and not np.asarray(gradient).any()


def test_precision_and_misuse():
    assert regression_loss(jnp.zeros(SHAPE, jnp.bfloat16), jnp.ones(SHAPE, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="targets must have shape"):
        distill_loss(np.zeros(SHAPE), np.zeros((B, K, D + 1)))
    with pytest.raises(ValueError, match="predictions must have shape"):
        gram_loss(np.zeros((B, D)), np.zeros((B, D)))
    with pytest.raises(ValueError, match="segment_weights must have shape"):
        distill_loss(np.zeros(SHAPE), np.zeros(SHAPE), segment_weights=np.ones(3))
