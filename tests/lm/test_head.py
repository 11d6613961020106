"""Log-probabilities and entropies against float64 NumPy, their gradients, their memory, and the same on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax.errors import ConfigError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import candidate_log_probs, logits, token_log_probs, token_statistics
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules
from scaletot_jax.parallel.tpu.collectives import collectives

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


def _config(tied, words=V):
    return LMConfig(words, D, 4, 1, 1, 1, 2, tie_embeddings=tied)


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


@pytest.mark.parametrize("what", ["tokens", "statistics", "full", "candidates"])
def test_no_array_of_rows_times_vocabulary(what):
    """Read from the program itself, forward and backward: logits exist a chunk at a time, or not at all."""
    rows, chunk, words, columns, config = 96, 8, 300, 128, _config(True, 300)
    hidden, ids = jnp.ones((rows, D)), jnp.ones((rows, A), jnp.int32)
    cut = {"chunk": chunk, "columns": columns}

    def loss(params, hidden):
        if what == "tokens":
            return jnp.sum(token_log_probs(params, config, hidden, ids[:, 0], **cut))
        if what == "statistics":
            return sum(jnp.sum(part) for part in token_statistics(params, config, hidden, ids[:, 0], **cut))
        return jnp.sum(candidate_log_probs(params, config, hidden, ids, normalise=what, **cut))

    params = {"embed": jnp.ones((words, D))}
    for wanted in (None, 1, (0, 1)):
        function = loss if wanted is None else jax.value_and_grad(loss, wanted)
        shapes = set(_shapes(jax.make_jaxpr(function)(params, hidden)))
        assert max(np.prod(shape, dtype=int) for shape in shapes) <= max(words * D, rows * A * D)
        assert ((chunk, columns) in shapes) == (what != "candidates")
        assert not any(
            len(shape) == 2 and min(shape) >= chunk and words in shape and D not in shape for shape in shapes
        )
        if wanted == 1 and what != "candidates":
            assert (words, D) not in shapes, "the gradient of a frozen head is computed"
    naive = jax.make_jaxpr(lambda params, hidden: jax.nn.log_softmax(logits(params, config, hidden)))
    assert (rows, words) in set(_shapes(naive(params, hidden)))  # the reader of programs does see one


# -- the fused form against the plain one --------------------------------------------------------------------------------

WORDS = 300
BIG_WEIGHT = RNG.normal(size=(WORDS, D)).astype(np.float32)
BIG_IDS = RNG.integers(0, WORDS, (N, A))
BIG_IDS[:, 0] = np.arange(N) * 8 % WORDS  # every chunk and every part of the vocabulary is asked for
BIG_IDS[2:9, 1:] = -1
COTANGENT = RNG.normal(size=(N, A)).astype(np.float32)


def _plain(weight, hidden, softcap):
    """Log-probabilities [N, A] and entropies [N] with all logits at once."""
    scores = hidden @ weight.T
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    log_probs = jax.nn.log_softmax(scores)
    return jnp.take_along_axis(log_probs, BIG_IDS.clip(0), axis=1), -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def _fused(weight, hidden, tied, softcap=None, **how):
    config = _config(tied, WORDS)
    params = {"embed": weight} if tied else {"embed": weight, "head": weight.T}
    many = candidate_log_probs(params, config, hidden, BIG_IDS, normalise="full", softcap=softcap, **how)
    one, entropy = token_statistics(params, config, hidden, jnp.asarray(BIG_IDS[:, 0]), softcap=softcap, **how)
    return many, one, entropy


def _objective(outputs):
    many, one, entropy = outputs
    chosen = jnp.sum(jnp.where(BIG_IDS >= 0, many * COTANGENT, 0.0))
    return chosen + jnp.sum(one * COTANGENT[:, 1]) + jnp.sum(entropy * COTANGENT[:, 2])


@pytest.mark.parametrize(
    ("tied", "softcap", "chunk", "columns"),
    [(True, None, 16, 128), (False, None, 64, 128), (True, 3.0, 16, 256), (False, 3.0, N, WORDS)],
)
def test_fused_equals_naive(tied, softcap, chunk, columns):
    """Rows that do not divide, a last chunk of columns that overlaps, unused places, values and gradients to 1e-5."""

    def fused(weight, hidden):
        outputs = _fused(weight, hidden, tied, softcap, chunk=chunk, columns=columns)
        return _objective(outputs), outputs

    def plain(weight, hidden):
        many, entropy = _plain(weight, hidden, softcap)
        return _objective((many, many[:, 0], entropy))

    run = jax.jit(jax.value_and_grad(fused, (0, 1), has_aux=True))
    (_, (many, one, entropy)), gradients = run(BIG_WEIGHT, HIDDEN)
    expected, expected_entropy = _plain(BIG_WEIGHT.astype(np.float64), HIDDEN.astype(np.float64), softcap)
    used = BIG_IDS >= 0
    np.testing.assert_allclose(np.asarray(many)[used], np.asarray(expected)[used], atol=1e-5)
    np.testing.assert_allclose(one, expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(entropy, expected_entropy, atol=1e-5)
    for ours, theirs in zip(gradients, jax.jit(jax.grad(plain, (0, 1)))(BIG_WEIGHT, HIDDEN)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_bfloat16_gives_float32_statistics():
    config, params = _config(True, WORDS), {"embed": jnp.asarray(BIG_WEIGHT, jnp.bfloat16)}
    ids = jnp.asarray(BIG_IDS[:, 0])
    logps, entropy = token_statistics(params, config, jnp.asarray(HIDDEN), ids, chunk=16, columns=128)
    assert logps.dtype == entropy.dtype == jnp.float32
    expected, expected_entropy = _plain(BIG_WEIGHT, HIDDEN, None)
    np.testing.assert_allclose(logps, expected[:, 0], atol=0.1)
    np.testing.assert_allclose(entropy, expected_entropy, atol=0.1)
    by_weight = jax.grad(lambda w: jnp.sum(token_log_probs({"embed": w}, config, HIDDEN, ids, chunk=16)))
    assert by_weight(params["embed"]).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("tied", "mesh", "rules", "repeats"),
    [
        (True, dict(fsdp=8), ShardingRules(), 1),  # parts of the width are exchanged for parts of the vocabulary
        (False, dict(data=2, fsdp=2, tensor=2), ShardingRules(), 16),  # more rows than columns: the weight is gathered
        (False, dict(data=2, fsdp=2, tensor=2), ShardingRules(batch=("data",)), 1),
    ],
)
def test_on_a_mesh_equals_one_device(tied, mesh, rules, repeats):
    """Values and gradients with rows and columns that do not divide; no communication inside a loop."""
    config, ids = _config(tied, WORDS), jnp.tile(jnp.asarray(BIG_IDS), (repeats, 1))

    def loss(weight, hidden, rules=None):
        hidden = jnp.tile(hidden, (repeats, 1))
        params = {"embed": weight} if tied else {"embed": weight, "head": weight.T}
        few = candidate_log_probs(params, config, hidden, ids, normalise="candidates", rules=rules, chunk=16)
        one, entropy = token_statistics(params, config, hidden, ids[:, 0], chunk=16, columns=128, rules=rules)
        weights = jnp.cos(jnp.arange(len(one)))
        used = jnp.sum(jnp.where(ids >= 0, few * weights[:, None], 0.0))
        return used + jnp.sum((one + entropy) * weights), (few, one, entropy)

    expected = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(BIG_WEIGHT, HIDDEN)
    with jax.set_mesh(make_mesh(**mesh)):
        run = jax.jit(jax.value_and_grad(functools.partial(loss, rules=rules), (0, 1), has_aux=True))
        compiled = run.lower(BIG_WEIGHT, HIDDEN).compile()
        found = compiled(BIG_WEIGHT, HIDDEN)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    listed = collectives(compiled.as_text())
    assert listed and not [one for one in listed if one.depth], "communication inside a loop of the head"


def test_rules_without_a_mesh_are_refused():
    with pytest.raises(ConfigError, match="without a mesh"):
        token_log_probs(_params(True), _config(True), HIDDEN, TARGETS, rules=ShardingRules())
