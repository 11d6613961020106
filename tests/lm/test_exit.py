"""Leaving early: the map is the ridge solution, and the truncated model is the front of the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax.lm.exit import fit_exit, truncate
from scaletot_jax.lm.model import forward as plain_forward
from scaletot_jax.lm.model import unstack_layers

RNG = np.random.default_rng(4)
TOKENS = jnp.asarray(RNG.integers(0, 61, (4, 30)))
forward = jax.jit(plain_forward, static_argnames=("config", "collect_layers"))


def test_fit_is_the_ridge_minimum():
    states = RNG.normal(size=(200, 6)) @ RNG.normal(size=(6, 6)) + 3.0
    target = RNG.normal(size=(200, 6))
    ridge = 0.05
    fitted = fit_exit(states, target, ridge)
    penalty = ridge * np.var(states, axis=0).mean()

    def objective(weight, bias):
        return np.mean(np.sum((states @ weight + bias - target) ** 2, axis=1)) + penalty * np.sum(weight**2)

    weight, bias = (fitted[name].astype(np.float64) for name in ("weight", "bias"))
    best = objective(weight, bias)
    for _ in range(20):
        assert objective(weight + 1e-2 * RNG.normal(size=weight.shape), bias) > best
        assert objective(weight, bias + 1e-2 * RNG.normal(size=bias.shape)) > best
    # Normal equations of the augmented, unpenalised-bias problem.
    design = np.hstack([states, np.ones((200, 1))])
    penalties = np.diag([200 * penalty] * 6 + [0.0])
    closed = np.linalg.solve(design.T @ design + penalties, design.T @ target)
    np.testing.assert_allclose(np.vstack([weight, bias]), closed, atol=1e-5)


def test_fit_recovers_an_affine_map_and_survives_too_few_rows():
    weight, bias = RNG.normal(size=(5, 5)), RNG.normal(size=5)
    states = RNG.normal(size=(50, 5))
    fitted = fit_exit(states, states @ weight + bias, 0.0)
    np.testing.assert_allclose(fitted["weight"], weight, atol=1e-5)
    np.testing.assert_allclose(fitted["bias"], bias, atol=1e-5)
    few = fit_exit(states[:2], states[:2] @ weight + bias, 0.0)
    np.testing.assert_allclose(states[:2] @ few["weight"] + few["bias"], states[:2] @ weight + bias, atol=1e-4)


@pytest.mark.parametrize("separate", [False, True])
def test_truncated_model_is_the_front_of_the_whole(small, separate):
    config, params = small
    whole = forward(params, config, TOKENS, collect_layers=(2, 3))
    source = unstack_layers(params) if separate else params
    identity = {"weight": np.eye(24, dtype=np.float32), "bias": np.zeros(24, np.float32)}
    front, short = truncate(source, config, 2, identity)
    assert short.num_layers == 2 and config.num_layers == 3
    out = forward(front, short, TOKENS, collect_layers=(2,))
    np.testing.assert_allclose(out.layers[0], whole.layers[0], atol=2e-5)
    bare, _ = truncate(source, config, 2)
    np.testing.assert_allclose(out.hidden, forward(bare, short, TOKENS).hidden, atol=2e-5)
    fitted = fit_exit(whole.layers[0].reshape(-1, 24), whole.layers[1].reshape(-1, 24), 1e-3)
    mapped, _ = truncate(source, config, 2, fitted)
    error = jnp.mean((forward(mapped, short, TOKENS).hidden - whole.hidden) ** 2)
    assert error < 0.5 * jnp.mean((out.hidden - whole.hidden) ** 2)


def test_impossible_requests_are_refused(small):
    config, params = small
    for layers in (0, 4):
        with pytest.raises(ValueError, match="num_layers"):
            truncate(params, config, layers)
    with pytest.raises(ValueError, match="must both"):
        fit_exit(np.zeros((3, 2)), np.zeros((4, 2)), 0.1)
    with pytest.raises(ValueError, match="negative"):
        fit_exit(np.zeros((3, 2)), np.zeros((3, 2)), -1.0)
