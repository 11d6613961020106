"""Every program for attention against the plain one, gradients too, and on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax.errors import DataError
from scaletot_jax.lm.attend import choose, dot_product
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.model import attention, forward, init_params
from scaletot_jax.lm.splash import Tree, splash
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules
from scaletot_jax.student.packing import pack, predicting_states

B, KV, G, HD = 2, 2, 2, 16
TREE = Tree(prompt=20, chains=3, length=9)
T = TREE.tokens
RNG = np.random.default_rng(4)
Q, K, V = (jnp.asarray(RNG.normal(size=(B, KV, n * T, HD)), jnp.float32) for n in (G, 1, 1))
VALID = np.ones((B, T), bool)
VALID[1, 14:20] = VALID[1, 27:29] = VALID[0, -9:] = False  # a short prompt, a short chain, an empty chain
MASK = jnp.asarray(TREE.seen()[None] & VALID[:, None, :])
WEIGHTS = jnp.asarray(
    RNG.normal(size=Q.shape) * np.tile(VALID[:, None], (1, KV, G)).reshape(B, KV, G * T, 1), jnp.float32
)


def _objective(attend, q, k, v):
    out = attend(q, k, v)
    return jnp.sum(out * WEIGHTS), out


def _compare(attend):
    both = [
        jax.jit(jax.value_and_grad(functools.partial(_objective, one), (0, 1, 2), has_aux=True))(Q, K, V)
        for one in (attend, lambda q, k, v: attention(q, k, v, MASK))
    ]
    rows = np.tile(VALID[:, None], (1, KV, G)).reshape(B, KV, G * T)
    (_, ours), gradients = both[0]
    (_, plain), expected = both[1]
    np.testing.assert_allclose(np.asarray(ours)[rows], np.asarray(plain)[rows], atol=2e-6)
    assert np.isfinite(ours).all()
    for found, wanted in zip(gradients, expected):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_tree_is_the_mask_of_packing():
    prompts, chains = jnp.ones((1, 20), jnp.int32), jnp.ones((1, 3, 9), jnp.int32)
    packed = pack(prompts, prompts > 0, chains, chains > 0)
    np.testing.assert_array_equal(packed.mask[0], TREE.seen())
    np.testing.assert_array_equal(Tree(5).seen(), np.tril(np.ones((5, 5), bool)))


def test_dot_product_equals_plain_attention():
    _compare(lambda q, k, v: dot_product(q, k, v, MASK))


def test_splash_equals_plain_attention():
    """The kernel, interpreted: a tree of chains, padding, grouped heads, a length that no block divides."""
    _compare(lambda q, k, v: splash(q, k, v, jnp.asarray(VALID), TREE))


def test_splash_on_a_mesh_equals_one_device():
    def run(rules):
        return jax.jit(functools.partial(splash, tree=TREE, rules=rules))(Q, K, V, jnp.asarray(VALID))

    with jax.set_mesh(make_mesh(fsdp=2, tensor=2)):
        many = run(ShardingRules())
    np.testing.assert_allclose(many, run(None), atol=1e-6)


@pytest.mark.parametrize("name", ["dot_product", "splash"])
def test_models_agree_on_packed_chains(name):
    config = LMConfig(40, 16, 32, 2, 4, 2, 4)
    params = init_params(config, jax.random.key(0))
    tokens = RNG.integers(0, 40, (2, T)).astype(np.int32)
    prompts, chains = jnp.asarray(tokens[:, :20]), jnp.asarray(tokens[:, 20:].reshape(2, 3, 9))
    packed = pack(prompts, jnp.asarray(VALID[:, :20]), chains, jnp.asarray(VALID[:, 20:].reshape(2, 3, 9)))
    plain = predicting_states(params, config, packed)
    other = jax.jit(predicting_states, static_argnames="config")(
        params, dataclasses.replace(config, attention=name), packed
    )
    real = VALID[:, 20:].reshape(2, 3, 9)
    np.testing.assert_allclose(np.asarray(other)[real], np.asarray(plain)[real], atol=1e-5)


def test_what_splash_cannot_do_is_refused():
    config = LMConfig(40, 16, 32, 2, 4, 2, 4, attention="splash")
    params, tokens = init_params(config, jax.random.key(0)), jnp.ones((1, 8), jnp.int32)
    with pytest.raises(DataError, match="tree of chains"):
        forward(params, config, tokens, mask=jnp.ones((1, 8, 8), bool))
    with pytest.raises(DataError, match="sliding windows"):
        forward(params, dataclasses.replace(config, windows=(4, 0)), tokens)
    with pytest.raises(ValueError, match="tokens"):
        splash(Q, K, V, jnp.asarray(VALID), Tree(T + 1))
    with pytest.raises(DataError, match="unknown attention"):
        dataclasses.replace(config, attention="flash")


def test_choice_by_backend():
    assert choose("auto") == "einsum" and choose("splash") == "splash"  # the tests run on a CPU
