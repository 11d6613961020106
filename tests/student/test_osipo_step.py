"""The OSIPO update: what gets credit, what is learnt, and what stays frozen."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from student import toy

from scaletot_jax.losses import implicit_reward_loss, osipo_advantages, prime_advantages
from scaletot_jax.student import osipo_step as module
from scaletot_jax.student.adapter import adamw, start
from scaletot_jax.student.diagnostics import credit_by_segment, within_group_correlation
from scaletot_jax.student.labelled import Labelled, pooled
from scaletot_jax.student.osipo_step import (
    OSIPOBatch,
    OSIPOOptions,
    OSIPOState,
    osipo_again,
    osipo_first,
    osipo_step,
    outcomes_of,
)
from scaletot_jax.student.policy import encode_prompts
from scaletot_jax.student.policy_update import answer_losses, answer_targets, score
from scaletot_jax.student.rollout import request_keys, sample_chains
from scaletot_jax.student.sft_step import SFTBatch

STUDENT = toy.student()
PROMPTS, VALID, _ = encode_prompts(STUDENT.tokenizer, toy.texts(4), 40)
BUCKETS = jnp.asarray([0, 1, 2, 3], jnp.int32)
REPLAY = SFTBatch(*(jnp.asarray(array[:4]) for array in toy.examples(8).arrays))
OPTIONS = OSIPOOptions(num_segments=2, lora_scale=STUDENT.lora_scale)
OPTIMIZER = adamw(2e-2, steps=100, warmup=0, weight_decay=0.0, clip_norm=1.0)
sampler = jax.jit(
    partial(sample_chains, config=STUDENT.config, max_length=STUDENT.chain_length, lora_scale=STUDENT.lora_scale)
)


def rollouts(update, lora=STUDENT.lora, count=6):
    keys = request_keys(jax.random.key(update), jnp.arange(4 * count).reshape(4, count))
    return sampler(
        params=STUDENT.params, grammar=STUDENT.grammar, prompts=PROMPTS, prompt_valid=VALID, keys=keys, lora=lora
    )


def fresh(lora=STUDENT.lora):
    return OSIPOState(start(lora, OPTIMIZER), start(lora, OPTIMIZER))


QUICK = {"xla_backend_optimization_level": 0}  # compiles faster


def jitted(step, options=OPTIONS, **more):
    step = partial(step, config=STUDENT.config, options=options, policy_optimizer=OPTIMIZER, **more)
    return jax.jit(step, compiler_options=QUICK)


FIRST, AGAIN = jitted(osipo_first, reward_optimizer=OPTIMIZER), jitted(osipo_again)
# Surrogate and KL alone.
BARE = jitted(osipo_first, dataclasses.replace(OPTIONS, answer_weight=0.0, sft_weight=0.0), reward_optimizer=OPTIMIZER)


def STEP(*arguments):
    return FIRST(*arguments)[::2]


def PLAIN(*arguments):
    return BARE(*arguments)[::2]


def test_first_update_is_on_policy():
    """θ = reference = φ: ratio 1, nothing clipped, no KL, the reward model is silent."""
    batch = OSIPOBatch(PROMPTS, VALID, rollouts(0), BUCKETS)
    state, metrics = STEP(fresh(), STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, REPLAY, 0.1)
    assert float(metrics["ratio"]) == 1 and float(metrics["clip_fraction"]) == float(metrics["old_kl"]) == 0
    assert float(metrics["sampler_gap"]) < 1e-5
    assert abs(float(metrics["kl"])) < 1e-6 and float(metrics["valid_rate"]) == 1
    assert float(metrics["value_auc"]) == 0.5 and float(metrics["value_pairs"]) > 0
    assert float(metrics["outcome_variance"]) > 0 and float(metrics["grad_norm"]) > 0
    moved = jax.tree.map(lambda new, old: float(np.abs(np.asarray(new - old)).max()), state.reward.lora, STUDENT.lora)
    assert max(moved.values()) > 0


def test_another_update_on_the_same_rollouts():
    """From the policy that sampled it is the first update; from the policy after that one the ratios are the true ones."""
    sampled = rollouts(5)
    batch = OSIPOBatch(PROMPTS, VALID, sampled, BUCKETS)
    frozen = (STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, REPLAY, 0.1)
    before = fresh()
    after, judged, first = FIRST(before, *frozen)
    same, repeated = AGAIN(before, STUDENT.params, STUDENT.grammar, batch, judged, REPLAY)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), same.policy.lora, after.policy.lora)
    jax.tree.map(np.testing.assert_array_equal, same.reward, before.reward)
    np.testing.assert_allclose(repeated["loss"], first["loss"], rtol=1e-5)
    assert float(repeated["process_weight"]) == np.float32(0.1)

    _, now, _ = FIRST(after, *frozen)  # its log π_old is log π of the moved policy
    _, metrics = AGAIN(after, STUDENT.params, STUDENT.grammar, batch, judged, REPLAY)
    ids = np.asarray(sampled.segment_ids)
    change = np.asarray(now.old_logps, np.float64) - np.asarray(judged.old_logps, np.float64)
    ahead = np.cumsum(ids == -2, axis=-1) == 0  # nothing at or after the answer is credited
    ratio, clipped, tokens = 0.0, 0, 0
    advantages = np.asarray(judged.advantages)
    for u, n, t in zip(*np.nonzero((ids >= -1) & ahead), strict=True):
        own = np.exp(change[u, n][ids[u, n] == ids[u, n, t]].mean() if ids[u, n, t] >= 0 else change[u, n, t])
        ratio, tokens = ratio + own, tokens + 1
        clipped += own > 1.28 if advantages[u, n, t] > 0 else own < 0.8 if advantages[u, n, t] < 0 else 0
    np.testing.assert_allclose(metrics["ratio"], ratio / tokens, rtol=1e-4)
    np.testing.assert_allclose(metrics["clip_fraction"], clipped / tokens, atol=1e-6)
    d = np.asarray(judged.ref_logps, np.float64) - now.old_logps
    kl = np.where((ids >= -1) & ahead, np.exp(change) * (np.exp(d) - d - 1), 0)
    np.testing.assert_allclose(metrics["kl"], kl.sum() / ids[..., 0].size, rtol=1e-3)
    assert abs(float(metrics["ratio"]) - 1) > 1e-4 and float(metrics["old_kl"]) > 0


def test_outcome_reads_the_answer_of_the_rollouts_own_chain():
    sampled = rollouts(0)
    outcomes = np.asarray(outcomes_of(sampled, BUCKETS))
    answers = np.asarray(sampled.answers, np.float64)
    for u in range(4):
        for n in range(6):
            cumulative = np.cumsum(answers[u, n])[:-1]
            expected = 1 - np.mean((cumulative - (np.arange(3) >= u)) ** 2)
            np.testing.assert_allclose(outcomes[u, n], expected, atol=1e-6)
    # Another chain, another answer: within a user the outcomes differ wherever the chains differ.
    assert (np.ptp(outcomes, axis=1) > 1e-6).all()
    broken = sampled._replace(complete=sampled.complete.at[1, 2].set(False))
    assert float(outcomes_of(broken, BUCKETS)[1, 2]) == np.float32(module.INVALID_OUTCOME)


def test_nothing_at_or_after_the_answer_is_credited():
    sampled = rollouts(3)
    shape = (-1, STUDENT.chain_length)
    ids = sampled.segment_ids.reshape(shape)
    rewards, valid = jnp.asarray(np.random.default_rng(0).normal(size=(24, 2))), jnp.ones((24, 2), bool)
    advantages = np.asarray(
        osipo_advantages(rewards, valid, outcomes_of(sampled, BUCKETS).reshape(-1), jnp.repeat(jnp.arange(4), 6), ids)
    )
    states, tokens_valid = np.asarray(sampled.states).reshape(shape), np.asarray(sampled.valid).reshape(shape)
    answered = np.cumsum(states == STUDENT.chain.answer_state, axis=1) > 0
    assert (answered & tokens_valid).sum() == 2 * 24  # the answer and the end token
    assert (advantages[answered] == 0).all()
    assert (advantages[tokens_valid & ~answered] != 0).mean() > 0.9


def test_without_signal_only_the_stated_terms_move_the_policy():
    """Equal outcomes, no process weight, no answer or replay term, KL at its minimum: the policy does not move."""
    sampled = rollouts(1)
    same = sampled._replace(answers=jnp.broadcast_to(sampled.answers[:, :1], sampled.answers.shape))
    batch = OSIPOBatch(PROMPTS, VALID, same, BUCKETS)
    state, metrics = PLAIN(fresh(), STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, REPLAY, 0.0)
    assert float(metrics["zero_advantage_groups"]) == 1 and float(metrics["outcome_variance"]) < 1e-12
    assert float(metrics["grad_norm"]) < 1e-9
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9), state.policy.lora, STUDENT.lora)


def test_a_distribution_will_do_as_label():
    """One-hot distributions are labels, for the outcome and for the answer term."""
    sampled, certain = rollouts(0), jax.nn.one_hot(BUCKETS, 4)
    np.testing.assert_allclose(outcomes_of(sampled, certain), outcomes_of(sampled, BUCKETS), atol=1e-6)
    logps = jnp.log(jnp.maximum(sampled.answers, 1e-30))
    batches = [OSIPOBatch(PROMPTS, VALID, sampled, of) for of in (certain, BUCKETS)]
    targets = [answer_targets(batch, logps, 0.0) for batch in batches]
    np.testing.assert_allclose(*[answer_losses(logps, of, sampled.complete) for of in targets], atol=1e-6)
    np.testing.assert_allclose(*[answer_targets(batch, logps, 3.0) for batch in batches], atol=1e-6)


def test_an_anchor_counts_the_old_answer_as_so_many_labels():
    rng = np.random.default_rng(0)
    sampled = rollouts(0)
    old = np.log(rng.dirichlet(np.ones(4), size=(4, 6)))
    batch = OSIPOBatch(PROMPTS, VALID, sampled, BUCKETS)
    want = (np.eye(4)[np.asarray(BUCKETS)][:, None] + 3 * np.exp(old)) / 4
    np.testing.assert_allclose(answer_targets(batch, jnp.asarray(old), 3.0), want, atol=1e-6)
    np.testing.assert_array_equal(
        answer_targets(batch, jnp.asarray(old), 0.0), np.repeat(np.asarray(BUCKETS)[:, None], 6, 1)
    )


def test_a_heavy_anchor_leaves_the_answers_where_they_were():
    """The answer term alone, many updates on the same labels: without an anchor the answers run to them, with one they stay."""
    moved = {}
    for anchor in (0.0, 1e4):
        alone = {"outcome_weight": 0.0, "sft_weight": 0.0, "kl_weight": 0.0, "answer_anchor": anchor}
        step = jitted(osipo_step, dataclasses.replace(OPTIONS, **alone), reward_optimizer=OPTIMIZER)
        state, sampled = fresh(), rollouts(0)
        batch = OSIPOBatch(PROMPTS, VALID, sampled, jnp.zeros_like(BUCKETS))
        for _ in range(12):
            state, _ = step(state, STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, REPLAY, 0.0)
        after = score(state.policy.lora, STUDENT.params, STUDENT.grammar, batch, config=STUDENT.config, options=OPTIONS,
                      rules=None, remat=False)  # fmt: skip
        moved[anchor] = float(np.abs(np.exp(after.answer_logps) - np.asarray(sampled.answers)).max())
    assert moved[1e4] < 0.2 * moved[0.0], moved


def test_the_estimator_is_the_one_of_the_options(monkeypatch):
    """With these options the advantages of the step are GRPO's, and without the outcome's weight there are none."""
    used = []

    def record(*arguments, **how):
        used.append({name: value for name, value in how.items() if name != "process_weight"})
        return osipo_advantages(*arguments, **how)

    monkeypatch.setattr(module, "osipo_advantages", record)
    grpo = {"outcome_weight": 0.0, "baseline": "group_mean", "scale": "group_std"}
    options = dataclasses.replace(OPTIONS, **grpo)
    batch = OSIPOBatch(PROMPTS, VALID, rollouts(0), BUCKETS)
    jax.eval_shape(
        partial(osipo_step, config=STUDENT.config, options=options, policy_optimizer=OPTIMIZER, reward_optimizer=OPTIMIZER),
        fresh(), STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, REPLAY, 0.0,
    )  # fmt: skip
    assert used == [grpo | {"gamma": OPTIONS.gamma, "min_scale": OPTIONS.min_scale}]
    rng, ids = np.random.default_rng(0), batch.rollouts.segment_ids.reshape(24, -1)
    given = jnp.asarray(rng.normal(size=(24, 2))), jnp.ones((24, 2), bool), jnp.asarray(rng.random(24))
    silent = osipo_advantages(*given, jnp.repeat(jnp.arange(4), 6), ids, process_weight=0.0, **used[0])
    np.testing.assert_array_equal(silent, 0)


def test_prime_gives_its_own_advantages_on_the_same_rollouts():
    """Token credit differs within a segment; against the loss's own function on the log-probabilities of the step."""
    used = {}
    with pytest.MonkeyPatch.context() as patch:

        def record(*arguments, **how):
            used["arguments"], used["how"] = arguments, how
            return prime_advantages(*arguments, **how)

        def learn(*arguments, **how):
            used["learnt"] = how["boundary_weights"], how["shift"]
            return implicit_reward_loss(*arguments, **how)

        patch.setattr(module, "prime_advantages", record)
        patch.setattr(module, "implicit_reward_loss", learn)
        options = dataclasses.replace(OPTIONS, estimator="prime")
        batch = OSIPOBatch(PROMPTS, VALID, rollouts(0), BUCKETS)
        out = jax.eval_shape(
            partial(
                osipo_first, config=STUDENT.config, options=options, policy_optimizer=OPTIMIZER, reward_optimizer=OPTIMIZER
            ),
            fresh(), STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, REPLAY, 0.1,
        )  # fmt: skip
    assert out[1].advantages.shape == batch.rollouts.tokens.shape
    assert used["learnt"] == ("last", False)  # its reward model knows the end of a chain alone, and no group
    assert used["how"]["formula"] == "code" and used["how"]["whiten"] and used["how"]["scale"] == "batch_max"
    prm, ref, ids, outcomes, groups = used["arguments"]
    assert prm.shape == ref.shape == ids.shape == (24, STUDENT.chain_length) and outcomes.shape == groups.shape == (24,)


def test_labels_are_pooled_over_equal_coarse_profiles_of_these_users_alone():
    table = pa.table({"coarse_key": ["x", "a", "a", "b", "b"]})
    users = Labelled(np.asarray([1, 2, 3, 4]), PROMPTS, VALID, np.asarray([0, 1, 3, 3]), 0)
    shared = pooled(users, SimpleNamespace(table=table), STUDENT.spec).buckets
    assert shared.shape == (4, 4) and shared.dtype == np.float32
    np.testing.assert_allclose(shared.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(shared[0], shared[1])
    np.testing.assert_array_equal(shared[2], shared[3])
    assert shared[0, :2].sum() > shared[2, :2].sum() and shared[2, 3] > shared[0, 3]


def test_an_invalid_batch_leaves_the_reward_model_alone():
    sampled = rollouts(2)
    batch = OSIPOBatch(PROMPTS, VALID, sampled._replace(complete=jnp.zeros((4, 6), bool)), BUCKETS)
    state, metrics = STEP(fresh(), STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, REPLAY, 0.1)
    jax.tree.map(np.testing.assert_array_equal, state.reward.lora, STUDENT.lora)
    assert float(metrics["valid_rate"]) == 0 and all(np.isfinite(float(value)) for value in metrics.values())


def test_a_rewarded_value_is_learnt():
    """A made-up outcome: the answer is right exactly when the first slot says the first value. It must become frequent."""
    state = fresh()
    wanted = STUDENT.chain.slots[0].ids[1][0]
    right, wrong = jnp.asarray([0.97, 0.01, 0.01, 0.01]), jnp.asarray([0.01, 0.01, 0.01, 0.97])
    shares = []
    for update in range(25):
        sampled = rollouts(update, state.policy.lora)
        place = jnp.argmax(sampled.states == STUDENT.chain.slots[0].start, axis=-1)
        hit = jnp.take_along_axis(sampled.tokens, place[..., None], axis=-1) == wanted
        shares.append(float(jnp.mean(hit)))
        sampled = sampled._replace(answers=jnp.where(hit, right, wrong))
        batch = OSIPOBatch(PROMPTS, VALID, sampled, jnp.zeros(4, jnp.int32))
        weight = 0.0 if update < 2 else 0.1
        state, metrics = PLAIN(state, STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, REPLAY, weight)
    assert np.mean(shares[-3:]) > np.mean(shares[:3]) + 0.4, shares
    assert float(metrics["kl"]) > 0


def test_correlation_within_groups():
    values, outcomes = jnp.asarray([[1.0, 2.0], [11.0, 10.0]]), jnp.asarray([[0.1, 0.2], [0.6, 0.5]])
    np.testing.assert_allclose(within_group_correlation(values, outcomes), 1, rtol=1e-5)
    assert float(within_group_correlation(values, jnp.ones((2, 2)))) == 0


def test_credit_by_segment_is_a_mean_over_its_tokens_and_over_the_chains_that_have_it():
    segments = jnp.asarray([[0, 0, 1, -1], [0, -1, -3, -3]])
    advantages = jnp.asarray([[0.5, -1.5, 3.0, 9.0], [-1.0, 9.0, 9.0, 9.0]])
    rewards, present = jnp.asarray([[0.2, -0.4], [0.6, 7.0]]), jnp.asarray([[True, True], [True, False]])
    found = {name: float(v) for name, v in credit_by_segment(rewards, present, advantages, segments).items()}
    expected = {"credit_0": 1.0, "credit_1": 3.0, "process_reward_0": 0.4, "process_reward_1": -0.4}
    assert set(found) == set(expected)
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-6)
    assert float(credit_by_segment(rewards, present & False, advantages, segments - 9)["process_reward_1"]) == 0
