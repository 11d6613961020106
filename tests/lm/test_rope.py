"""Windows and angles of layers that differ: their definition, and that every way through the model agrees on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.errors import DataError
from scaletot_jax.lm import lora
from scaletot_jax.lm.cache import extend, prefill
from scaletot_jax.lm.config import LMConfig, RopeScaling
from scaletot_jax.lm.exit import truncate
from scaletot_jax.lm.model import forward as plain_forward
from scaletot_jax.lm.model import init_params, unstack_layers
from scaletot_jax.lm.rope import kind_of, rotary, scaling_factors, scan_kinds, view_at, views

RNG = np.random.default_rng(5)
CONFIG = LMConfig(
    61, 24, 40, 3, 4, 2, 8, family="gemma3", windows=(4, 0, 4), local_rope_theta=100.0, qk_norm=True, post_norms=True,
    norm_offset=1.0, activation="gelu_tanh", embed_scale=24**0.5, query_scale=0.3, rope_scaling=RopeScaling("linear", 2.0),
)  # fmt: skip
forward = jax.jit(plain_forward, static_argnames=("config", "collect_layers", "remat"))


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(CONFIG)


def _tokens(*shape):
    return jnp.asarray(RNG.integers(0, 61, shape), jnp.int32)


def test_views_are_what_they_say():
    six = st.lists(st.integers(0, 30), min_size=6, max_size=6)  # one shape, so that nothing is compiled again

    @given(six, six)
    def check(positions, slots):
        q, k = np.array([positions]), np.array([slots])
        mask = np.ones((1, len(positions), len(slots)), bool)
        near, far = views(CONFIG, jnp.asarray(mask), jnp.asarray(q), jnp.asarray(k))
        assert np.array_equal(near.mask[0], np.subtract.outer(positions, slots) < 4)
        assert np.array_equal(far.mask, mask)
        frequencies = 100.0 ** -(np.arange(4) / 4)
        np.testing.assert_allclose(near.rotation[0][0], np.cos(np.outer(positions, frequencies)), atol=1e-5)
        frequencies = 10000.0 ** -(np.arange(4) / 4) / 2
        np.testing.assert_allclose(far.rotation[1][0], np.sin(np.outer(positions, frequencies)), atol=1e-5)

    check()
    assert kind_of(CONFIG) == (0, 1, 0)
    made = views(CONFIG, jnp.ones((1, 3, 3), bool), jnp.arange(3)[None])
    for kind, traced in zip(kind_of(CONFIG), scan_kinds(CONFIG)):
        jax.tree.map(np.testing.assert_array_equal, view_at(made, kind), view_at(made, traced))


def test_models_without_kinds_carry_none():
    plain = LMConfig(61, 24, 40, 3, 4, 2, 8, windows=(0, 0, 0))
    assert plain == LMConfig(61, 24, 40, 3, 4, 2, 8) and scan_kinds(plain) is None
    rotary(jnp.zeros((1, 1), jnp.int32), plain)
    with pytest.raises(ValueError, match=r"rope\.views"):
        rotary(jnp.zeros((1, 1), jnp.int32), CONFIG)


def test_scaling_factors():
    assert np.array_equal(scaling_factors(None, 1e4, 8), np.ones(4))
    assert np.array_equal(scaling_factors(RopeScaling("linear", 3.0), 1e4, 8), np.full(4, 3.0))
    llama = scaling_factors(RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), 5e5, 128)
    waves = 2 * np.pi * 5e5 ** (np.arange(64) / 64)
    assert (llama[waves < 8192 / 4] == 1).all() and (llama[waves > 8192] == 8).all()
    assert (np.diff(llama) >= 0).all() and ((llama > 1) & (llama < 8)).any()


def test_scanned_layers_equal_unrolled_ones(params):
    tokens = _tokens(2, 11)
    expected = forward(unstack_layers(params), CONFIG, tokens, collect_layers=(1, 3))
    out = forward(params, CONFIG, tokens, collect_layers=(1, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), out, expected)


def test_recomputed_layers_have_the_gradient_of_the_plain_ones(params):
    """Against a difference quotient along a random direction."""
    tokens = _tokens(2, 11)
    weights = jnp.asarray(RNG.normal(size=(2, 11, 24)), jnp.float32)

    def loss(params, remat=False):
        return jnp.sum(weights * forward(params, CONFIG, tokens, collect_layers=(1, 3), remat=remat).hidden)

    gradient = jax.jit(jax.grad(functools.partial(loss, remat=True)))(params)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, params))
    way = [RNG.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]

    def moved(step):
        return jax.tree.unflatten(tree, [np.float32(leaf + step * along) for leaf, along in zip(leaves, way)])

    ahead, behind = loss(moved(1e-3)), loss(moved(-1e-3))
    slope = sum(np.vdot(g, w) for g, w in zip(jax.tree.leaves(gradient), way))
    assert float(slope) == pytest.approx(float(ahead - behind) / 2e-3, rel=0.02)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(gradient))


def test_windows_hide_what_is_far(params):
    """With local layers alone, a change reaches (window − 1) positions a layer and no further."""
    front, config = truncate(params, CONFIG, 1)
    assert config.windows == (4,)
    tokens = _tokens(1, 12)
    changed = tokens.at[0, 2].add(1)
    differs = np.abs(forward(front, config, tokens).hidden - forward(front, config, changed).hidden)[0].max(axis=1) > 0
    assert differs.tolist() == [False] * 2 + [True] * 4 + [False] * 6
    whole = forward(params, CONFIG, tokens, collect_layers=(1,)).layers[0]
    ours = forward(front, config, tokens, collect_layers=(1,)).layers[0]
    np.testing.assert_allclose(ours, whole, atol=1e-6)


def test_adapters_work_beside_every_feature(params):
    shapes = jax.eval_shape(lambda: lora.init(CONFIG, jax.random.key(0), 2))
    adapter = {name: jnp.float32(0.2 * RNG.normal(size=leaf.shape)) for name, leaf in shapes.items()}
    tokens = _tokens(2, 9)
    run = functools.partial(forward, config=CONFIG, tokens=tokens)
    beside = run(params, lora=adapter, lora_scale=0.7).hidden
    within = run(lora.merge(params, adapter, 0.7)).hidden
    np.testing.assert_allclose(beside, within, atol=5e-5)
    assert np.abs(beside - run(params).hidden).max() > 0.1


def test_slots_out_of_order_keep_their_positions(params):
    """Tokens written behind a gap and then a tree of two branches: windows go by position, not by slot."""
    params = unstack_layers(params)
    prompt, more, tree = _tokens(1, 6), _tokens(1, 2), _tokens(1, 4)
    first = jax.jit(functools.partial(prefill, config=CONFIG, size=14))
    _, cache = first(params, tokens=prompt)
    write = jax.jit(lambda tokens, cache, at: extend(params, CONFIG, tokens, cache, write_at=at))
    _, cache = write(more[:, :1], cache, 12)
    _, cache = write(more[:, 1:], cache, 8)
    assert cache.positions[0, [12, 8]].tolist() == [6, 7]
    branch = np.kron(np.eye(2), np.tril(np.ones((2, 2)))).astype(bool)
    offsets = jnp.asarray([[0, 1, 0, 1]])
    look = jax.jit(
        lambda cache: extend(params, CONFIG, tree, cache, offsets=offsets, mask=jnp.asarray(branch)[None])[0]
    )
    hidden = look(cache)
    for place in range(2):
        path = tree[0, 2 * place : 2 * place + 2]
        whole = forward(params, CONFIG, jnp.concatenate([prompt[0], more[0], path])[None]).hidden[0]
        np.testing.assert_allclose(hidden[0, 2 * place : 2 * place + 2], whole[-2:], atol=3e-5)
    with pytest.raises(ValueError, match="positions"):
        extend(params, CONFIG, more, cache._replace(positions=None))


def test_fresh_parameters_have_every_leaf(params):
    fresh = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    assert jax.tree.map(lambda leaf: leaf.shape, fresh) == jax.tree.map(jnp.shape, params)

    @jax.jit
    def norms():
        fresh = init_params(CONFIG, jax.random.key(0))
        return fresh["final_norm"], fresh["layers"]["post_mlp_norm"], fresh["layers"]["q_norm"]

    assert not any(map(np.any, norms()))  # 1 + 0


def test_impossible_options_are_refused():
    sizes = (61, 24, 40, 3, 4, 2, 8)
    with pytest.raises(DataError, match="windows"):
        LMConfig(*sizes, windows=(4, 0))
    with pytest.raises(DataError, match="windows"):
        LMConfig(*sizes, windows=(4, 0, -1))
    with pytest.raises(DataError, match="activation"):
        LMConfig(*sizes, activation="relu")
    with pytest.raises(DataError, match="rotary factors"):
        LMConfig(*sizes, rope_scaling=RopeScaling("factors", factors=(1.0,)))
