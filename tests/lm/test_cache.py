"""Cached decoding equals the plain forward pass, whichever way the tokens come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax.lm.cache import extend, repeat
from scaletot_jax.lm.cache import prefill as plain_prefill
from scaletot_jax.lm.lora import init as init_lora
from scaletot_jax.lm.model import forward as plain_forward
from scaletot_jax.lm.model import unstack_layers

RNG = np.random.default_rng(1)
forward = jax.jit(plain_forward, static_argnames=("config",))
prefill = jax.jit(plain_prefill, static_argnames=("config", "size"))


def _tokens(*shape):
    return jnp.asarray(RNG.integers(0, 61, shape), jnp.int32)


@pytest.fixture(scope="module")
def steps(small):
    """Jitted prefill, and extend with and without writing."""
    config, _ = small
    return (
        lambda params, **more: prefill(params, config, **more),
        jax.jit(lambda params, tokens, cache, at, **more: extend(params, config, tokens, cache, write_at=at, **more)),
        jax.jit(lambda params, tokens, cache, **more: extend(params, config, tokens, cache, **more)),
    )


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("with_lora", [False, True])
def test_one_by_one_equals_forward(small, separate, with_lora):
    config, params = small
    lora = None
    if with_lora:
        shapes = jax.eval_shape(lambda: init_lora(config, jax.random.key(3), 2))
        lora = {name: np.float32(0.2 * RNG.normal(size=leaf.shape)) for name, leaf in shapes.items()}
    tokens = _tokens(2, 11)
    whole = forward(params, config, tokens, lora=lora, lora_scale=0.5).hidden
    params = unstack_layers(params) if separate else params
    hidden, cache = prefill(params, config, tokens[:, :6], size=13, lora=lora, lora_scale=0.5)
    np.testing.assert_allclose(hidden, whole[:, :6], atol=3e-5)
    step = jax.jit(
        lambda cache, token, at: extend(params, config, token, cache, write_at=at, lora=lora, lora_scale=0.5)
    )
    for at in range(6, 11):
        hidden, cache = step(cache, tokens[:, at : at + 1], jnp.int32(at))
        np.testing.assert_allclose(hidden[:, 0], whole[:, at], atol=3e-5)
    assert cache.count.tolist() == [11, 11]
    assert cache.valid.sum(axis=1).tolist() == [11, 11]


def test_right_padded_prompts_leave_gaps_that_nothing_sees(small, steps):
    config, params = small
    first, write, _ = steps
    prompt, more = _tokens(3, 6), _tokens(3, 4)
    lengths = np.array([3, 6, 1])
    valid = jnp.arange(6)[None] < jnp.asarray(lengths)[:, None]
    hidden, cache = first(params, tokens=prompt, valid=valid, size=10)
    assert cache.count.tolist() == lengths.tolist()
    assert np.array_equal(cache.valid[:, :6], valid) and not cache.valid[:, 6:].any()
    outs = []
    for at in range(4):
        out, cache = write(params, more[:, at : at + 1], cache, 6 + at)
        outs.append(out)
    outs = jnp.concatenate(outs, axis=1)
    for row, length in enumerate(lengths):
        whole = forward(params, config, jnp.concatenate([prompt[row, :length], more[row]])[None]).hidden[0]
        np.testing.assert_allclose(hidden[row, :length], whole[:length], atol=3e-5)
        np.testing.assert_allclose(outs[row], whole[length:], atol=3e-5)


def test_ragged_chunk_after_a_shared_prefix(small, steps):
    """One instruction, prefilled once and repeated; then each row's own right-padded text in one call."""
    config, params = small
    first, write, _ = steps
    shared, own = _tokens(1, 5), _tokens(3, 4)
    lengths = np.array([4, 2, 1])
    valid = jnp.arange(4)[None] < jnp.asarray(lengths)[:, None]
    _, cache = first(params, tokens=shared, size=12)
    out, cache = write(params, own, repeat(cache, 3), 5, valid=valid)
    assert cache.count.tolist() == (5 + lengths).tolist()
    last, cache = write(params, own[:, :1], cache, 9)
    for row, length in enumerate(lengths):
        whole = forward(params, config, jnp.concatenate([shared[0], own[row, :length], own[row, :1]])[None]).hidden[0]
        np.testing.assert_allclose(out[row, :length], whole[5:-1], atol=3e-5)
        np.testing.assert_allclose(last[row, 0], whole[-1], atol=3e-5)


def test_write_at_writes_there_and_nowhere_else(small, steps):
    _, params = small
    first, write, look = steps
    _, cache = first(params, tokens=_tokens(2, 4), size=9)
    more = _tokens(2, 2)
    seen, same = look(params, more, cache)
    jax.tree.map(np.testing.assert_array_equal, cache, same)
    hidden, written = write(params, more, cache, 6)
    np.testing.assert_allclose(hidden, seen, atol=3e-5)
    assert written.valid[0].tolist() == [True] * 4 + [False] * 2 + [True] * 2 + [False]
    assert written.count.tolist() == [6, 6]
    outside = np.array([0, 1, 2, 3, 4, 5, 8])
    for old, new in zip(cache.keys + cache.values, written.keys + written.values):
        np.testing.assert_array_equal(old[:, :, outside], new[:, :, outside])
        assert np.abs(new[:, :, 6:8]).min() > 0


def test_tree_of_alternatives_equals_separate_passes(small, steps):
    """Three branches of lengths 3, 2, 3 below one prefix, the first two sharing their first token."""
    config, params = small
    first, _, look = steps
    prompt, tree = _tokens(2, 5), _tokens(2, 7)
    parent = [-1, 0, 1, 0, -1, 4, 5]  # node -> parent among the new tokens
    mask, depth = np.zeros((7, 7), bool), np.zeros(7, np.int32)
    for node in range(7):
        mask[node, node] = True
        if parent[node] >= 0:
            mask[node] |= mask[parent[node]]
            depth[node] = depth[parent[node]] + 1
    _, cache = first(params, tokens=prompt, size=8)
    hidden, _ = look(params, tree, cache, offsets=jnp.tile(depth, (2, 1)), mask=jnp.tile(mask, (2, 1, 1)))
    for node in range(7):
        path = np.flatnonzero(mask[node])
        for row in range(2):
            whole = forward(params, config, jnp.concatenate([prompt[row], tree[row, path]])[None]).hidden
            np.testing.assert_allclose(hidden[row, node], whole[0, -1], atol=3e-5)


def test_written_tree_keeps_only_what_the_mask_joins(small, steps):
    """With write_at, the new tokens see each other through the mask, not through the slots they were written to."""
    config, params = small
    first, write, _ = steps
    prompt, pair = _tokens(1, 4), _tokens(1, 2)
    _, cache = first(params, tokens=prompt, size=8)
    hidden, _ = write(params, pair, cache, 5, offsets=jnp.zeros((1, 2), jnp.int32), mask=jnp.eye(2, dtype=bool)[None])
    for place in range(2):
        whole = forward(params, config, jnp.concatenate([prompt[0], pair[0, place : place + 1]])[None]).hidden
        np.testing.assert_allclose(hidden[0, place], whole[0, -1], atol=3e-5)


def test_repeat_is_user_major(small, steps):
    _, params = small
    _, cache = steps[0](params, tokens=_tokens(2, 4), size=6)
    many = repeat(cache, 3)
    assert many.count.shape == (6,)
    for row in range(6):
        np.testing.assert_array_equal(many.keys[1][row], cache.keys[1][row // 3])


def test_a_donated_cache_is_updated_in_place(small):
    """Neither a step nor a loop of steps keeps a second copy of the cache in temporary memory."""
    config, params = small
    params = unstack_layers(params)
    _, cache = prefill(params, config, _tokens(4, 8), size=4096)
    held = sum(leaf.nbytes for leaf in cache.keys + cache.values)

    def step(cache, token, at):
        return extend(params, config, token, cache, write_at=at)

    def loop(cache, token):
        return jax.lax.fori_loop(0, 4, lambda i, cache: step(cache, token, 8 + i)[1], cache)

    for function, arguments in ((step, (jnp.int32(8),)), (loop, ())):
        compiled = jax.jit(function, donate_argnums=0).lower(cache, _tokens(4, 1), *arguments).compile()
        memory = compiled.memory_analysis()
        assert memory.alias_size_in_bytes >= held
        assert memory.temp_size_in_bytes < held / 4


def test_impossible_sizes_are_refused(small):
    config, params = small
    with pytest.raises(ValueError, match="cannot hold"):
        prefill(params, config, _tokens(1, 5), size=4)
    _, cache = prefill(params, config, _tokens(1, 5), size=6)
    with pytest.raises(ValueError, match="do not fit"):
        extend(params, config, _tokens(1, 2), cache, write_at=5)
