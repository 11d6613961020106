"""The seventeen invariants of OSIPO, each as a property over random batches (float64 unless it says otherwise)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses import reference
from losses.cases import (
    batches,
    call,
    compiled,
    compiled_gradient,
    even_groups,
    finite,
    float64,
    make_batch,
    plain_text,
)

from scaletot_jax.losses import (
    PADDING,
    implicit_reward_loss,
    osipo_advantages,
    osipo_loss,
    prime_advantages,
    segment_rewards,
)

EXACT = dict(scale=None, clip=None)  # no scale, no clipping: the bare estimator


def rewards_of(batch, beta=0.5):
    return call(compiled, segment_rewards, batch.prm, batch.ref, batch.ids, num_segments=batch.num_segments, beta=beta)


def advantages_of(batch, beta=0.5, **options):
    options = {"process_weight": 0.1, "gamma": 0.0} | options
    arguments = *rewards_of(batch, beta), batch.outcomes, batch.groups, batch.ids
    return np.asarray(call(compiled, osipo_advantages, *arguments, **options))


def gradient_of(batch, advantages=None, old=None, **options):
    """Loss, metrics and gradient by the log-probabilities."""
    options = {"aggregation": "segment_mean", "num_segments": batch.num_segments} | options
    old = batch.old if old is None else old
    advantages = batch.advantages if advantages is None else advantages
    arguments = batch.logps, old, advantages, batch.ids
    (loss, metrics), gradient = call(compiled_gradient, osipo_loss, *arguments, **options)
    return float(loss), {name: float(value) for name, value in metrics.items()}, np.asarray(gradient)


def reward_loss_of(batch, **options):
    options = {"num_segments": batch.num_segments, "beta": 0.5} | options
    arguments = batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups
    return float(call(compiled, implicit_reward_loss, *arguments, **options)[0])


def permuted(batch, order):
    arrays = [x[order] if isinstance(x, np.ndarray) else x for x in batch]
    return type(batch)(*arrays)


def widened(batch, columns=4):
    """Extra columns of padding full of NaN."""

    def wider(x):
        fill = PADDING if x.dtype == np.int32 else np.nan
        return np.concatenate([x, np.full((len(x), columns), fill, x.dtype)], 1)

    return type(batch)(*[wider(x) if isinstance(x, np.ndarray) and x.ndim == 2 else x for x in batch])


@given(batches)
def test_01_segment_rewards_add_up_to_the_log_ratio_of_the_response(batch):
    with float64():
        rewards, _ = rewards_of(batch)
    difference = finite(batch.prm) - finite(batch.ref)
    whole = (difference * (batch.ids != -3)).sum(1)
    outside = (difference * ((batch.ids == -1) | (batch.ids == -2))).sum(1)
    np.testing.assert_allclose(np.asarray(rewards).sum(1) + 0.5 * outside, 0.5 * whole, atol=1e-12)


@given(batches, st.sampled_from(["loo", "group_mean"]))
def test_02_advantages_sum_to_zero_over_each_group_and_segment_type(batch, baseline):
    with float64():
        outcome = advantages_of(batch, process_weight=0.0, baseline=baseline, **EXACT)
        process = advantages_of(batch, outcome_weight=0.0, process_weight=1.0, baseline=baseline, **EXACT)
    for label in np.unique(batch.groups):
        mine = batch.groups == label
        first = [outcome[i][batch.ids[i] == -1][:1].sum() for i in np.flatnonzero(mine)]  # every live chain has one
        assert abs(sum(first)) < 1e-12
        for k in range(batch.num_segments):
            each = [process[i][batch.ids[i] == k][:1].sum() for i in np.flatnonzero(mine)]
            assert abs(sum(each)) < 1e-12


@given(plain_text)
def test_03_one_segment_without_process_is_rloo_drgrpo_and_grpo(batch):
    n = 4
    mean = np.array([batch.outcomes[batch.groups == g].mean() for g in batch.groups])
    std = np.array([batch.outcomes[batch.groups == g].std(ddof=1) for g in batch.groups])
    tokens = batch.ids == 0
    with float64():
        rloo = advantages_of(batch, process_weight=0.0, **EXACT)
        dr_grpo = advantages_of(batch, process_weight=0.0, baseline="group_mean", **EXACT)
        grpo = advantages_of(
            batch, process_weight=0.0, baseline="group_mean", scale="group_std", min_scale=1e-6, clip=None
        )
    np.testing.assert_allclose(rloo, tokens * (n / (n - 1) * (batch.outcomes - mean))[:, None], atol=1e-12)
    np.testing.assert_allclose(dr_grpo, rloo * (n - 1) / n, atol=1e-12)
    np.testing.assert_allclose(grpo, tokens * ((batch.outcomes - mean) / (std + 1e-6))[:, None], rtol=1e-9)


@given(batches, st.floats(-0.125, 1.0, width=32), st.sampled_from(["batch_rms", "group_std", None]))
def test_04_equal_outcomes_without_process_teach_exactly_nothing(batch, outcome, scale):
    equal = batch._replace(outcomes=np.full_like(batch.outcomes, outcome).astype(np.float32))
    assert not advantages_of(equal, process_weight=0.0, scale=scale).any()  # float32, and exactly 0
    zero = advantages_of(equal, beta=0.0, process_weight=1.0, scale=scale)
    assert not zero.any()
    loss, _, gradient = gradient_of(batch, advantages=zero)
    assert loss == 0 and not gradient.any()


@given(batches, st.sampled_from(["segment_mean", "token_mean"]))
def test_05_padding_columns_change_neither_advantages_nor_loss_nor_gradient(batch, aggregation):
    wide, width = widened(batch), batch.ids.shape[1]
    with float64():
        narrow_advantages, wide_advantages = advantages_of(batch), advantages_of(wide)
        np.testing.assert_allclose(wide_advantages[:, :width], narrow_advantages, atol=1e-13)
        assert not wide_advantages[:, width:].any()
        value, _, gradient = gradient_of(batch, aggregation=aggregation)
        wide_value, _, wide_gradient = gradient_of(wide, aggregation=aggregation)
    np.testing.assert_allclose(wide_value, value, atol=1e-13)
    np.testing.assert_allclose(wide_gradient[:, :width], gradient, atol=1e-13)
    assert not wide_gradient[:, width:].any()


@given(batches, st.integers(0, 10**6))
def test_06_permuting_the_batch_permutes_the_advantages_and_keeps_the_losses(batch, seed):
    order = np.random.default_rng(seed).permutation(len(batch.ids))
    shuffled = permuted(batch, order)
    with float64():
        np.testing.assert_allclose(advantages_of(shuffled), advantages_of(batch)[order], atol=1e-12)
        np.testing.assert_allclose(gradient_of(shuffled)[0], gradient_of(batch)[0], atol=1e-12)
        np.testing.assert_allclose(reward_loss_of(shuffled), reward_loss_of(batch), atol=1e-12)


@given(even_groups, st.integers(0, 7))
def test_07_a_missing_segment_changes_only_its_own_type(batch, row):
    without = batch.ids.copy()
    without[row][without[row] == 1] = -1
    removed = batch._replace(ids=without)
    with float64():
        before = advantages_of(batch, process_weight=1.0, gamma=0.0, **EXACT)
        after = advantages_of(removed, process_weight=1.0, gamma=0.0, **EXACT)
    untouched = batch.ids != 1
    np.testing.assert_allclose(after[untouched], before[untouched], atol=1e-12)
    np.testing.assert_allclose(
        after,
        reference.advantages(*removed.rewards, batch.outcomes, batch.groups, without, process_weight=1.0, **EXACT),
        atol=1e-12,
    )


@given(batches, st.sampled_from([("loo", "batch_rms"), ("group_mean", "group_std"), ("loo", None)]))
def test_08_a_group_of_one_gets_zero(batch, options):
    alone = batch._replace(groups=np.arange(len(batch.ids), dtype=np.int32)[::-1] * 31)
    assert not advantages_of(alone, process_weight=1.0, baseline=options[0], scale=options[1]).any()


@given(batches)
def test_09_segment_ratio_has_the_gradient_of_its_plain_form(batch):
    """s·A with s = exp(mean δ) differentiated directly, against the stop-gradient form, equal weights within a segment."""
    ids, k = batch.ids, batch.num_segments
    shared = np.random.default_rng(0).standard_normal((len(ids), k))
    advantages = np.where(ids >= 0, np.take_along_axis(shared, np.clip(ids, 0, k - 1), 1), 0.7)
    credit = reference.real_tokens(ids, k)

    inf = float("inf")
    with float64():
        expected = compiled(plain_gradient, num_segments=k)(
            finite(batch.logps), finite(batch.old), advantages, ids, credit
        )
        _, _, actual = gradient_of(batch, advantages, aggregation="token_mean", clip_low=inf, clip_high=inf)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def plain_gradient(logps, old, advantages, ids, credit, *, num_segments):
    def loss(logps):
        change = jnp.where(credit, logps - old, 0)
        total = jnp.sum(jnp.exp(change) * advantages * ((ids == -1) & credit))
        for segment in range(num_segments):
            member = (ids == segment) & credit
            ratio = jnp.exp((change * member).sum(1, keepdims=True) / jnp.maximum(member.sum(1, keepdims=True), 1))
            total += (ratio * advantages * member).sum()
        return -total / jnp.maximum(credit.sum(), 1)

    return jax.grad(loss)(logps)


@given(batches, st.sampled_from(["segment", "token", "sequence"]))
def test_10_on_policy_the_ratio_is_one_and_the_gradient_is_the_policy_gradient(batch, ratio):
    credit = reference.real_tokens(batch.ids, batch.num_segments)
    with float64():
        _, metrics, gradient = gradient_of(batch, old=batch.logps, aggregation="token_mean", ratio=ratio)
    np.testing.assert_allclose(
        gradient, np.where(credit, -finite(batch.advantages), 0) / max(credit.sum(), 1), atol=1e-13
    )
    assert metrics["clip_fraction"] == 0
    np.testing.assert_allclose(metrics["ratio"], float(credit.any()), atol=1e-13)


@given(batches, st.booleans())
def test_11_an_untrained_reward_model_costs_the_entropy_of_the_group_rate(batch, shift):
    with float64():
        loss = reward_loss_of(batch._replace(prm=batch.ref), shift=shift)
        rewards, valid = rewards_of(batch._replace(prm=batch.ref))
    assert not np.asarray(rewards).any()
    counted = np.asarray(valid).any(1)
    p = (
        reference.sigmoid(reference.log_odds(batch.outcomes, counted, batch.groups))
        if shift
        else np.full(len(counted), 0.5)
    )
    z = batch.outcomes
    terms = -(z * np.log(p) + (1 - z) * np.log(1 - p))
    np.testing.assert_allclose(loss, terms[counted].mean() if counted.any() else 0.0, atol=1e-12)


@given(plain_text)
def test_12_last_boundary_without_shift_is_the_loss_of_prime(batch):
    torch = pytest.importorskip("torch")
    mask = torch.tensor(batch.ids == 0)
    q = torch.tensor(finite(batch.prm) - finite(batch.ref), dtype=torch.float64)
    predicted = torch.sigmoid((q * mask).sum(1) * 0.05)
    expected = torch.nn.functional.binary_cross_entropy(predicted, torch.tensor(batch.outcomes))
    with float64():
        loss = reward_loss_of(batch, beta=0.05, boundary_weights="last", shift=False)
    np.testing.assert_allclose(loss, expected.item(), atol=1e-6)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-10)


@given(batches, st.floats(-3, 3), st.floats(-3, 3))
def test_13_outcomes_may_be_shifted_and_scale_the_advantages(batch, offset, factor):
    with float64():
        base = advantages_of(batch, process_weight=0.0, **EXACT)
        moved = advantages_of(batch._replace(outcomes=batch.outcomes + offset), process_weight=0.0, **EXACT)
        scaled = advantages_of(batch._replace(outcomes=batch.outcomes * factor), process_weight=0.0, **EXACT)
    np.testing.assert_allclose(moved, base, atol=1e-12)
    np.testing.assert_allclose(scaled, factor * base, atol=1e-12)


@given(batches)
def test_14_relabelling_the_groups_changes_nothing(batch):
    labels = {label: new for label, new in zip(np.unique(batch.groups), [90, -2, 5, 4], strict=False)}
    renamed = batch._replace(groups=np.array([labels[g] for g in batch.groups], np.int32))
    np.testing.assert_array_equal(advantages_of(renamed), advantages_of(batch))


def whole_gradient(old, ref, prm, outcomes, logps, groups, ids, *, num_segments):
    """Gradients of the policy loss by everything that goes into it."""

    def loss(old, ref, prm, outcomes, logps):
        rewards, valid = segment_rewards(prm, ref, ids, num_segments=num_segments, beta=0.5)
        advantages = osipo_advantages(rewards, valid, outcomes, groups, ids)
        options = dict(aggregation="segment_mean", num_segments=num_segments, ref_logps=ref, kl_weight=0.1)
        return osipo_loss(logps, old, advantages, ids, **options)[0]

    return jax.grad(loss, argnums=(0, 1, 2, 3, 4))(old, ref, prm, outcomes, logps)


@given(batches)
def test_15_only_the_policy_receives_a_gradient(batch):
    function = compiled(whole_gradient, num_segments=batch.num_segments)
    *others, own = function(batch.old, batch.ref, batch.prm, batch.outcomes, batch.logps, batch.groups, batch.ids)
    for gradient in others:
        assert not np.asarray(gradient).any()
    assert np.isfinite(own).all()
    if reference.real_tokens(batch.ids, batch.num_segments).any():
        assert np.asarray(own).any()


@given(batches, st.integers(0, 10**6))
def test_16_numbers_outside_the_mask_change_nothing(batch, seed):
    rng = np.random.default_rng(seed)
    outside = ~reference.real_tokens(batch.ids, batch.num_segments)
    changed = batch._replace(
        **{
            name: np.where(outside, rng.standard_normal(outside.shape), getattr(batch, name))
            for name in ("logps", "old", "advantages")
        }
    )
    assert gradient_of(changed)[0] == gradient_of(batch)[0]
    padding = batch.ids == -3
    noisy = batch._replace(
        **{name: np.where(padding, rng.standard_normal(padding.shape), getattr(batch, name)) for name in ("prm", "ref")}
    )
    np.testing.assert_array_equal(advantages_of(noisy), advantages_of(batch))


@given(batches, st.sampled_from(["paper", "code"]), st.sampled_from([1.0, 0.9]))
def test_17_prime_reproduces_both_of_its_formulas(batch, formula, gamma):
    credit = reference.real_tokens(batch.ids, batch.num_segments)
    with float64():
        weights = dict(outcome_weight=5.0, process_weight=5.0)
        function = compiled(
            prime_advantages, num_segments=batch.num_segments, beta=0.5, formula=formula, gamma=gamma, **weights
        )
        actual = np.asarray(function(batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups))
    expected = reference.prime(
        batch.prm, batch.ref, credit, batch.outcomes, batch.groups, beta=0.5, formula=formula, gamma=gamma, **weights
    )
    np.testing.assert_allclose(actual, expected, atol=1e-11)


def test_the_properties_meet_every_hard_case():
    """The random batches do contain missing segments, dead rows, unparsed rows and groups of one."""
    seen = set()
    for seed in range(60):
        batch = make_batch(seed)
        _, valid = batch.rewards
        dead = (batch.ids == -3).all(1)
        seen |= {"dead"} if dead.any() else set()
        seen |= {"unparsed"} if (~valid.any(1) & ~dead).any() else set()
        seen |= {"missing"} if (valid.any(1) & ~valid.all(1)).any() else set()
        seen |= {"alone"} if (np.unique(batch.groups, return_counts=True)[1] == 1).any() else set()
    assert seen == {"dead", "unparsed", "missing", "alone"}
