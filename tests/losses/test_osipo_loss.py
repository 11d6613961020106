"""The policy loss and the implicit reward loss: values, gradients, precision, masks, misuse."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses import reference
from losses.cases import batches, central_difference, compiled, compiled_gradient, finite, float64, make_batch

from scaletot_jax.losses import PADDING, implicit_reward_loss, osipo_loss, segment_rewards

RATIOS = "segment", "token", "sequence"
AGGREGATIONS = "segment_mean", "token_mean", "sequence_mean", "constant"


@pytest.mark.parametrize(("ratio", "aggregation"), list(itertools.product(RATIOS, AGGREGATIONS)))
def test_value_equals_the_loop_reference(ratio, aggregation):
    for seed in range(12):
        batch = make_batch(seed)
        answer = "outcome" if seed % 3 == 0 else "zero"
        if seed % 2:  # some chains without structural tokens
            bare = (np.arange(len(batch.ids)) % 2 == 0)[:, None] & (batch.ids == -1)
            batch = batch._replace(ids=np.where(bare, PADDING, batch.ids))
        with float64():
            function = compiled(osipo_loss, aggregation=aggregation, ratio=ratio, num_segments=3, answer=answer)
            arguments = batch.logps, batch.old, batch.advantages, batch.ids
            loss, metrics = function(*arguments, ref_logps=batch.ref, kl_weight=0.3, clip_low=0.1, constant=7.0)
        expected = reference.osipo_loss(
            *arguments, aggregation=aggregation, num_segments=3, ratio=ratio, ref=batch.ref,
            kl_weight=0.3, clip_low=0.1, answer=answer, constant=7.0,
        )  # fmt: skip
        np.testing.assert_allclose(loss, expected, atol=1e-12)
        assert loss.dtype == np.float64
        assert 0 <= float(metrics["clip_fraction"]) <= 1 and float(metrics["kl"]) >= 0


@pytest.mark.parametrize(("ratio", "aggregation"), list(zip(RATIOS, AGGREGATIONS[:3], strict=True)))
def test_gradient_equals_finite_differences(ratio, aggregation):
    """With one advantage a ratio's unit, where the gradient of the stop-gradient form is that of the value."""
    for seed in range(4):
        batch = make_batch(seed, poison=False)
        credit = reference.real_tokens(batch.ids, 3)
        advantages = batch.advantages.copy()
        for i, t in zip(*np.nonzero(credit), strict=True):
            advantages[i, t] = advantages[i, reference.units(batch.ids, i, t, ratio, credit)[0]]
        options = dict(aggregation=aggregation, ratio=ratio, num_segments=3, kl_weight=0.2)
        arguments = batch.logps, batch.old, advantages, batch.ids, batch.ref
        with float64():
            _, gradient = compiled_gradient(with_reference, **options)(*arguments)
            numeric = central_difference(with_reference, *arguments, **options)
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)


def test_divergences_are_unbiased_under_the_policy_that_sampled():
    """π_old is uniform over four tokens and drew each of them once, so a mean over tokens is its expectation."""
    policy, ref = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.4, 0.1, 0.1])
    with float64():
        _, metrics = compiled(osipo_loss, aggregation="token_mean", num_segments=1)(
            np.log(policy)[:, None], np.log(np.full((4, 1), 0.25)), np.ones((4, 1)), np.zeros((4, 1), np.int32),
            ref_logps=np.log(ref)[:, None],
        )  # fmt: skip
    np.testing.assert_allclose(metrics["kl"], np.sum(policy * np.log(policy / ref)), rtol=1e-12)
    np.testing.assert_allclose(metrics["old_kl"], np.mean(np.log(0.25 / policy)), rtol=1e-12)


def with_reference(logps, old, advantages, ids, ref, **options):
    return osipo_loss(logps, old, advantages, ids, ref_logps=ref, **options)


def test_a_shared_ratio_keeps_each_tokens_own_advantage():
    ids = np.array([[0, 0, 1, 1]])
    logps, advantages = np.full((1, 4), -1.0), np.array([[1.0, 1.0, -2.0, -2.0]])
    function = compiled_gradient(osipo_loss, aggregation="token_mean", ratio="sequence", num_segments=2)
    _, gradient = function(logps, logps, advantages, ids)
    np.testing.assert_allclose(gradient, -advantages / 4, rtol=1e-6)


def test_clipping_by_hand():
    """A > 0 clips above 1.28, A < 0 below 0.8; a clipped token has no gradient; the other side is never clipped."""
    ratios = np.array([[1.5, 1.5, 0.5, 0.5]])
    advantages = np.array([[1.0, -1.0, 1.0, -1.0]])
    function = compiled_gradient(osipo_loss, aggregation="constant", ratio="token", num_segments=1)
    (value, metrics), gradient = function(np.log(ratios), np.zeros((1, 4)), advantages, np.zeros((1, 4), int))
    np.testing.assert_allclose(value, -1.28 + 1.5 - 0.5 + 0.8, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.0, 1.5, -0.5, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_fraction"], 0.5)


def test_far_apart_policies_stay_finite():
    logps, old = np.array([[0.0, -400.0, -1.0]]), np.array([[-400.0, 0.0, -1.0]])
    ids, advantages = np.array([[0, 0, 1]]), np.array([[-1.0, 1.0, 1.0]])
    for ratio in RATIOS:
        options = dict(aggregation="segment_mean", ratio=ratio, num_segments=2, kl_weight=0.1)
        (value, _), gradient = compiled_gradient(with_reference, **options)(logps, old, advantages, ids, old)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@given(batches, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_nothing_leaks_from_padding_or_the_answer(batch, poison):
    outside = ~reference.real_tokens(batch.ids, batch.num_segments)
    function = compiled_gradient(
        with_reference, aggregation="segment_mean", num_segments=batch.num_segments, kl_weight=0.1
    )
    results = []
    for filler in (poison, 0.0):
        logps, old, advantages, ref = (
            np.where(outside, filler, x) for x in (batch.logps, batch.old, batch.advantages, batch.ref)
        )
        results.append(jax.tree.leaves(function(logps, old, advantages, batch.ids, ref)))
    for poisoned, clean in zip(*results, strict=True):
        assert np.isfinite(poisoned).all()
        np.testing.assert_array_equal(poisoned, clean)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_batch_costs_nothing(aggregation):
    batch = make_batch(0)
    ids = np.full_like(batch.ids, PADDING)
    function = compiled_gradient(osipo_loss, aggregation=aggregation, num_segments=3)
    (value, _), gradient = function(np.full_like(batch.logps, np.nan), batch.old, batch.advantages, ids)
    assert value == 0 and not np.asarray(gradient).any()


def test_micro_batches_accumulate_to_the_full_batch():
    """Sums and counts, divided once: uneven micro-batches give the loss of the whole."""
    batch = make_batch(11)
    arrays = batch.logps, batch.old, batch.advantages
    for aggregation in AGGREGATIONS:
        with float64():
            function = compiled(osipo_loss, aggregation=aggregation, ratio="segment", num_segments=3, answer="zero")
            whole, _ = function(*arrays, batch.ids)
            total = count = 0.0
            for rows in ([0], [1, 2, 3], [4, 5]):
                part = np.where(np.isin(np.arange(6), rows)[:, None], batch.ids, PADDING)
                loss, metrics = function(*arrays, part)
                total, count = total + float(loss * metrics["count"]), count + float(metrics["count"])
        np.testing.assert_allclose(total / count, whole, atol=1e-12)


def test_bfloat16_gives_float32_and_vmap_equals_a_loop():
    batch = make_batch(2)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (batch.logps, batch.old, batch.advantages)]
    function = compiled(osipo_loss, aggregation="token_mean", num_segments=3)
    loss, metrics = function(*arrays, batch.ids)
    assert loss.dtype == jnp.float32 and all(value.dtype == jnp.float32 for value in metrics.values())
    assert loss == function(*[x.astype(jnp.float32) for x in arrays], batch.ids)[0]
    several = [make_batch(seed) for seed in range(3)]
    stacked = [np.stack([getattr(b, name) for b in several]) for name in ("logps", "old", "advantages", "ids")]
    together = jax.vmap(functools.partial(osipo_loss, aggregation="token_mean", num_segments=3))
    losses = jax.jit(together)(*stacked)[0]
    for n, one in enumerate(several):
        np.testing.assert_allclose(losses[n], function(one.logps, one.old, one.advantages, one.ids)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(aggregation="mean"), "aggregation must be one of 'segment_mean'"),
        (dict(aggregation="token_mean", ratio="word"), "ratio must be one of"),
        (dict(aggregation="token_mean", answer="?"), "answer must be one of"),
        (dict(aggregation="token_mean", kl_weight=0.1), "kl_weight needs ref_logps"),
        (dict(aggregation="token_mean", num_segments=0), "num_segments must be a Python int"),
        (dict(aggregation="token_mean", ref_logps=np.zeros(3)), "ref_logps must have shape"),
    ],
)
def test_misuse_is_refused(options, message):
    batch = make_batch(0)
    with pytest.raises(ValueError, match=message):
        osipo_loss(batch.logps, batch.old, batch.advantages, batch.ids, **({"num_segments": 3} | options))


def test_aggregation_has_no_default():
    batch = make_batch(0)
    with pytest.raises(TypeError, match="aggregation"):
        osipo_loss(batch.logps, batch.old, batch.advantages, batch.ids, num_segments=3)


@pytest.mark.parametrize("boundary_weights", ["uniform", "last"])
@pytest.mark.parametrize("shift", [True, False])
def test_implicit_reward_loss_equals_the_loop_reference_and_finite_differences(boundary_weights, shift):
    options = dict(num_segments=3, beta=0.5, boundary_weights=boundary_weights, shift=shift)
    for seed in range(4):
        batch = make_batch(seed)
        outcomes = batch.outcomes * 1.4 - 0.2  # some are clipped
        complete = np.random.default_rng(seed).random(len(outcomes)) < 0.7
        arguments = batch.ref, batch.ids, outcomes, batch.groups
        with float64():
            (value, _), gradient = compiled_gradient(of_complete, **options)(batch.prm, *arguments, complete)
            numeric = central_difference(of_complete, finite(batch.prm), *arguments, complete, **options)
        expected = reference.implicit_reward_loss(batch.prm, *arguments, complete=complete, **options)
        np.testing.assert_allclose(value, expected, atol=1e-12)
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)


def of_complete(prm, ref, ids, outcomes, groups, complete, **options):
    return implicit_reward_loss(prm, ref, ids, outcomes, groups, complete=complete, **options)


def test_incomplete_chains_teach_nothing_even_if_they_are_not_numbers():
    batch = make_batch(4)
    complete = np.array([True, False, True, False, True, True])
    broken = np.where(complete[:, None], batch.prm, np.nan)
    outcomes = np.where(complete, batch.outcomes, np.nan)
    function = compiled_gradient(of_complete, num_segments=3, beta=0.5, boundary_weights="uniform", shift=True)
    (value, _), gradient = function(broken, batch.ref, batch.ids, outcomes, batch.groups, complete)
    clean = function(batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups, complete)
    np.testing.assert_array_equal(value, clean[0][0])
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~complete].any()
    nobody = np.zeros(6, bool)
    (value, _), gradient = function(broken, batch.ref, batch.ids, outcomes, batch.groups, nobody)
    assert value == 0 and not np.asarray(gradient).any()


def test_reward_hidden_on_delimiters_is_reported():
    ids = np.array([[0, -1, 1, -2]])
    prm, ref = np.array([[1.0, 3.0, 0.0, 0.0]]), np.zeros((1, 4))
    function = compiled(implicit_reward_loss, num_segments=2, beta=1.0)
    _, metrics = function(prm, ref, ids, np.ones(1), np.zeros(1, int))
    np.testing.assert_allclose(metrics["structural_share"], 0.75)
    np.testing.assert_allclose(metrics["value"], 1.0)


def test_accuracy_is_about_the_order_within_a_group():
    """Values 1, -1, 0 against the group's mean; the second group is equal, its chains are neither better nor worse."""
    prm, ids = np.array([[1.0], [-1.0], [0.0], [2.0], [3.0]]), np.zeros((5, 1), int)
    groups, outcomes = np.array([0, 0, 0, 1, 1]), np.array([0.97, 0.95, 0.93, 0.9, 0.9])
    function = compiled(implicit_reward_loss, num_segments=1, beta=1.0)
    _, metrics = function(prm, np.zeros((5, 1)), ids, outcomes, groups)
    np.testing.assert_allclose(metrics["accuracy"], (1 + 0.5) / 2)  # the second lies at the mean
    _, metrics = function(prm[3:], np.zeros((2, 1)), ids[3:], outcomes[3:], groups[3:])
    assert metrics["accuracy"] == 0
    absolute = compiled(implicit_reward_loss, num_segments=1, beta=1.0, shift=False)
    _, metrics = absolute(prm, np.zeros((5, 1)), ids, outcomes, groups)
    np.testing.assert_allclose(metrics["accuracy"], (1 + 0 + 0.5 + 1 + 1) / 5)


def test_implicit_reward_misuse_is_refused():
    batch = make_batch(0)
    arguments = batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups
    with pytest.raises(ValueError, match="boundary_weights must be one of"):
        implicit_reward_loss(*arguments, num_segments=3, beta=1.0, boundary_weights="first")
    with pytest.raises(ValueError, match="complete must have shape"):
        implicit_reward_loss(*arguments, num_segments=3, beta=1.0, complete=np.ones(2, bool))
    with pytest.raises(ValueError, match="prm_logps must have shape"):
        segment_rewards(batch.prm[:, :-1], batch.ref, batch.ids, num_segments=3, beta=1.0)


def test_implicit_reward_of_bfloat16_is_float32():
    batch = make_batch(0)
    prm, ref = jnp.asarray(batch.prm, jnp.bfloat16), jnp.asarray(batch.ref, jnp.bfloat16)
    (loss, metrics), gradient = compiled_gradient(implicit_reward_loss, num_segments=3, beta=0.5)(
        prm, ref, batch.ids, batch.outcomes, batch.groups
    )
    assert loss.dtype == jnp.float32 and all(value.dtype == jnp.float32 for value in metrics.values())
    assert gradient.dtype == jnp.bfloat16  # as the parameter it belongs to
