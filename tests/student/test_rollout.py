"""Rollouts: always inside the grammar, the same whatever the batch, and with the trainer's own log-probabilities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from student import toy

from scaletot_jax.chains.parser import parse
from scaletot_jax.student.constrained import token_log_probs
from scaletot_jax.student.packing import pack, predicting_states
from scaletot_jax.student.policy import encode_prompts
from scaletot_jax.student.rollout import request_keys, sample_chains

STUDENT = toy.student()
PROMPTS, VALID, _ = encode_prompts(STUDENT.tokenizer, toy.texts(4), 40)
IDS = np.arange(4 * 3).reshape(4, 3)
LORA = jax.tree.map(lambda leaf: leaf + 0.05, STUDENT.lora)
sampler = jax.jit(
    partial(sample_chains, config=STUDENT.config, max_length=STUDENT.chain_length, lora_scale=STUDENT.lora_scale)
)


def sample(rows=slice(None), temperature=1.0, ids=IDS):
    keys = request_keys(jax.random.key(7), jnp.asarray(ids[rows]))
    return sampler(
        params=STUDENT.params,
        grammar=STUDENT.grammar,
        prompts=PROMPTS[rows],
        prompt_valid=VALID[rows],
        keys=keys,
        temperature=temperature,
        lora=LORA,
    )


@jax.jit
def trainer(rollouts, temperature):
    packed = pack(PROMPTS, VALID, rollouts.tokens, rollouts.valid)
    hidden = predicting_states(STUDENT.params, STUDENT.config, packed, lora=LORA, lora_scale=STUDENT.lora_scale)
    arguments = (STUDENT.grammar, rollouts.states, rollouts.tokens, rollouts.valid)
    return token_log_probs(STUDENT.params, STUDENT.config, hidden, *arguments, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.3])
def test_sampler_and_trainer_agree(temperature):
    rollouts = sample(temperature=temperature)
    scores = trainer(rollouts, temperature)
    np.testing.assert_allclose(rollouts.logps, scores.logps, atol=1e-4)
    np.testing.assert_allclose(rollouts.entropy, scores.entropy, atol=1e-4)
    np.testing.assert_allclose(rollouts.plain_logps, trainer(rollouts, 1.0).logps, atol=1e-4)
    np.testing.assert_allclose(np.log(rollouts.answers), scores.answer_logps, atol=1e-4)
    assert np.abs(np.asarray(rollouts.logps)).max() > 0.1


def test_every_chain_is_whole_and_labelled_as_the_parser_does():
    rollouts = jax.tree.map(np.asarray, sample())
    assert rollouts.complete.all()
    for u in range(4):
        for n in range(3):
            ids = rollouts.tokens[u, n][rollouts.valid[u, n]]
            parsed = parse(STUDENT.chain, ids)
            assert parsed.complete
            np.testing.assert_array_equal(parsed.segment_ids, rollouts.segment_ids[u, n][rollouts.valid[u, n]])
    assert (rollouts.segment_ids[~rollouts.valid] == -3).all()
    np.testing.assert_allclose(rollouts.answers.sum(-1), 1, rtol=1e-5)


def test_forced_tokens_are_certain():
    rollouts = jax.tree.map(np.asarray, sample())
    choices = (STUDENT.chain.grammar.token >= 0).sum(-1)[rollouts.states]
    forced = rollouts.valid & (choices == 1)
    assert forced.any() and (rollouts.logps[forced] == 0).all() and (rollouts.entropy[forced] == 0).all()
    assert (rollouts.logps[rollouts.valid & (choices > 1)] < 0).all()


def test_a_request_does_not_depend_on_its_batch():
    whole, part = sample(), sample(slice(1, 2))
    np.testing.assert_array_equal(whole.tokens[1], part.tokens[0])
    shuffled = sample([2, 0, 3, 1])
    np.testing.assert_array_equal(whole.tokens[2], shuffled.tokens[0])
    other = sample(ids=IDS + 100)
    assert (np.asarray(whole.tokens) != np.asarray(other.tokens)).any()


def test_frequencies_follow_the_policy():
    """400 chains of one prompt: the first slot's values come as often as the policy says."""
    keys = request_keys(jax.random.key(1), jnp.arange(400)[None])
    rollouts = sampler(
        params=STUDENT.params,
        grammar=STUDENT.grammar,
        prompts=PROMPTS[:1],
        prompt_valid=VALID[:1],
        keys=keys,
        temperature=1.3,
        lora=LORA,
    )
    first = int(np.flatnonzero((STUDENT.chain.grammar.token >= 0).sum(-1)[np.asarray(rollouts.states)[0, 0]] > 1)[0])
    tokens, logps = np.asarray(rollouts.tokens)[0, :, first], np.asarray(rollouts.logps)[0, :, first]
    for token in np.unique(tokens):
        p = np.exp(logps[tokens == token][0])
        assert abs(np.mean(tokens == token) - p) < 4 * np.sqrt(p * (1 - p) / 400) + 1e-3
