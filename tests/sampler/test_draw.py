"""Drawing a token: against float64 NumPy with an explicit sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.sampler.draw import draw, entropy, measure

_draw = jax.jit(draw)


def reference(logits, allowed, tau, top_k=0, top_p=1.0):
    """The distribution [N] float64, by sorting."""
    z = np.where(allowed, np.asarray(logits, np.float64), -np.inf)
    if top_k:
        order = np.sort(z)[::-1]
        z = np.where(z >= order[min(top_k, len(z)) - 1], z, -np.inf)
    p = np.exp(z / tau - np.max(z) / tau)
    p = p / p.sum()
    if top_p < 1:
        order = np.sort(p)[::-1]
        keep = order[np.searchsorted(np.cumsum(order), top_p - 1e-7)]
        p = np.where(p >= keep * (1 - 1e-6), p, 0.0)
    return p / p.sum()


def rows(count, value, dtype=np.float32):
    return jnp.full(count, value, dtype)


@pytest.mark.parametrize("size", (5, 256, 700))  # one block, a whole block, three blocks with a rest
@pytest.mark.parametrize(
    ("tau", "top_k", "top_p"), ((1.0, 0, 1.0), (0.3, 0, 1.0), (1.3, 4, 1.0), (0.7, 0, 0.8), (1.0, 6, 0.5))
)
def test_evenly_spaced_numbers_give_the_distribution(size, tau, top_k, top_p):
    """4,000 evenly spaced u hit each token p · 4,000 times, up to one at either end of its interval."""
    rng = np.random.default_rng(size)
    logits, allowed = rng.normal(0, 2, size).astype(np.float32), rng.random(size) < 0.7
    count = 4000
    drawn = _draw(
        jnp.broadcast_to(logits, (count, size)),
        jnp.broadcast_to(allowed, (count, size)),
        jnp.asarray((np.arange(count) + 0.5) / count, jnp.float32),
        temperature=rows(count, tau),
        top_k=rows(count, top_k, np.int32),
        top_p=rows(count, top_p),
    )
    p = reference(logits, allowed, tau, top_k, top_p)
    hits = np.bincount(drawn.place, minlength=size)
    assert np.all(np.abs(hits - p * count) <= 2)
    assert not np.any(hits[p == 0])
    np.testing.assert_allclose(drawn.logp, np.log(p[np.asarray(drawn.place)]), atol=2e-5)
    plain = reference(logits, allowed, 1.0)
    np.testing.assert_allclose(drawn.entropy, -np.sum(plain * np.log(np.where(plain > 0, plain, 1))), atol=2e-5)


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-80, 80, width=32), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n).filter(any),
        )
    ),
    st.sampled_from([0.0, 0.5, 0.999999, float(np.nextafter(np.float32(1), np.float32(0)))]),
    st.sampled_from([0.0, 0.01, 1.0, 5.0]),
    st.integers(0, 5),
    st.sampled_from([1e-6, 0.5, 1.0]),
)
def test_only_allowed_tokens_are_drawn_at_any_number(row, uniform, tau, top_k, top_p):
    logits, allowed = np.full((1, 40), 99.0, np.float32), np.zeros((1, 40), bool)
    logits[0, : len(row[0])], allowed[0, : len(row[1])] = row
    drawn = _draw(
        logits,
        allowed,
        rows(1, uniform),
        temperature=rows(1, tau),
        top_k=rows(1, top_k, np.int32),
        top_p=rows(1, top_p),
    )
    index = int(drawn.place[0])
    assert allowed[0, index]
    assert np.isfinite(drawn.logp[0]) and drawn.logp[0] <= 1e-6 and np.isfinite(drawn.entropy[0])
    if top_k:
        better = np.sum(allowed[0] & (logits[0] > logits[0, index]))
        assert better < top_k
    if tau == 0:
        assert logits[0, index] == logits[0][allowed[0]].max() and drawn.logp[0] == 0


def test_filters_that_are_off_change_nothing():
    rng = np.random.default_rng(0)
    logits, allowed = rng.normal(0, 3, (64, 300)).astype(np.float32), rng.random((64, 300)) < 0.5
    uniform = rng.random(64).astype(np.float32)
    off = _draw(logits, allowed, uniform, temperature=rows(64, 0.7))
    on = _draw(logits, allowed, uniform, temperature=rows(64, 0.7), top_k=rows(64, 0, np.int32), top_p=rows(64, 1.0))
    for one, other in zip(off, on):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("depth", (0.0, -20.0, -50.0, -300.0))
def test_both_entropies_and_the_normaliser(depth):
    """Also where the allowed tokens lie far below the others, in some rows or in all."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (6, 400)).astype(np.float32)
    allowed = rng.random((6, 400)) < 0.3
    allowed[:, 0] = True
    logits[:3][allowed[:3]] += np.float32(depth)
    found = jax.jit(measure)(jnp.asarray(logits), jnp.asarray(allowed))
    z = logits.astype(np.float64)

    def truth(z):
        z = z - z.max(-1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)

    inside = np.where(allowed, z, -np.inf)
    np.testing.assert_allclose(found.normaliser, np.log(np.exp(z).sum(-1)), rtol=1e-6)
    np.testing.assert_allclose(found.entropy, truth(z), atol=2e-5)
    np.testing.assert_allclose(found.allowed_entropy, truth(inside), atol=2e-5)
    np.testing.assert_allclose(found.allowed_entropy, entropy(jnp.asarray(logits), jnp.asarray(allowed)), atol=2e-5)


@pytest.mark.parametrize("size", (1, 5, 256, 700))
def test_zero_temperature_takes_the_first_of_the_highest(size):
    """Few distinct values, so that the largest one is met several times, also in different blocks."""
    rng = np.random.default_rng(size)
    logits = rng.integers(-3, 3, (64, size)).astype(np.float32)
    allowed = rng.random((64, size)) < 0.7
    allowed[:, -1] = True
    drawn = _draw(jnp.asarray(logits), jnp.asarray(allowed), rows(64, 0.9), temperature=rows(64, 0.0))
    assert np.array_equal(drawn.place, np.where(allowed, logits, -np.inf).argmax(-1))
    assert not np.any(drawn.logp)
