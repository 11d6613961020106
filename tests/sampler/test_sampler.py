"""The sampler against the plain forward pass, against itself in other company, and against the trainer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from lm.conftest import make_config
from student import toy

from scaletot_jax.errors import DataError
from scaletot_jax.lm import head
from scaletot_jax.lm.model import forward, unstack_layers
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, parameter_shardings
from scaletot_jax.sampler import decode, slots
from scaletot_jax.sampler.constraint import chain_automaton, free_text, join
from scaletot_jax.sampler.sampler import Request, Sampler
from scaletot_jax.sampler.slots import Sizes
from scaletot_jax.sampler.stop_strings import stop_table
from scaletot_jax.student.constrained import token_log_probs

CONFIG = make_config()
PARAMS = tiny.random_params(CONFIG)
STOP = 3
TEXT = free_text([STOP])
VOCABULARY = [bytes([97 + i % 26]) for i in range(CONFIG.vocab_size)]


def prompt(seed, length):
    return np.random.default_rng(seed).integers(4, CONFIG.vocab_size, length).tolist()


def requests(**settings):
    return [Request(prompt(i, 3 + 5 * i), jax.random.key(i), **settings) for i in range(5)]


@pytest.fixture(scope="module")
def sampler():
    stops = [stop_table(["e"], VOCABULARY), stop_table(["fgh", "xa"], VOCABULARY)]
    return Sampler(PARAMS, CONFIG, [TEXT], Sizes(2, 3, 64, 8), filters=True, stop_sets=stops)


def logits_of(params, config, ids, length=80):
    padded = jnp.asarray([ids + [0] * (length - len(ids))])
    return np.asarray(_logits(params, config, padded)[0, : len(ids)], np.float64)


_logits = jax.jit(
    lambda params, config, ids: head.logits(params, config, forward(params, config, ids).hidden), static_argnums=1
)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def check(params, config, request, sample):
    """Every number of a sample against a forward pass over prompt and text."""
    ids = [*request.prompt, *sample.tokens.tolist()]
    logits = logits_of(params, config, ids)[len(request.prompt) - 1 : -1]
    own = log_softmax(logits)
    places = np.arange(len(sample.tokens)), sample.tokens
    np.testing.assert_allclose(sample.model_logps, own[places], atol=1e-4)
    np.testing.assert_allclose(sample.model_entropy, -(np.exp(own) * own).sum(-1), atol=1e-4)
    np.testing.assert_allclose(sample.logps, log_softmax(logits / request.temperature)[places], atol=1e-4)


def test_every_number_is_that_of_a_forward_pass(sampler):
    asked = requests(temperature=0.7)
    served = dict(sampler.generate(asked))
    assert sorted(served) == [0, 1, 2, 3, 4]
    for index, samples in served.items():
        assert len(samples) == 3
        for sample in samples:
            check(PARAMS, CONFIG, asked[index], sample)
            if sample.reason == "closed":
                assert sample.tokens[-1] == STOP and STOP not in sample.tokens[:-1]
            else:
                assert sample.reason == "budget" and len(sample.tokens) == 8 and STOP not in sample.tokens
    assert len({tuple(sample.tokens) for samples in served.values() for sample in samples}) > 10


@pytest.mark.parametrize("settings", ({}, {"temperature": 0.5, "top_k": 4}, {"top_p": 0.6}, {"temperature": 0.0}))
def test_a_request_does_not_depend_on_its_company(sampler, settings):
    asked = requests(**settings)
    served = dict(sampler.generate(asked))
    backwards = dict(sampler.generate(asked[::-1]))
    for index, request in enumerate(asked):
        ((_, alone),) = sampler.generate([request])
        for one, other, third in zip(served[index], alone, backwards[4 - index], strict=True):
            for a, b, c in zip(one, other, third):
                np.testing.assert_array_equal(a, b)
                np.testing.assert_array_equal(a, c)


def test_greedy_text_is_the_argmax(sampler):
    request = requests(temperature=0.0)[2]
    ((_, samples),) = sampler.generate([request])
    ids = [*request.prompt, *samples[0].tokens.tolist()]
    best = logits_of(PARAMS, CONFIG, ids).argmax(-1)
    np.testing.assert_array_equal(samples[0].tokens, best[len(request.prompt) - 1 : -1])
    assert all(np.array_equal(sample.tokens, samples[0].tokens) for sample in samples)


def test_limits_goals_and_stop_strings(sampler):
    for limit in (1, 5):
        for _, samples in sampler.generate(requests(limit=limit)):
            assert max(len(sample.tokens) for sample in samples) == limit
    stopped = 0
    for which, strings in enumerate(((b"e",), (b"fgh", b"xa"))):
        for _, samples in sampler.generate(requests(stops=which)):
            for sample in samples:
                text = b"".join(VOCABULARY[token] for token in sample.tokens)
                found = [text.find(string) for string in strings if string in text]
                assert (sample.reason == "stopped") == bool(found)
                if found:
                    stopped += 1
                    assert not any(string in text[:-1] for string in strings)
    assert stopped


def test_an_adopted_branch_goes_on_as_if_it_had_been_the_prompt(sampler):
    """Two adoptions in a row, ring columns out of order, against a prompt run afresh."""
    first = requests()[1]
    sampler.fill(0, first.prompt)
    sampler.begin(0, first._replace(limit=5))
    sampler.decode([0])
    text = sampler.read(0)[2].tokens.tolist()
    sampler.adopt(0, 2)
    sampler.begin(0, first._replace(key=jax.random.key(50)))
    sampler.decode([0])
    text += sampler.read(0)[1].tokens.tolist()
    sampler.adopt(0, 1)
    sampler.copy_prompt(0, 1)
    last = Request([*first.prompt, *text], jax.random.key(51))
    sampler.begin(1, last)
    sampler.decode([1])
    forked = sampler.read(1)
    fresh = Sampler(PARAMS, CONFIG, [TEXT], Sizes(1, 3, 64, 8))
    ((_, expected),) = fresh.generate([last])
    for one, other in zip(forked, expected, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_allclose(one.model_logps, other.model_logps, atol=1e-5)
        check(PARAMS, CONFIG, last, one)


def test_a_prompt_that_is_held_is_not_run_again(sampler, monkeypatch):
    asked = requests()[0]
    list(sampler.generate([asked]))
    monkeypatch.setattr(sampler, "_fill", lambda *_: pytest.fail("the prompt was run again"))
    ((_, samples),) = sampler.generate([asked._replace(key=jax.random.key(9))])
    check(PARAMS, CONFIG, asked, samples[0])


def test_windows_and_local_angles():
    """A Gemma-like model whose window is shorter than prompt and text."""
    config = dataclasses.replace(
        CONFIG, windows=(4, 4, 0), local_rope_theta=100.0, qk_norm=True, post_norms=True, norm_offset=1.0
    )
    params = tiny.random_params(config)
    request = Request(prompt(3, 20), jax.random.key(0), temperature=1.3)
    ((_, samples),) = Sampler(params, config, [free_text(())], Sizes(1, 2, 32, 8)).generate([request])
    for sample in samples:
        assert len(sample.tokens) == 8
        check(params, config, request, sample)


@pytest.mark.parametrize("free", (False, True))
@pytest.mark.parametrize("temperature", (0.3, 0.7, 1.0, 1.3))
def test_log_probabilities_are_the_trainers(free, temperature):
    """A chain under its grammar, beside free text in the same program; the trainer's numbers on the same tokens."""
    student, sampling = chain_sampler(free)
    ids = student.tokenizer.encode("Age: 35-44\nActivity: 7 clicks on 2 days\n")
    asked = [Request(ids, jax.random.key(i), temperature=temperature, automaton=i % 2) for i in range(4)]
    served = dict(sampling.generate(asked))
    for index in (0, 2):
        for sample in served[index]:
            assert sample.reason == "closed"
            tokens = [int(token) for token in sample.tokens]
            state, states = student.chain.start, []
            for token in tokens:
                states.append(state)
                state = student.chain.step(state, token)
            assert state == student.chain.end
            hidden = forward(student.params, student.config, jnp.asarray([[*ids, *tokens]])).hidden
            scores = token_log_probs(
                student.params,
                student.config,
                hidden[:, len(ids) - 1 : -1],
                student.grammar,
                jnp.asarray([states]),
                jnp.asarray([tokens]),
                jnp.ones((1, len(tokens)), bool),
                temperature=temperature,
            )
            np.testing.assert_allclose(sample.logps, scores.logps[0], atol=1e-4)
    for sample in (*served[1], *served[3]):
        assert sample.reason == "budget" or sample.tokens[-1] == student.tokenizer.eos_id


_SAMPLERS: dict = {}


def chain_sampler(free):
    if free not in _SAMPLERS:
        student = toy.student(layers=1, free=free)
        automaton, _ = chain_automaton(student.chain)
        automata = [automaton, free_text([student.tokenizer.eos_id])]
        sizes = Sizes(2, 2, 64, student.chain.max_length)
        _SAMPLERS[free] = student, Sampler(student.params, student.config, automata, sizes)
    return _SAMPLERS[free]


def test_a_segment_can_be_the_goal():
    student, sampling = chain_sampler(False)
    _, number = chain_automaton(student.chain)
    ids = student.tokenizer.encode("Age: 35-44\n")
    after_title, closing = int(student.chain.body_starts[0]), student.chain.close_token
    goal = next(
        int(after)
        for state in student.chain.close_states[0]
        for token, after in zip(student.chain.grammar.token[state], student.chain.grammar.next_state[state])
        if state >= 0 and token == closing
    )
    request = Request(ids, jax.random.key(1), start=int(number[after_title]), goal=int(number[goal]))
    ((_, samples),) = sampling.generate([request])
    for sample in samples:
        assert sample.reason == "closed"
        assert sample.tokens.tolist().count(closing) == 1 and sample.tokens[-1] == closing


def test_decoding_writes_in_place():
    """Neither prompts nor rings are held twice: temporary memory stays below a fraction of them."""
    config = make_config(head_dim=64, num_heads=2)
    params = unstack_layers(tiny.random_params(config))
    made = slots.empty(config, Sizes(2, 4, 2048, 256), jnp.float32)
    held = sum(leaf.nbytes for leaf in (*made.prompt_keys, *made.prompt_values, *made.suffix_keys, *made.suffix_values))
    constraint, kinds, _ = join([free_text(())], config.vocab_size)
    options = {"features": decode.Features(kinds), "until_group": True}

    def run(made):
        return decode.decode(params, config, constraint, jnp.zeros((1, 1, 1)), made, jnp.ones(2, bool), **options)

    memory = jax.jit(run, donate_argnums=0).lower(made).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= held
    assert memory.temp_size_in_bytes < held / 8


@pytest.mark.parametrize("axes", ({"data": 2, "tensor": 2}, {"data": 1, "tensor": 2}))
def test_a_mesh_of_devices_gives_the_same_text(axes):
    mesh, rules = make_mesh(**axes), ShardingRules()
    params = jax.device_put(PARAMS, parameter_shardings(PARAMS, mesh, dataclasses.replace(rules, vocab=None)))
    sampling = Sampler(params, CONFIG, [TEXT], Sizes(2, 2, 64, 8), mesh=mesh, rules=rules)
    spec = sampling.slots.prompt_keys[0].sharding.spec
    assert tuple(spec) == (("data", "fsdp"), "tensor", None, None)
    single = Sampler(PARAMS, CONFIG, [TEXT], Sizes(2, 2, 64, 8))
    asked = requests()
    served, expected = dict(sampling.generate(asked)), dict(single.generate(asked))
    for index in expected:
        for one, other in zip(served[index], expected[index], strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_allclose(one.model_logps, other.model_logps, atol=1e-4)


def test_requests_that_cannot_be_served_are_refused(sampler):
    good = requests()[0]
    plain = Sampler(PARAMS, CONFIG, [TEXT], Sizes(1, 1, 16, 4))
    for bad, words in (
        (good._replace(prompt=[]), "does not fit"),
        (good._replace(prompt=[1] * 65), "does not fit"),
        (good._replace(prompt=[1, CONFIG.vocab_size]), "does not have"),
        (good._replace(automaton=1), "automaton"),
        (good._replace(stops=2), "stop strings"),
        (good._replace(limit=9), "out of range"),
        (good._replace(temperature=-1.0), "out of range"),
        (good._replace(top_p=0.0), "out of range"),
    ):
        with pytest.raises(DataError, match=words):
            list(sampler.generate([bad]))
    with pytest.raises(DataError, match="filters=True"):
        list(plain.generate([good._replace(top_k=2)]))
    plain.fill(0, [5] * 13)
    plain.begin(0, good)
    plain.decode([0])
    with pytest.raises(DataError, match="storage is full"):
        plain.adopt(0, 0)
    with pytest.raises(DataError, match="below 1"):
        Sampler(PARAMS, CONFIG, [TEXT], Sizes(0, 1, 16, 4))
