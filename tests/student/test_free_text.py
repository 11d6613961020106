"""Free text in the student's chains: one policy for sampler and trainer, exact, valid, and never tokens × vocabulary."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from student import toy
from student.test_sft_step import largest_array

from scaletot_jax.chains.parser import parse
from scaletot_jax.chains.reserved import reserved_ids
from scaletot_jax.student.adapter import adamw, start
from scaletot_jax.student.constrained import token_log_probs
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
from scaletot_jax.student.packing import pack, predicting_states
from scaletot_jax.student.policy import encode_prompts
from scaletot_jax.student.rollout import request_keys, sample_chains
from scaletot_jax.student.sft_step import SFTBatch, sft_loss
from scaletot_jax.student.states import closing_places


def one_shape(student):
    """Reserved ids repeated up to a common number, which changes nothing: both students run the same programs."""
    free = student.grammar.free
    free = free._replace(reserved=jnp.resize(free.reserved, student.config.vocab_size))
    return dataclasses.replace(student, grammar=student.grammar._replace(free=free))


STUDENT = one_shape(toy.student(layers=1, free=True))
FEW = one_shape(toy.student(layers=1, free=True, words=("music", "sport", "study")))  # texts end early, too
PROMPTS, VALID, _ = encode_prompts(STUDENT.tokenizer, toy.texts(4), 40)
LORA = jax.tree.map(lambda leaf: leaf + 0.05, STUDENT.lora)
OPTIONS = OSIPOOptions(num_segments=3, lora_scale=STUDENT.lora_scale, answer_weight=0.0)
OPTIMIZER = adamw(2e-2, steps=100, warmup=0, weight_decay=0.0, clip_norm=1.0)
SHAPE = dict(config=STUDENT.config, max_length=STUDENT.chain_length, lora_scale=STUDENT.lora_scale)
sampler = jax.jit(partial(sample_chains, **SHAPE))
step = jax.jit(
    partial(
        osipo_step,
        config=STUDENT.config,
        options=OPTIONS,
        policy_optimizer=OPTIMIZER,
        reward_optimizer=OPTIMIZER,
    )
)


def sample(student, temperature=1.0, seed=7, lora=LORA):
    """Four prompts, six chains each; one program for all tests of one grammar."""
    keys = request_keys(jax.random.key(seed), jnp.arange(24).reshape(4, 6))
    return sampler(
        params=student.params,
        grammar=student.grammar,
        prompts=PROMPTS,
        prompt_valid=VALID,
        keys=keys,
        temperature=jnp.float32(temperature),
        lora=lora,
    )


@jax.jit
def trainer(grammar, rollouts, temperature, lora=LORA):
    packed = pack(PROMPTS, VALID, rollouts.tokens, rollouts.valid)
    hidden = predicting_states(STUDENT.params, STUDENT.config, packed, lora=lora, lora_scale=STUDENT.lora_scale)
    arguments = (grammar, rollouts.states, rollouts.tokens, rollouts.valid)
    return token_log_probs(STUDENT.params, STUDENT.config, hidden, *arguments, temperature=temperature)


def in_text(student, rollouts):
    """[U, N, R] whether the token was chosen in a free state."""
    return np.asarray(rollouts.valid) & student.chain.grammar.free[np.asarray(rollouts.states)]


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.3])
@pytest.mark.parametrize("student", [STUDENT, FEW], ids=["vocabulary", "few words"])
def test_sampler_and_trainer_agree(student, temperature):
    rollouts = sample(student, temperature)
    scores = trainer(student.grammar, rollouts, jnp.float32(temperature))
    np.testing.assert_allclose(rollouts.logps, scores.logps, atol=1e-4)
    np.testing.assert_allclose(rollouts.entropy, scores.entropy, atol=1e-4)
    np.testing.assert_allclose(
        rollouts.plain_logps, trainer(student.grammar, rollouts, jnp.float32(1)).logps, atol=1e-4
    )
    np.testing.assert_allclose(np.log(rollouts.answers), scores.answer_logps, atol=1e-4)
    here = in_text(student, rollouts)
    assert here.any() and (np.asarray(rollouts.logps)[here] < 0).all()


@pytest.mark.parametrize("temperature", [0.3, 1.3])
def test_the_policy_is_the_softmax_over_what_the_grammar_allows(temperature):
    """Float64 NumPy over unpadded sequences, from the grammar's own `step`."""
    rollouts = jax.tree.map(np.asarray, sample(FEW, temperature))
    head = np.asarray(FEW.params["embed"], np.float64)
    for u, n in ((0, 0), (1, 3), (3, 5)):
        chain = rollouts.tokens[u, n][rollouts.valid[u, n]]
        prompt = PROMPTS[u][VALID[u]]
        hidden = toy.plain_forward(FEW.with_lora(LORA), np.concatenate([prompt, chain]))[len(prompt) - 1 :]
        for t, token in enumerate(chain):
            state = rollouts.states[u, n, t]
            allowed = [v for v in range(len(head)) if FEW.chain.step(state, v) >= 0]
            z = head[allowed] @ np.asarray(hidden[t], np.float64) / temperature
            logp = z - z.max() - np.log(np.exp(z - z.max()).sum())
            np.testing.assert_allclose(rollouts.logps[u, n, t], logp[allowed.index(token)], atol=2e-4)
            np.testing.assert_allclose(rollouts.entropy[u, n, t], -(np.exp(logp) * logp).sum(), atol=2e-4)


@pytest.mark.parametrize("student", [STUDENT, FEW], ids=["vocabulary", "few words"])
def test_every_chain_parses_serialises_and_is_labelled_as_the_parser_does(student):
    rollouts = jax.tree.map(np.asarray, sample(student))
    assert rollouts.complete.all()
    reserved, lengths = set(reserved_ids(student.tokenizer, student.config.vocab_size)), []
    closes = np.asarray(closing_places(rollouts, student.grammar, 3))
    for u in range(4):
        for n in range(6):
            ids = rollouts.tokens[u, n][rollouts.valid[u, n]]
            parsed = parse(student.chain, ids)
            assert parsed.complete and student.chain.serialize(parsed.values, parsed.bucket) == ids.tolist()
            np.testing.assert_array_equal(parsed.segment_ids, rollouts.segment_ids[u, n][rollouts.valid[u, n]])
            for text, slot in zip((parsed.values[1], parsed.values[4]), (1, 4)):
                assert len(text) <= student.spec.slots[slot].max_tokens and not reserved & set(text)
                lengths.append((slot, len(text)))
            assert closes[u, n].tolist() == [segment.end - 1 for segment in parsed.segments]
    assert {(1, 3), (4, 4)} <= set(lengths), "some texts are cut by the grammar"
    short = {length for slot, length in lengths if length < student.spec.slots[slot].max_tokens}
    assert student is not FEW or len(short) > 1, "and some end by themselves"


def test_frequencies_follow_the_policy():
    keys = request_keys(jax.random.key(1), jnp.arange(400)[None])
    rollouts = sampler(
        params=FEW.params, grammar=FEW.grammar, prompts=PROMPTS[:1], prompt_valid=VALID[:1], keys=keys,
        temperature=jnp.float32(1.3), lora=LORA,
    )  # fmt: skip
    states, tokens = np.asarray(rollouts.states)[0], np.asarray(rollouts.tokens)[0]
    first = states == FEW.chain.slots[4].start
    before = [tuple(row[: place.argmax()]) for row, place in zip(tokens, first)]
    common = max(set(before), key=before.count)  # the same text before it: one distribution
    rows = [i for i, prefix in enumerate(before) if prefix == common]
    drawn, logps = tokens[first][rows], np.asarray(rollouts.logps)[0][first][rows]
    assert len(rows) > 5 and np.ptp([np.ptp(logps[drawn == token]) for token in set(drawn)]) < 1e-4
    start = np.asarray(states)[:, : first.shape[1]] == FEW.chain.slots[1].start
    same = start.argmax(1)
    note, p = tokens[np.arange(400), same], np.exp(np.asarray(rollouts.logps)[0][np.arange(400), same])
    stage = [tuple(row[:place]) for row, place in zip(tokens, same)]
    rows = np.asarray([prefix == max(set(stage), key=stage.count) for prefix in stage])
    assert rows.sum() > 100
    for token in np.unique(note[rows]):
        share, expected = np.mean(note[rows] == token), p[rows & (note == token)][0]
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / rows.sum()) + 1e-3


def test_gradients_equal_those_of_the_dense_softmax():
    rollouts = sample(STUDENT)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=rollouts.tokens.shape), jnp.float32)
    here = jnp.asarray(in_text(STUDENT, rollouts))
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(*rollouts.tokens.shape, 32)), jnp.float32)
    grammar, embed = STUDENT.grammar, STUDENT.params["embed"]
    closes = jnp.asarray(STUDENT.chain.grammar.token[:, 0])[rollouts.states]

    def dense(hidden):
        ids = jnp.arange(embed.shape[0])
        text = ~jnp.isin(ids, jnp.asarray(STUDENT.chain.grammar.stop))
        allowed = text | (ids == closes[..., None])
        logp = jax.nn.log_softmax(jnp.where(allowed, hidden @ embed.T / 0.7, -1e30), axis=-1)
        chosen = jnp.take_along_axis(logp, rollouts.tokens[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(here, chosen * weights, 0))

    def ours(hidden):
        arguments = (grammar, rollouts.states, rollouts.tokens, rollouts.valid)
        scores = token_log_probs(STUDENT.params, STUDENT.config, hidden, *arguments, temperature=0.7)
        return jnp.sum(jnp.where(here, scores.logps * weights, 0))

    (value, gradient), (expected, reference) = (jax.jit(jax.value_and_grad(f))(hidden) for f in (ours, dense))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, reference, atol=1e-5)


def test_the_sft_loss_takes_written_text_as_a_hard_target():
    """Independent NumPy loop over unpadded sequences with materialised logits."""
    data = jax.tree.map(np.asarray, SFTBatch(*(array[:4] for array in toy.examples(8, free=True).arrays)))
    total = weights = texts = 0.0
    head = np.asarray(STUDENT.params["embed"], np.float64)
    for b in range(4):
        for n in range(data.chains.shape[1]):
            prompt, chain = data.prompts[b][data.prompt_valid[b]], data.chains[b, n][data.chain_valid[b, n]]
            if not len(chain):
                continue
            hidden = toy.plain_forward(STUDENT.with_lora(LORA), np.concatenate([prompt, chain]))[len(prompt) - 1 :]
            z = np.asarray(hidden, np.float64) @ head.T
            logp = z - z.max(-1, keepdims=True)
            logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
            for t, (state, token) in enumerate(zip(data.states[b, n], chain)):
                if STUDENT.chain.grammar.free[state]:
                    ce, texts = -logp[t, token], texts + 1
                else:
                    ids, q = STUDENT.chain.grammar.token[state], data.targets[b, n, t]
                    ce = -sum(q[a] * logp[t, ids[a]] for a in range(len(ids)) if ids[a] >= 0)
                total, weights = total + data.weights[b, n] * ce, weights + data.weights[b, n]
    assert texts > 10
    np.testing.assert_allclose(data.targets.sum(-1)[data.chain_valid], 1, rtol=1e-5)
    compiled = jax.jit(partial(sft_loss, config=STUDENT.config, lora_scale=STUDENT.lora_scale))
    loss, metrics = compiled(LORA, STUDENT.params, STUDENT.grammar, data)
    np.testing.assert_allclose(loss, total / weights, rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], weights, rtol=1e-6)


def test_no_array_of_tokens_by_vocabulary():
    """Forward and backward of token_log_probs: more free states than one chunk, yet at most a chunk of logits."""
    vocabulary, rows = STUDENT.config.vocab_size, 60
    shape = (rows, 6, STUDENT.chain_length)
    states = jnp.zeros(shape, jnp.int32)
    arguments = (STUDENT.grammar, states, states, jnp.ones(shape, bool))

    def total(hidden):
        return token_log_probs(STUDENT.params, STUDENT.config, hidden, *arguments).logps.sum()

    largest = largest_array(vocabulary, jax.value_and_grad(total), jnp.zeros((*shape, STUDENT.config.hidden_size)))
    free_states = rows * 6 * int(STUDENT.chain.grammar.free.sum())
    assert free_states > 2 * 256
    assert 128 * vocabulary <= largest <= 256 * vocabulary < free_states * vocabulary // 4  # even chunks of at most 256


def test_a_grammar_without_free_text_has_none_of_it():
    """No branch, no array of the vocabulary's size beside the embedding itself: the choice falls before compilation."""
    plain = toy.student()
    assert plain.grammar.free is None
    assert len(jax.tree.leaves(plain.grammar)) == 8
    keys = request_keys(jax.random.key(0), jnp.arange(8).reshape(4, 2))

    def chains(student):
        shape = {**SHAPE, "max_length": student.chain_length}
        return lambda: sample_chains(
            student.params, grammar=student.grammar, prompts=PROMPTS, prompt_valid=VALID, keys=keys, **shape
        )

    assert largest_array(plain.config.vocab_size, chains(plain)) == 0
    assert largest_array(plain.config.vocab_size, chains(STUDENT)) == 8 * plain.config.vocab_size


def test_an_osipo_update_is_on_policy_and_learns_a_rewarded_word():
    """A made-up outcome: the answer is right exactly when the free text of "why" begins with one word."""
    replay = SFTBatch(*(jnp.asarray(array[:4]) for array in toy.examples(8, free=True).arrays))
    state, shares = OSIPOState(start(FEW.lora, OPTIMIZER), start(FEW.lora, OPTIMIZER)), []
    wanted = FEW.tokenizer.encode(" sport")[0]
    right, wrong = jnp.asarray([0.97, 0.01, 0.01, 0.01]), jnp.asarray([0.01, 0.01, 0.01, 0.97])
    for update in range(20):
        sampled = sample(FEW, seed=update, lora=state.policy.lora)
        place = jnp.argmax(sampled.states == FEW.chain.slots[4].start, axis=-1)
        hit = jnp.take_along_axis(sampled.tokens, place[..., None], axis=-1) == wanted
        shares.append(float(jnp.mean(hit)))
        sampled = sampled._replace(answers=jnp.where(hit, right, wrong))
        batch = OSIPOBatch(PROMPTS, VALID, sampled, jnp.zeros(4, jnp.int32))
        state, metrics = step(state, FEW.params, FEW.lora, FEW.grammar, batch, replay, 0.0)
        if not update:
            assert abs(float(metrics["ratio"]) - 1) < 1e-4 and float(metrics["clip_fraction"]) == 0
            assert abs(float(metrics["kl"])) < 1e-6 and float(metrics["valid_rate"]) == 1
            assert float(metrics["replay_loss"]) > 0 and np.isfinite([float(v) for v in metrics.values()]).all()
    assert np.mean(shares[-3:]) > np.mean(shares[:3]) + 0.3, shares
