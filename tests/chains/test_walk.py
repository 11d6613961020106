"""The device walk agrees with the compiled chain's own steps and with the parser."""

import jax
import numpy as np
from chains.example import EOS, example
from chains.test_parser import values
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.chains.parser import parse
from scaletot_jax.chains.walk import trace, walk

CHAIN = example()
KNOWN = sorted({int(t) for t in CHAIN.grammar.token.ravel() if t >= 0})
LENGTH = 40  # one shape for all examples: one compilation

jit_trace = jax.jit(trace)


def padded(rows):
    tokens = np.full((4, LENGTH), EOS, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row[:LENGTH]
    return tokens


def stepwise(tokens):
    """The reference: one row, one token at a time."""
    states, inside, state = [], [], CHAIN.start
    for token in tokens:
        states.append(state)
        after = CHAIN.step(state, int(token))
        inside.append(after >= 0)
        state = after if after >= 0 else CHAIN.end
    return states, inside


any_row = st.one_of(
    st.tuples(values, st.integers(0, 2)).map(lambda pair: CHAIN.serialize(*pair)),
    st.tuples(values, st.integers(0, 2), st.integers(0, 30), st.sampled_from([*KNOWN, 7, -1])).map(
        lambda t: (ids := CHAIN.serialize(*t[:2]))[: t[2]] + [t[3]] + ids[t[2] + 1 :]
    ),
    st.lists(st.one_of(st.sampled_from(KNOWN), st.integers(-3, 2**31 - 1)), max_size=LENGTH),
)


@given(st.lists(any_row, min_size=4, max_size=4))
def test_walk_equals_steps(rows):
    tokens = padded(rows)
    found = jit_trace(CHAIN.grammar, CHAIN.start, tokens)
    for i, row in enumerate(tokens):
        states, inside = stepwise(row)
        np.testing.assert_array_equal(found.states[i], states)
        np.testing.assert_array_equal(found.inside[i], inside)
    listed = np.asarray(found.alternative) >= 0
    at = np.asarray(found.states)[listed], np.asarray(found.alternative)[listed]
    np.testing.assert_array_equal(CHAIN.grammar.token[at], tokens[listed])
    np.testing.assert_array_equal(CHAIN.grammar.closes[at], np.asarray(found.closes)[listed])
    assert np.all(np.asarray(found.inside) >= listed) and np.all(np.asarray(found.closes)[~listed] == -1)


@given(st.lists(st.tuples(values, st.integers(0, 2)), min_size=4, max_size=4))
def test_segments_equal_the_parser_on_complete_chains(chosen):
    tokens = padded([CHAIN.serialize(*pair) for pair in chosen])
    found = jit_trace(CHAIN.grammar, CHAIN.start, tokens)
    for i, row in enumerate(tokens):
        parsed = parse(CHAIN, row.tolist())
        assert parsed.complete
        np.testing.assert_array_equal(found.segment[i], parsed.segment_ids)
        closing = np.asarray(found.closes[i])
        assert [int(np.flatnonzero(closing == k)[0]) + 1 for k in range(3)] == [
            segment.end for segment in parsed.segments
        ]
        assert np.sum(closing >= 0) == 3
        np.testing.assert_array_equal(np.asarray(found.inside[i]), parsed.segment_ids > -3)


def test_leaving_and_ending_differ():
    ids = CHAIN.serialize(["young", "settled", [], "tins", []], 0)
    left = [*ids[:4], 10**6, *ids[5:]]
    found = trace(CHAIN.grammar, CHAIN.start, padded([ids, left, [], ids]))
    assert np.all(np.asarray(found.segment[0, len(ids) :]) == -3)
    assert np.all(np.asarray(found.segment[1, 4:]) == -1) and not np.any(found.inside[1, 4:])
    assert np.all(np.asarray(found.segment[2]) == -1) and not np.any(found.inside[2])


def test_walk_is_the_start_of_trace_and_can_begin_anywhere():
    ids = CHAIN.serialize(["older", "moving", [7], "fresh", [8, 9]], 2)
    full_states, _ = walk(CHAIN.grammar, CHAIN.start, np.asarray([ids, ids]))
    cut = 9
    starts = np.asarray(full_states)[:, cut]
    states, inside = walk(CHAIN.grammar, starts, np.asarray([ids, ids])[:, cut:])
    np.testing.assert_array_equal(states, np.asarray(full_states)[:, cut:])
    assert states.dtype == np.int32 and inside.dtype == bool and np.all(inside)
