"""The forward pass against transformers, and its own invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import logits
from scaletot_jax.lm.model import forward as plain_forward
from scaletot_jax.lm.model import init_params as plain_init_params
from scaletot_jax.lm.model import unstack_layers

init_params = jax.jit(plain_init_params, static_argnums=0)
forward = jax.jit(plain_forward, static_argnames=("config", "collect_layers", "remat"))
RNG = np.random.default_rng(0)
SHAPES = {
    "grouped heads": {},
    "one head a group": {"num_heads": 3, "num_kv_heads": 3},
    "one key-value head": {"num_kv_heads": 1},
    "own head": {"tie_embeddings": False},
    "heads wider than the stream": {"head_dim": 16, "rope_theta": 500.0},
}


def _config(**changes) -> LMConfig:
    base = LMConfig(61, 24, 40, 3, 6, 2, 8)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_logits_and_states_equal_transformers(changes, make_reference):
    torch = pytest.importorskip("torch")
    config = _config(**changes)
    params = tiny.random_params(config, seed=1)
    tokens = RNG.integers(0, config.vocab_size, (3, 17))
    with torch.no_grad():
        reference = make_reference(config, params)(torch.tensor(tokens), output_hidden_states=True)
    out = forward(params, config, jnp.asarray(tokens), collect_layers=(2, 1))
    assert np.abs(logits(params, config, out.hidden) - reference.logits.numpy()).max() < 1e-4
    for layer, states in zip((2, 1), out.layers):
        assert np.abs(states - reference.hidden_states[layer].numpy()).max() < 1e-4
    assert np.abs(out.hidden - reference.hidden_states[-1].numpy()).max() < 1e-4


def test_right_padding_changes_nothing(small):
    config, params = small
    tokens = RNG.integers(0, 61, (2, 9))
    lengths = np.array([5, 9])
    valid = np.arange(9)[None] < lengths[:, None]
    out = forward(params, config, jnp.asarray(tokens), valid=jnp.asarray(valid), collect_layers=(3,))
    other = np.where(valid, tokens, 7)
    assert np.array_equal(
        forward(params, config, jnp.asarray(other), valid=jnp.asarray(valid)).hidden[valid], out.hidden[valid]
    )
    for row, length in enumerate(lengths):
        alone = forward(params, config, jnp.asarray(tokens[row : row + 1, :length]), collect_layers=(3,))
        np.testing.assert_allclose(out.hidden[row, :length], alone.hidden[0], atol=2e-5)
        np.testing.assert_allclose(out.layers[0][row, :length], alone.layers[0][0], atol=2e-5)
    assert np.isfinite(out.hidden).all()


def test_mask_and_positions_pack_two_sequences(small):
    config, params = small
    first, second = RNG.integers(0, 61, 4), RNG.integers(0, 61, 6)
    owner = np.array([0] * 4 + [1] * 6)
    mask = np.tril(owner[:, None] == owner[None])
    positions = np.concatenate([np.arange(4), np.arange(6)])
    packed = forward(
        params,
        config,
        jnp.asarray(np.concatenate([first, second])[None]),
        mask=jnp.asarray(mask[None]),
        positions=jnp.asarray(positions[None]),
    ).hidden[0]
    for tokens, place in ((first, slice(0, 4)), (second, slice(4, 10))):
        alone = forward(params, config, jnp.asarray(tokens[None])).hidden[0]
        np.testing.assert_allclose(packed[place], alone, atol=2e-5)


def test_positions_matter_only_by_their_differences(small):
    config, params = small
    tokens = jnp.asarray(RNG.integers(0, 61, (1, 8)))
    place = jnp.arange(8)[None]
    here = forward(params, config, tokens, positions=place).hidden
    np.testing.assert_allclose(forward(params, config, tokens, positions=place + 100).hidden, here, atol=1e-4)
    assert np.abs(forward(params, config, tokens, positions=place * 3).hidden - here).max() > 1e-2


def test_separate_layers_equal_stacked_layers(small):
    config, params = small
    tokens = jnp.asarray(RNG.integers(0, 61, (2, 7)))
    apart = unstack_layers(params)
    assert isinstance(apart["layers"], tuple) and len(apart["layers"]) == 3
    assert unstack_layers(apart)["layers"] is apart["layers"]
    a = forward(params, config, tokens, collect_layers=(1, 3, 1))
    b = forward(apart, config, tokens, collect_layers=(1, 3, 1))
    np.testing.assert_allclose(a.hidden, b.hidden, atol=2e-5)
    assert len(a.layers) == 3
    for x, y in zip(a.layers, b.layers):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("stacked", [True, False])
def test_recomputation_leaves_the_gradient_alone(small, stacked):
    config, params = small
    params = params if stacked else unstack_layers(params)
    tokens = jnp.asarray(RNG.integers(0, 61, (2, 7)))

    def loss(params, remat):
        out = forward(params, config, tokens, collect_layers=(2,), remat=remat)
        return jnp.sum(jnp.sin(out.hidden)) + jnp.sum(out.layers[0] ** 2)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, again = gradient(params, False), gradient(params, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, again)
    assert all(float(jnp.abs(leaf).sum()) > 0 for leaf in jax.tree.leaves(plain))


def test_bfloat16_weights_stay_close(small):
    config, params = small
    tokens = jnp.asarray(RNG.integers(0, 61, (2, 7)))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    out = forward(half, config, tokens).hidden
    assert out.dtype == jnp.float32
    assert np.abs(out - forward(whole, config, tokens).hidden).max() < 0.1


def test_fresh_parameters_keep_the_scale_and_follow_the_key(small):
    config, like = small
    config = dataclasses.replace(config, tie_embeddings=False)
    params = init_params(config, jax.random.key(0))
    head = params.pop("head")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like) and head.shape == (24, 61)
    assert np.std(params["layers"]["down"]) == pytest.approx(40**-0.5, rel=0.1)
    assert np.std(head) == pytest.approx(24**-0.5, rel=0.1)
    again, other = init_params(config, jax.random.key(0)), init_params(config, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, {**params, "head": head}, again)
    assert not np.array_equal(other["embed"], params["embed"])


def test_config_is_static_under_jit(small):
    config, params = small
    tokens = jnp.asarray(RNG.integers(0, 61, (2, 7)))
    with jax.disable_jit():
        eager = plain_forward(params, config, tokens).hidden
    np.testing.assert_allclose(forward(params, config, tokens).hidden, eager, atol=2e-5)


def test_impossible_requests_are_refused(small):
    config, params = small
    with pytest.raises(ValueError, match="collect_layers"):
        forward(params, config, jnp.zeros((1, 2), jnp.int32), collect_layers=(4,))
    with pytest.raises(DataError, match="num_heads"):
        _config(num_heads=5)
    with pytest.raises(DataError, match="head_dim"):
        _config(head_dim=7)
    with pytest.raises(DataError, match="num_layers"):
        _config(num_layers=0)
