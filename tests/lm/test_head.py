"""Log-probabilities against float64 NumPy, their gradients, and the memory they take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import candidate_log_probs, logits, token_log_probs

N, D, V, A = 37, 8, 50, 4
RNG = np.random.default_rng(2)
HIDDEN = RNG.normal(size=(N, D)).astype(np.float32)
WEIGHT = RNG.normal(size=(V, D)).astype(np.float32)
TARGETS = RNG.integers(0, V, N)
CANDIDATES = np.stack([RNG.permutation(V)[:A] for _ in range(N)])
CANDIDATES[::3, 2:] = -1
CANDIDATES[5] = [-1, 7, -1, 3]
CANDIDATES[6] = [9, -1, -1, -1]
CANDIDATES[7] = -1
USED = CANDIDATES >= 0


def _config(tied):
    return LMConfig(V, D, 4, 1, 1, 1, 2, tie_embeddings=tied)


def _params(tied, weight=WEIGHT):
    return {"embed": jnp.asarray(weight)} if tied else {"embed": jnp.zeros((V, D)), "head": jnp.asarray(weight).T}


def _naive(weight, hidden, normalise):
    """[N, A] log-probabilities in float64, −inf at unused places."""
    scores = hidden.astype(np.float64) @ weight.astype(np.float64).T
    out = np.full((len(hidden), A), -np.inf)
    for row, ids in enumerate(CANDIDATES):
        pool = scores[row] if normalise == "full" else scores[row, ids[ids >= 0]]
        for place, token in enumerate(ids):
            if token >= 0:
                out[row, place] = scores[row, token] - np.log(np.exp(pool).sum())
    return out


def _naive_gradients(weight, hidden, cotangent, normalise):
    """d/d(hidden, weight) of Σ cotangent · log p, by ∂ log p(a)/∂ score = 1[a] − p."""
    weight, hidden = weight.astype(np.float64), hidden.astype(np.float64)
    scores = hidden @ weight.T
    by_score = np.zeros_like(scores)
    for row, ids in enumerate(CANDIDATES):
        listed = ids[ids >= 0]
        pool = np.arange(V) if normalise == "full" else listed
        p = np.exp(scores[row, pool]) / np.exp(scores[row, pool]).sum()
        for place, token in enumerate(ids):
            if token >= 0:
                by_score[row, token] += cotangent[row, place]
                by_score[row, pool] -= cotangent[row, place] * p
    return by_score @ weight, by_score.T @ hidden


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 16, N, 1000])
def test_token_log_probs(tied, chunk):
    config, params = _config(tied), _params(tied)
    scores = HIDDEN.astype(np.float64) @ WEIGHT.T
    expected = scores[np.arange(N), TARGETS] - np.log(np.exp(scores).sum(axis=1))
    run = jax.jit(functools.partial(token_log_probs, config=config, chunk=chunk))
    np.testing.assert_allclose(run(params, hidden=HIDDEN, targets=TARGETS), expected, atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(logits(params, config, jnp.asarray(HIDDEN)), scores, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("normalise", ["full", "candidates"])
@pytest.mark.parametrize("chunk", [16, 1000])
def test_candidate_log_probs_and_gradients(tied, normalise, chunk):
    config = _config(tied)
    cotangent = RNG.normal(size=(N, A))

    def loss(weight, hidden):
        out = candidate_log_probs(_params(tied, weight), config, hidden, CANDIDATES, normalise=normalise, chunk=chunk)
        # As a careless caller would: −inf times a weight, masked afterwards.
        return jnp.sum(jnp.where(USED, out * cotangent, 0.0)), out

    (_, out), (by_weight, by_hidden) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(WEIGHT, HIDDEN)
    expected = _naive(WEIGHT, HIDDEN, normalise)
    assert np.array_equal(np.isneginf(out), ~USED)
    np.testing.assert_allclose(out, expected, atol=5e-6, rtol=1e-5)
    hidden_gradient, weight_gradient = _naive_gradients(WEIGHT, HIDDEN, cotangent, normalise)
    np.testing.assert_allclose(by_hidden, hidden_gradient, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(by_weight, weight_gradient, atol=1e-5, rtol=1e-4)
    if normalise == "candidates":
        used_rows = USED.any(axis=1)
        np.testing.assert_allclose(np.exp(out).sum(axis=1)[used_rows], 1.0, atol=1e-6)
        assert np.abs(out[6, 0]) < 1e-6  # a single alternative is certain


def test_candidates_agree_with_token_log_probs():
    config, params = _config(True), _params(True)
    one = token_log_probs(params, config, HIDDEN, TARGETS)
    many = candidate_log_probs(params, config, HIDDEN, TARGETS[:, None], normalise="full")
    np.testing.assert_allclose(one, many[:, 0], atol=1e-5)


def test_large_scores_do_not_overflow():
    config = _config(True)
    hidden = jnp.asarray(HIDDEN * 1e4)
    for normalise in ("full", "candidates"):

        def loss(hidden, normalise=normalise):
            out = candidate_log_probs(_params(True), config, hidden, CANDIDATES, normalise=normalise)
            return jnp.sum(jnp.where(USED, out, 0.0))

        value, gradient = jax.value_and_grad(loss)(hidden)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalise"):
        candidate_log_probs(_params(True), _config(True), HIDDEN, CANDIDATES, normalise="vocabulary")


def _shapes(value):
    """Shapes of every array in a jaxpr and the jaxprs inside it."""
    if hasattr(value, "jaxpr") and not hasattr(value, "eqns"):
        value = value.jaxpr
    if hasattr(value, "eqns"):
        for equation in value.eqns:
            yield from (variable.aval.shape for variable in equation.outvars)
            for inner in equation.params.values():
                for item in inner if isinstance(inner, (tuple, list)) else (inner,):
                    yield from _shapes(item)


@pytest.mark.parametrize("what", ["tokens", "full", "candidates"])
def test_no_array_of_rows_times_vocabulary(what):
    """Read from the program itself, forward and backward: logits exist a chunk at a time, or not at all."""
    rows, chunk, config = 96, 8, _config(True)
    hidden, ids = jnp.ones((rows, D)), jnp.ones((rows, A), jnp.int32)

    def loss(params, hidden):
        if what == "tokens":
            return jnp.sum(token_log_probs(params, config, hidden, ids[:, 0], chunk=chunk))
        return jnp.sum(candidate_log_probs(params, config, hidden, ids, normalise=what, chunk=chunk))

    for function in (loss, jax.value_and_grad(loss, (0, 1))):
        shapes = set(_shapes(jax.make_jaxpr(function)(_params(True), hidden)))
        assert max(np.prod(shape, dtype=int) for shape in shapes) < rows * V
        assert ((chunk, V) in shapes) == (what != "candidates")
    naive = jax.make_jaxpr(lambda params, hidden: jax.nn.log_softmax(logits(params, config, hidden)))
    assert (rows, V) in set(_shapes(naive(_params(True), hidden)))  # the reader of programs does see one
