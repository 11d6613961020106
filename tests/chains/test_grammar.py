"""The automaton: what it accepts, soft targets, and what it refuses to compile."""

import copy

import numpy as np
import pytest
from chains.example import EOS, PieceEncoder, content, example
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.chains.grammar import AFTER_END, ANSWER, STRUCTURAL, compile_chain
from scaletot_jax.chains.parser import parse
from scaletot_jax.chains.spec import load_spec, parse_spec
from scaletot_jax.errors import DataError

CHAIN = example()
VALUES = ["young", "settling", "a note", "fresh", "x"]


def random_chain(grammar, start, end, rng):
    """Any chain that the arrays allow, read off them without the compiled object's methods."""
    ids, state = [], start
    while state != end:
        alternatives = np.flatnonzero(grammar.token[state] >= 0)
        if grammar.free[state] and rng.random() < 0.6:
            ids.append(int(rng.choice([5, 77, 1000, 123456])))
            if ids[-1] not in grammar.stop:
                state = grammar.free_next[state]
                continue
            ids.pop()
        choice = rng.choice(alternatives)
        ids.append(int(grammar.token[state, choice]))
        state = grammar.next_state[state, choice]
    return ids


def test_a_chain_reads_as_its_text():
    ids = CHAIN.serialize(VALUES, 1)
    assert CHAIN.encode.decode(ids[:-1]) == "Context: young; settling\nInterests: a note; fresh\nRemark: x\nDays: few"
    assert ids[-1] == EOS
    assert CHAIN.serialize(VALUES) == ids[:-2], "without a bucket it stops where the answer is read"


def test_arrays_are_consistent():
    grammar = CHAIN.grammar
    states, width = grammar.token.shape
    for name, array in grammar._asdict().items():
        assert array.dtype == (bool if name in ("decision", "free") else np.int32), name
    for name in ("next_state", "alternative_segment", "closes"):
        assert getattr(grammar, name).shape == (states, width)
    listed = grammar.token >= 0
    assert np.all(listed[:, :-1] | ~listed[:, 1:]), "alternatives come first"
    assert not listed[CHAIN.end].any() and grammar.segment[CHAIN.end] == AFTER_END
    assert np.all(listed.sum(1)[np.arange(states) != CHAIN.end] >= 1), "no other state is a dead end"
    assert np.all(grammar.next_state[~listed] == CHAIN.end)
    for row in grammar.token:
        assert len(set(row[row >= 0])) == (row >= 0).sum(), "the alternatives of a state differ"
    assert np.array_equal(grammar.decision, (listed.sum(1) > 1) | grammar.free)
    assert CHAIN.end == states - 1
    assert grammar.segment[CHAIN.answer_state] == ANSWER
    np.testing.assert_array_equal(grammar.token[CHAIN.answer_state, :3], CHAIN.answer_tokens)
    # A state's segment is that of all its alternatives, but for a closing token that competes with a longer value.
    differs = listed & (grammar.alternative_segment != grammar.segment[:, None])
    assert np.all(np.isin(grammar.token[differs], [CHAIN.close_token, CHAIN.slots[0].close]))
    assert np.all(grammar.alternative_segment[differs] == STRUCTURAL)


def test_close_states_emit_the_closing_tokens():
    grammar = CHAIN.grammar
    for k in range(3):
        from_table = {int(s) for s in np.flatnonzero((grammar.closes == k).any(1))}
        assert {s for s in CHAIN.close_states[k].tolist() if s >= 0} == from_table
        assert np.all(grammar.token[grammar.closes == k] == CHAIN.close_token)
    # interests ends with "fresh", which starts "fresh fish": that state closes or goes on; remark is free text of <= 2
    assert [int((row >= 0).sum()) for row in CHAIN.close_states] == [1, 2, 3]


@given(st.integers(0, 2**32 - 1))
def test_every_walk_of_the_arrays_is_a_complete_chain_and_serializes_to_itself(seed):
    ids = random_chain(CHAIN.grammar, CHAIN.start, CHAIN.end, np.random.default_rng(seed))
    parsed = parse(CHAIN, ids)
    assert parsed.complete and len(ids) <= CHAIN.max_length
    assert CHAIN.serialize(parsed.values, parsed.bucket) == ids


def test_max_length_is_reached():
    longest = ["middle", "settling", [7, 7, 7], "fresh fruit", [7, 7]]
    assert len(CHAIN.serialize(longest, 0)) == CHAIN.max_length


def probabilities(data, size):
    weights = data.draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size).filter(any))
    return np.asarray(weights) / np.sum(weights)


@given(st.data())
def test_targets_are_marginals_whose_product_is_the_value_probability(data):
    spec = CHAIN.spec
    distributions = [probabilities(data, len(slot.values)) if slot.source != "free" else None for slot in spec.slots]
    answer = probabilities(data, 3)
    values = [data.draw(st.sampled_from(slot.values)) if slot.source != "free" else [9] for slot in spec.slots]
    bucket = data.draw(st.integers(0, 2))
    ids = CHAIN.serialize(values, bucket)
    targets = CHAIN.token_targets(distributions, answer, values, bucket)
    assert targets.shape == (len(ids), CHAIN.grammar.token.shape[1]) and targets.dtype == np.float32

    products = np.ones(len(spec.slots))
    state, answer_probability = CHAIN.start, None
    for token, row in zip(ids, targets):
        listed = CHAIN.grammar.token[state] >= 0
        own = CHAIN.grammar.token[state] == token
        assert np.all(row[~listed] == 0)
        if own.any():
            np.testing.assert_allclose(row.sum(), 1, rtol=1e-6)
        else:
            assert CHAIN.grammar.free[state] and not row.any()
        slot = CHAIN.grammar.slot[state]
        if state == CHAIN.answer_state:
            answer_probability = row[own][0]
        elif slot >= 0 and own.any():
            products[slot] *= row[own][0]
        else:
            assert not own.any() or row[own] == 1, "forced tokens are one-hot"
        state = CHAIN.step(state, token)
    np.testing.assert_allclose(answer_probability, answer[bucket], rtol=1e-5)
    for slot, (p, value) in enumerate(zip(distributions, values)):
        if p is not None:
            np.testing.assert_allclose(products[slot], p[spec.slots[slot].values.index(value)], rtol=1e-5)


def test_targets_by_hand():
    p = [0.1, 0.2, 0.3, 0.25, 0.15]  # fresh, fresh fish, fresh fruit, tins, unknown
    targets = CHAIN.token_targets([None, None, None, p, None], [0.2, 0.3, 0.5], VALUES, 2)
    _, states = CHAIN.value_path(3, "fresh")
    ids = CHAIN.serialize(VALUES, 2)
    at = len(ids) - 2 - len(CHAIN.titles[-1]) - len(CHAIN.titles[2]) - 2 - len(states)
    rows = {int(token): row for token, row in zip(ids[at:], targets[at : at + len(states)])}
    (first, second), close = CHAIN.value_ids(3, "fresh"), CHAIN.close_token

    def at_state(state, row):
        return {int(token): float(x) for token, x in zip(CHAIN.grammar.token[state], row) if x > 0}

    assert at_state(states[0], rows[first]) == pytest.approx(
        {first: 0.6, CHAIN.value_ids(3, "tins")[0]: 0.25, CHAIN.value_ids(3, "unknown")[0]: 0.15}
    )
    assert at_state(states[1], rows[second]) == pytest.approx({second: 1.0})
    fish, fruit = CHAIN.value_ids(3, "fresh fish")[2], CHAIN.value_ids(3, "fresh fruit")[2]
    assert at_state(states[2], rows[close]) == pytest.approx({fish: 1 / 3, fruit: 1 / 2, close: 1 / 6})


def test_targets_off_the_support_follow_the_chain():
    targets = CHAIN.token_targets([[0, 1, 0, 0], None, None, None, None], [1, 0, 0], VALUES, 0)
    _, states = CHAIN.value_path(0, "young")
    rows = targets[len(CHAIN.titles[0]) : len(CHAIN.titles[0]) + len(states)]
    np.testing.assert_allclose(rows.sum(1), 1)
    middle = CHAIN.value_ids(0, "middle")[0]
    assert rows[0][CHAIN.grammar.token[states[0]] == middle] == 1, "the first token still has the distribution's target"
    assert rows[1][CHAIN.grammar.token[states[1]] == CHAIN.value_ids(0, "young")[1]] == 1


@pytest.mark.parametrize("bad", [[0.5, 0.5], [0, 0, 0, 0], [1, -1, 1, 0], [np.nan, 1, 0, 0]])
def test_a_bad_distribution_is_refused_by_name(bad):
    with pytest.raises(DataError, match="stage"):
        CHAIN.token_targets([bad, None, None, None, None], [1, 0, 0], VALUES)


@pytest.mark.parametrize(
    "values, bucket, message",
    [
        (VALUES[:-1], 0, "5 values, not 4"),
        (["old", *VALUES[1:]], 0, "'old' is not a value of slot 'stage'"),
        ([*VALUES[:2], "a very long note indeed", *VALUES[3:]], 0, "free slot 'note'"),
        ([*VALUES[:2], "a;b", *VALUES[3:]], 0, "reserved"),
        (VALUES, 3, "bucket 3"),
        (VALUES, -1, "bucket -1"),
    ],
)
def test_serialize_refuses_what_is_not_a_chain(values, bucket, message):
    with pytest.raises(DataError, match=message):
        CHAIN.serialize(values, bucket)


def compile_with(change, encode=None):
    spec = copy.deepcopy(content())
    change(spec)
    return compile_chain(parse_spec(spec, where="example"), encode or PieceEncoder(), EOS)


def test_ambiguous_encodings_are_refused_with_their_place():
    same = PieceEncoder()

    def lower(text):  # a tokenizer that does not know case
        return same(text.lower())

    def values(spec):
        spec["segments"][0]["slots"][1]["values"] = ["settled", "Settled", "unknown"]

    compile_with(values)
    with pytest.raises(DataError, match="'settled' and 'Settled' have the same tokens") as caught:
        compile_with(values, lower)
    for part in ("'example'", "segment 'context'", "slot 'home'"):
        assert part in caught.value.where

    def word(spec):
        spec["answer"]["words"][1] = " several"

    with pytest.raises(DataError, match="' several' is not a single token"):
        compile_with(word)

    def twice(spec):
        spec["answer"]["words"] = [" no", " NO", " many"]

    with pytest.raises(DataError, match="' NO' has the id of ' no'"):
        compile_with(twice, lower)

    def title(spec):
        spec["segments"][0]["title"] = "context"
        spec["segments"][1]["title"] = "Context"

    with pytest.raises(DataError, match="titles 'context' and 'Context'"):
        compile_with(title, lower)

    pieces = PieceEncoder()
    with pytest.raises(DataError, match="line break is not a single token"):
        compile_with(lambda spec: None, lambda text: pieces(text) * (2 if text == "\n" else 1))
    with pytest.raises(DataError, match="contains a closing one"):
        compile_with(lambda spec: None, lambda text: pieces(text) + (pieces(";") if text == " moving" else []))
    with pytest.raises(DataError, match="share an id"):
        compile_with(lambda spec: None, lambda text: [3] if text in ";\n" else pieces(text))


@pytest.mark.parametrize("name", ["complete_journey", "kuairand_pure", "oulad", "synthetic"])
def test_built_in_specs_compile_with_any_word_tokenizer(name):
    spec = load_spec(name)
    words = {}
    chain = compile_chain(
        spec, lambda text: [words.setdefault(w, len(words) + 1) for w in text.replace(":", " :").split(" ") if w], EOS
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert parse(chain, random_chain(chain.grammar, chain.start, chain.end, rng)).complete
