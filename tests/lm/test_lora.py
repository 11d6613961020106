"""Adapters: a fresh one changes nothing, a trained one equals changed weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax.lm import lora
from scaletot_jax.lm.model import forward as plain_forward

init = jax.jit(lora.init, static_argnums=(0, 2))
forward = jax.jit(plain_forward, static_argnames=("config",))
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, 61, (2, 7)))


def test_fresh_adapter_is_the_identity_and_learns(small):
    config, params = small
    adapter = init(config, jax.random.key(5), 4)
    assert set(adapter) == {f"{name}_{side}" for name in config.projections for side in "ab"}
    assert adapter["down_a"].shape == (3, 40, 4) and adapter["down_b"].shape == (3, 4, 24)
    run = functools.partial(forward, config=config)
    assert np.array_equal(run(params, tokens=TOKENS).hidden, run(params, tokens=TOKENS, lora=adapter).hidden)

    def loss(adapter):
        return jnp.sum(jnp.sin(forward(params, config, TOKENS, lora=adapter, lora_scale=2.0).hidden))

    gradient = jax.jit(jax.grad(loss))(adapter)
    for name, leaf in gradient.items():
        assert np.isfinite(leaf).all()
        # B is zero, so A has no gradient yet; B has one in every layer.
        moved = np.abs(leaf).sum(axis=(1, 2)) > 0
        assert moved.all() if name.endswith("_b") else not moved.any()


def test_merged_weights_give_the_same_outputs(small):
    config, params = small
    rng = np.random.default_rng(6)
    adapter = jax.eval_shape(lambda: lora.init(config, jax.random.key(5), 3))
    adapter = {name: np.float32(0.2 * rng.normal(size=leaf.shape)) for name, leaf in adapter.items()}
    run = functools.partial(forward, config=config)
    beside = run(params, tokens=TOKENS, lora=adapter, lora_scale=0.7).hidden
    within = run(lora.merge(params, adapter, 0.7), tokens=TOKENS).hidden
    np.testing.assert_allclose(beside, within, atol=3e-5)
    assert np.abs(beside - run(params, tokens=TOKENS).hidden).max() > 0.1


def test_rank_must_be_positive(small):
    with pytest.raises(ValueError, match="rank"):
        lora.init(small[0], jax.random.key(0), 0)
