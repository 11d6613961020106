"""Quantiles against float64 oracles: enumeration for days, a fine inversion of the mixture's CDF for money."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from scaletot_jax.losses.ltv import hurdle_distribution
from scaletot_jax.population.forward import LEVELS, TargetSpec, head_logits, read_label
from scaletot_jax.population.quantiles import hurdle_quantiles, ziln_quantiles

hurdle, ziln = (jax.jit(f, static_argnames="levels") for f in (hurdle_quantiles, ziln_quantiles))
DAYS = TargetSpec("lt30", "days", 30, 30.0, ((1.0,),))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_days_against_enumeration():
    logits = np.random.default_rng(0).normal(size=(200, 3, 30)) * 2
    distribution = np.asarray(hurdle_distribution(jnp.asarray(logits, jnp.float32)), np.float64).mean(1)
    label = jax.jit(read_label, static_argnums=0)(DAYS, jnp.asarray(logits, jnp.float32))
    for row, got in zip(distribution / distribution.sum(1, keepdims=True), np.asarray(label.quantiles)):
        for q, day in zip(LEVELS, got.astype(int)):
            assert row[: day + 1].sum() >= q - 1e-6 and (day == 0 or row[:day].sum() < q + 1e-6)
    np.testing.assert_allclose(label.mean, distribution @ np.arange(31), rtol=1e-5)
    np.testing.assert_allclose(label.positive, 1 - distribution[:, 0], atol=1e-6)


def test_days_of_a_point_mass():
    for day in (0, 1, 17, 30):
        got = hurdle((jnp.arange(30) < day).astype(jnp.float32)[None], levels=LEVELS)
        assert got.tolist() == [[day] * 3]


def oracle(p, mean, sigma, q):
    zero = np.mean(1 - p)
    if zero >= q:
        return 0.0
    excess = lambda t: zero + np.mean(p * norm.cdf((t - mean) / sigma)) - q  # noqa: E731
    return float(np.exp(brentq(excess, -60, 60, xtol=1e-12)))


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-2, 5), st.floats(-3, 2)), min_size=3, max_size=3),
    st.sampled_from(LEVELS),
)
def test_money_against_a_fine_inversion(seeds, q):
    logits = np.asarray(seeds, np.float32)
    p, mean, sigma = sigmoid(logits[:, 0]), logits[:, 1].astype(float), np.log1p(np.exp(logits[:, 2].astype(float)))
    got = float(ziln(jnp.asarray(logits)[None], levels=LEVELS)[0, LEVELS.index(q)])
    want = oracle(p, mean, sigma, q)
    if abs(np.mean(1 - p) - q) > 1e-4:  # at the step itself the two may fall on either side
        np.testing.assert_allclose(got, want, rtol=2e-3)
        # the definition, more exactly than the value where the CDF is flat
        if got > 0:
            np.testing.assert_allclose(np.mean(1 - p + p * norm.cdf((np.log(got) - mean) / sigma)), q, atol=2e-6)


def test_one_seed_is_the_closed_form():
    got = ziln(jnp.asarray([[[0.4, 1.5, 0.2]]]), levels=LEVELS)[0]
    p, sigma = sigmoid(0.4), np.log1p(np.exp(0.2))
    want = [0 if q <= 1 - p else np.exp(1.5 + sigma * norm.ppf((q - 1 + p) / p)) for q in LEVELS]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_money_is_capped_by_the_largest_label_ever_seen():
    target = TargetSpec("ltv", "value", 0, 50.0, ((1.0,),))
    label = read_label(target, jnp.asarray([[[4.0, 8.0, 2.0], [4.0, 0.0, 0.0]]]))
    assert label.quantiles.max() == 50 and 25 < float(label.mean[0]) < 50


def test_heads_side_by_side_are_the_module(served):
    from scaletot_jax.evaluation.heads import Fitted, predict_heads

    x = np.random.default_rng(1).normal(size=(20, len(served.params["scaler"]["mean"]))).astype(np.float32)
    for target, params in zip(served.spec.targets, served.params["heads"]):
        fitted = Fitted(params, *[np.zeros(0)] * 3)
        want = predict_heads(fitted, x, width=params["hidden"]["bias"].shape[-1], mixing=target.mixing)
        got = jax.jit(head_logits, static_argnums=1)(params, target.mixing, jnp.asarray(x))
        np.testing.assert_allclose(got, want.transpose(1, 0, 2), atol=2e-5)
