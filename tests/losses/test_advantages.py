"""Advantages against the loop reference over all options, the prefix critic, PRIME's options, and misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses import reference
from losses.cases import batches, compiled, float64, make_batch, plain_text

from scaletot_jax.losses import osipo_advantages, prefix_critic_advantages, prime_advantages

OPTIONS = [
    dict(),
    dict(process_weight=0.7, gamma=0.5, segment_weights=(1.0, 0.5, 2.0), clip=None),
    dict(process_weight=1.0, gamma=1.0, scale=None, baseline="group_mean", answer="outcome"),
    dict(outcome_weight=2.0, process_weight=0.3, gamma=0.9, scale="group_std", min_scale=1e-6, clip=0.4),
]


@pytest.mark.parametrize("options", OPTIONS)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_loop_reference(options, seed):
    batch = make_batch(seed)
    rewards, valid = batch.rewards
    if "segment_weights" in options:
        options = options | {"segment_weights": np.array(options["segment_weights"])}
    traced = {name: value for name, value in options.items() if not isinstance(value, (str, type(None)))}
    static = {name: value for name, value in options.items() if name not in traced}
    with float64():
        # Numbers are passed as traced arguments: no option but a name is needed before compilation.
        function = compiled(osipo_advantages, **static)
        actual = function(rewards, valid, batch.outcomes, batch.groups, batch.ids, **traced)
        assert actual.dtype == jnp.float64
        actual = np.asarray(actual)
    expected = reference.advantages(rewards, valid, batch.outcomes, batch.groups, batch.ids, **options)
    np.testing.assert_allclose(actual, expected, atol=1e-11)


def test_an_answer_and_what_follows_it_get_no_credit():
    ids = np.array([[0, -1, -2, -1, 0], [0, -1, -2, -1, 0]])
    rewards, valid = np.array([[1.0], [0.0]]), np.ones((2, 1), bool)
    arguments = rewards, valid, np.array([0.9, 0.1]), np.array([0, 0]), ids
    by_distribution = np.asarray(compiled(osipo_advantages)(*arguments))
    by_sample = np.asarray(compiled(osipo_advantages, answer="outcome")(*arguments))
    assert by_distribution[:, :2].all() and not by_distribution[:, 2:].any()
    assert by_sample[:, :3].all() and not by_sample[:, 3:].any()
    np.testing.assert_array_equal(by_sample[:, 2], by_sample[:, 1])


def test_a_row_of_padding_is_no_rollout():
    ids = np.array([[0, -1], [0, -1], [-3, -3]])
    rewards, valid = np.array([[1.0], [0.0], [np.nan]]), np.array([[True], [True], [False]])
    outcomes, groups = np.array([1.0, 0.0, np.nan]), np.zeros(3, int)
    function = compiled(osipo_advantages)
    with_row = np.asarray(function(rewards, valid, outcomes, groups, ids))
    without = np.asarray(function(rewards[:2], valid[:2], outcomes[:2], groups[:2], ids[:2]))
    np.testing.assert_array_equal(with_row, np.concatenate([without, np.zeros((1, 2))]))


def test_the_floor_of_the_scale_keeps_noise_small():
    ids, valid = np.zeros((4, 2), int), np.ones((4, 1), bool)
    outcomes = 0.5 + np.array([1e-6, -1e-6, 2e-6, 0.0])
    advantages = compiled(osipo_advantages)(
        np.zeros((4, 1)), valid, outcomes, np.array([1, 1, 2, 2]), ids, min_scale=1e-3
    )
    assert np.abs(np.asarray(advantages)).max() < 5e-3


def test_bfloat16_gives_float32_and_vmap_equals_a_loop():
    stack = [make_batch(seed) for seed in range(3)]
    arguments = [np.stack(x) for x in zip(*[(*b.rewards, b.outcomes, b.groups, b.ids) for b in stack], strict=True)]
    function = compiled(osipo_advantages)
    together = jax.jit(jax.vmap(osipo_advantages))(*arguments)
    for n in range(3):
        np.testing.assert_allclose(together[n], function(*[x[n] for x in arguments]), atol=1e-6)
    rewards, *rest = [x[0] for x in arguments]
    assert function(jnp.asarray(rewards, jnp.bfloat16), *rest).dtype == jnp.float32


@pytest.mark.parametrize(("trace", "residual"), [(0.0, 1.0), (0.9, 0.4), (1.0, 1.0)])
@given(batches, st.booleans())
def test_prefix_critic_equals_the_loop_reference(trace, residual, batch, shift):
    rewards, valid = batch.rewards
    with float64():
        function = compiled(prefix_critic_advantages, shift=shift, scale=None, clip=None)
        options = dict(trace=trace, residual_weight=residual)
        actual = np.asarray(function(rewards, valid, batch.outcomes, batch.groups, batch.ids, **options))
    expected = reference.prefix_critic(rewards, valid, batch.outcomes, batch.groups, batch.ids, shift=shift, **options)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_prefix_critic_without_knowledge_is_the_outcome():
    """With r = 0 every prefix has the group's value: at λ = 1 a segment gets the outcome's own advantage."""
    batch = make_batch(3, (8, 12, 2), group_size=4)
    rewards, valid = batch.rewards
    with float64():
        arguments = np.zeros_like(rewards), np.ones_like(valid), batch.outcomes, batch.groups, batch.ids
        actual = np.asarray(compiled(prefix_critic_advantages)(*arguments, trace=1.0))
        expected = np.asarray(compiled(osipo_advantages)(*arguments, process_weight=0.0))
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_prefix_critic_takes_its_offset_from_complete_chains():
    batch = make_batch(5, (8, 12, 2), group_size=4)
    complete = np.array([True, False] * 4)
    rewards, valid = batch.rewards
    arguments = rewards, valid, batch.outcomes, batch.groups, batch.ids
    function = compiled(prefix_critic_advantages)
    some, everybody = function(*arguments, complete=complete), function(*arguments, complete=np.ones(8, bool))
    np.testing.assert_allclose(function(*arguments), everybody, atol=1e-6)
    assert not np.allclose(some, everybody, atol=1e-3)


@pytest.mark.parametrize("options", [dict(scale="batch_max"), dict(whiten=True), dict(scale="batch_max", whiten=True)])
@given(plain_text)
def test_prime_options_equal_the_loop_reference(options, batch):
    credit = batch.ids == 0
    with float64():
        function = compiled(prime_advantages, num_segments=1, beta=0.05, formula="code", **options)
        actual = np.asarray(function(batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups))
    expected = reference.prime(
        batch.prm, batch.ref, credit, batch.outcomes, batch.groups, beta=0.05, formula="code", **options
    )
    np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_prime_code_differs_from_the_paper_by_the_contrast_within_a_chain():
    batch = make_batch(1, (4, 10, 1), typed=False, group_size=4, poison=False)
    arguments = batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups
    options = dict(num_segments=1, beta=1.0, gamma=0.0, outcome_weight=0.0)
    with float64():
        code = np.asarray(compiled(prime_advantages, formula="code", **options)(*arguments))
        paper = np.asarray(compiled(prime_advantages, formula="paper", **options)(*arguments))
    tokens = batch.ids == 0
    r = np.where(tokens, batch.prm - batch.ref, 0)
    contrast = np.where(tokens, r - r.sum(1, keepdims=True) / tokens.sum(1, keepdims=True), 0)
    np.testing.assert_allclose(code - paper, contrast / 3, atol=1e-12)


def test_padding_between_tokens_does_not_discount():
    outcomes, groups = np.zeros(2), np.zeros(2, int)
    prm, close = np.array([[0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]), np.array([[0, -3, 0], [0, -3, 0]])
    options = dict(num_segments=1, beta=1.0, gamma=0.5, answer="zero")
    advantages = compiled(prime_advantages, **options)(prm, np.zeros_like(prm), close, outcomes, groups)
    np.testing.assert_allclose(np.asarray(advantages)[0], [2.0, 0.0, 4.0])  # the gap costs one factor, not two


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(baseline="mean"), "baseline must be one of 'loo', 'group_mean', not 'mean'"),
        (dict(scale="std"), "scale must be one of"),
        (dict(answer="one"), "answer must be one of"),
        (dict(segment_weights=np.ones(2)), r"segment_weights must have shape \[3\], not \[2\]"),
    ],
)
def test_misuse_is_refused(options, message):
    batch = make_batch(0)
    with pytest.raises(ValueError, match=message):
        osipo_advantages(*batch.rewards, batch.outcomes, batch.groups, batch.ids, **options)


def test_shapes_that_disagree_are_refused():
    batch = make_batch(0)
    rewards, valid = batch.rewards
    with pytest.raises(ValueError, match="segment_ids must have shape"):
        osipo_advantages(rewards, valid, batch.outcomes, batch.groups, batch.ids[0])
    with pytest.raises(ValueError, match="outcomes must have shape"):
        osipo_advantages(rewards, valid, batch.outcomes[:-1], batch.groups, batch.ids)
    with pytest.raises(ValueError, match="valid must have shape"):
        osipo_advantages(rewards, valid[:, :1], batch.outcomes, batch.groups, batch.ids)
    with pytest.raises(ValueError, match="at least one segment"):
        osipo_advantages(rewards[:, :0], valid[:, :0], batch.outcomes, batch.groups, batch.ids)
    with pytest.raises(ValueError, match="formula must be one of"):
        prime_advantages(
            batch.prm, batch.ref, batch.ids, batch.outcomes, batch.groups, num_segments=3, beta=1.0, formula="verl"
        )
