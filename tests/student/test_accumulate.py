"""Micro-batches and recomputation change nothing: SFT and OSIPO steps of uneven rows equal the whole batch's."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from student import toy

from scaletot_jax.student.accumulate import in_turn, join, over_rows, split, value_and_grad
from scaletot_jax.student.adapter import start
from scaletot_jax.student.constrained import segment_ids
from scaletot_jax.student.full import full_sft_step, start_full
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_again, osipo_first
from scaletot_jax.student.rollout import Rollouts
from scaletot_jax.student.sft_step import SFTBatch, sft_step

STUDENT = toy.student()
DATA = SFTBatch(*(jnp.asarray(array) for array in toy.examples(8).arrays))
LORA = jax.tree.map(lambda leaf: leaf + 0.03, STUDENT.lora)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # the same arithmetic, compiled faster
SGD = optax.sgd(0.5)  # linear in the gradient, so parameters show it


def agree(found, expected, tolerance=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, expected)


@cache
def sft(accumulate, remat):
    step = partial(
        sft_step, config=STUDENT.config, optimizer=SGD, lora_scale=2.0, answer_weight=3.0, accumulate=accumulate, remat=remat
    )  # fmt: skip
    return jax.device_get(jit(step)(start(LORA, SGD), STUDENT.params, STUDENT.grammar, DATA))


def test_the_rows_are_uneven():
    """Otherwise these tests could not fail: a micro-batch's share of the weight is not its share of the rows."""
    weights = np.sum(DATA.weights * DATA.chain_valid.sum(-1), axis=1).reshape(4, 2).sum(axis=0)
    assert abs(weights[0] / weights.sum() - 0.5) > 0.05


@pytest.mark.parametrize("accumulate,remat", [(2, "dots"), (4, "full")])
def test_sft(accumulate, remat):
    expected, found = sft(1, "none"), sft(accumulate, remat)
    agree(found[1], expected[1])
    agree(found[0].lora, expected[0].lora)
    moved = jax.tree.map(lambda new, old: float(np.abs(new - np.asarray(old)).max()), expected[0].lora, LORA)
    assert max(moved.values()) > 1e-3


def test_sft_of_all_parameters():
    def run(accumulate, remat):
        step = partial(full_sft_step, config=STUDENT.config, optimizer=SGD, accumulate=accumulate, remat=remat)
        return jax.device_get(jit(step)(start_full(STUDENT.params, SGD), STUDENT.grammar, DATA))

    expected, found = run(1, "none"), run(4, "dots")
    agree(found[1], expected[1])
    agree(found[0].params, expected[0].params, 2e-6)


def test_osipo():
    """Some chains are missing and two unfinished, so the three losses have three denominators, uneven over rows."""
    users, count = DATA.chain_valid.shape[:2]
    rng = np.random.default_rng(0)
    cut = jnp.arange(DATA.chains.shape[2]) < DATA.chains.shape[2] // 3
    whole = DATA.chain_valid.any(-1).at[0, 0].set(False).at[1, 1].set(False)
    valid = DATA.chain_valid & (whole[..., None] | cut)
    logps = jnp.where(valid, jnp.asarray(-rng.uniform(0.1, 2.0, valid.shape), jnp.float32), 0)
    rollouts = Rollouts(
        tokens=DATA.chains, valid=valid, states=DATA.states, logps=logps, plain_logps=logps, entropy=-logps,
        segment_ids=segment_ids(STUDENT.grammar, DATA.states, DATA.chains, valid),
        answers=jnp.asarray(rng.dirichlet(np.ones(4), (users, count)), jnp.float32), complete=whole,
    )  # fmt: skip
    batch = OSIPOBatch(DATA.prompts, DATA.prompt_valid, rollouts, jnp.arange(users) % 4)
    other = jax.tree.map(lambda leaf: leaf - 0.02, LORA)
    state = OSIPOState(start(LORA, SGD), start(other, SGD))
    options = dataclasses.replace(
        OSIPOOptions(num_segments=2, lora_scale=2.0), kl_weight=0.1, sft_weight=0.5, clip_high=0.1
    )

    def run(accumulate, remat):
        """A first update, then another whose π_old is far away, so that some ratios are clipped."""
        how = dict(
            config=STUDENT.config, options=options, policy_optimizer=SGD, accumulate=accumulate, remat=remat
        )  # fmt: skip

        def both(state, params, reference, grammar, batch, replay):
            state, judged, first = osipo_first(
                state, params, reference, grammar, batch, replay, 0.3, reward_optimizer=SGD, **how
            )
            judged = judged._replace(old_logps=batch.rollouts.logps)
            state, again = osipo_again(state, params, grammar, batch, judged, replay, **how)
            return state, (first, again)

        return jax.device_get(jit(both)(state, STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, DATA))

    (expected, metrics), (found, accumulated) = run(1, "none"), run(4, "none")
    agree(accumulated, metrics, 5e-6)
    agree(found.policy.lora, expected.policy.lora, 2e-6)
    agree(found.reward.lora, expected.reward.lora, 2e-6)
    metrics, again = metrics
    assert metrics["valid_rate"] == np.float32(10 / 16)
    assert metrics["clip_fraction"] == 0 and metrics["ratio"] == 1 and 0 < again["clip_fraction"] < 1
    assert metrics["reward_grad_norm"] > 0 and metrics["replay_loss"] > 0


def test_split_and_join():
    rows = np.arange(24).reshape(12, 2)
    parts = split({"x": rows}, 3)["x"]
    np.testing.assert_array_equal(parts[1], rows[1::3])
    np.testing.assert_array_equal(join(parts), rows)
    np.testing.assert_array_equal(over_rows(lambda x: 2 * x, 4, rows), 2 * rows)
    with pytest.raises(ValueError, match="12 rows cannot be split into 5"):
        split(rows, 5)


def test_sums_and_rows_come_back_whole():
    x = jnp.arange(8.0)
    loss, gradient, sums, rows = value_and_grad(
        lambda w, x: (jnp.sum(w * x) / 8, ({"n": jnp.float32(len(x))}, x + 1)), jnp.float32(2), 4, x
    )
    assert float(loss) == 7.0 and float(gradient) == 3.5 and float(sums["n"]) == 8
    np.testing.assert_array_equal(rows, x + 1)


def test_in_turn_is_the_function_itself():
    found = jax.jit(lambda x: in_turn(lambda x: {"y": jnp.sin(x)}, x[0] * 2, x))(jnp.arange(3.0))
    np.testing.assert_allclose(found["y"], np.sin(np.arange(3.0)), atol=1e-6)
