"""The parser: any ids parse, every token has one id, and each error is found where it is."""

import numpy as np
import pytest
from chains.example import EOS, example
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.chains.parser import ERRORS, parse

CHAIN = example()
KNOWN = sorted({int(t) for t in CHAIN.grammar.token.ravel() if t >= 0})
NEWLINE, SEMICOLON = CHAIN.close_token, CHAIN.slots[0].close
LINES = ["context", "interests", "remark"]


def lines(values=("young", "settled", "a note", "fresh fish", "x"), bucket=1):
    """The chain as its lines: three segments, then the answer with the end token."""
    ids, parts = CHAIN.serialize(list(values), bucket), [[]]
    for token in ids:
        parts[-1].append(token)
        if token == NEWLINE:
            parts.append([])
    return parts


def join(parts):
    return [token for part in parts for token in part]


values = st.tuples(
    *(
        st.lists(st.sampled_from([7, 900, 2**31 - 1]), max_size=slot.max_tokens).map(tuple)
        if slot.source == "free"
        else st.sampled_from(slot.values)
        for slot in CHAIN.spec.slots
    )
)


def check_partition(ids, parsed):
    """What holds for any response."""
    tags = parsed.segment_ids
    assert tags.shape == (len(ids),) and tags.dtype == np.int32
    assert set(tags.tolist()) <= {0, 1, 2, -1, -2, -3}
    end = ids.index(EOS) if EOS in ids else len(ids)
    assert np.all(tags[end + 1 :] == -3) and not np.any(tags[: end + 1] == -3)
    assert (parsed.bucket is None) == (not np.any(tags == -2)) and np.sum(tags == -2) <= 1
    for k, segment in enumerate(parsed.segments):
        assert segment.ok == (segment.error is None)
        assert segment.error is None or segment.error in ERRORS
        if segment.ok:
            assert 0 <= segment.begin < segment.end <= end and ids[segment.end - 1] == NEWLINE
            assert np.all(np.flatnonzero(tags == k) >= segment.begin) and np.all(
                np.flatnonzero(tags == k) < segment.end
            )
            assert tags[segment.end - 1] == -1
        else:
            assert not np.any(tags == k) and segment.values == ()
    if parsed.complete:
        assert CHAIN.serialize(parsed.values, parsed.bucket) == ids[: end + 1]
    else:
        assert parsed.values is None or parsed.answer_error is not None or parsed.bucket is None


@given(values, st.integers(0, 2), st.lists(st.integers(-5, 2**40), max_size=5))
def test_parse_inverts_serialize(chosen, bucket, after):
    ids = CHAIN.serialize(chosen, bucket)
    parsed = parse(CHAIN, ids + after)
    assert parsed.complete and parsed.bucket == bucket and tuple(parsed.values) == chosen
    check_partition(ids + after, parsed)
    assert [segment.name for segment in parsed.segments] == LINES
    content = [
        sum(len(CHAIN.value_ids(i, v)) for i, v in enumerate(chosen) if CHAIN.spec.segment_of_slot[i] == k)
        for k in range(3)
    ]
    assert [int(np.sum(parsed.segment_ids == k)) for k in range(3)] == content
    assert np.array_equal(parse(CHAIN, np.asarray(ids)).segment_ids, parsed.segment_ids[: len(ids)])


@given(st.lists(st.one_of(st.sampled_from(KNOWN), st.integers(), st.just(EOS)), max_size=60))
def test_any_ids_parse(ids):
    check_partition(ids, parse(CHAIN, ids))


@given(st.data())
def test_edited_chains_parse(data):
    ids = CHAIN.serialize(data.draw(values), data.draw(st.integers(0, 2)))
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["cut", "swap", "repeat", "insert", "delete", "lines"]))
        at, to = sorted((data.draw(st.integers(0, len(ids))), data.draw(st.integers(0, len(ids)))))
        if kind == "cut":
            ids = ids[:to]
        elif kind == "swap" and ids:
            i, j = min(at, len(ids) - 1), min(to, len(ids) - 1)
            ids[i], ids[j] = ids[j], ids[i]
        elif kind == "repeat":
            ids = ids[:to] + ids[at:to] + ids[to:]
        elif kind == "insert":
            ids = ids[:at] + data.draw(st.lists(st.sampled_from(KNOWN), max_size=4)) + ids[at:]
        elif kind == "delete":
            ids = ids[:at] + ids[to:]
        else:
            ids = join(data.draw(st.lists(st.sampled_from(lines()), max_size=7)))
    parsed = parse(CHAIN, ids)
    check_partition(ids, parsed)


@given(values, st.integers(0, 2), st.data())
def test_a_prefix_keeps_its_whole_lines_and_is_truncated(chosen, bucket, data):
    ids = CHAIN.serialize(chosen, bucket)
    cut = data.draw(st.integers(0, len(ids) - 1))
    parsed, whole = parse(CHAIN, ids[:cut]), parse(CHAIN, ids)
    check_partition(ids[:cut], parsed)
    assert not parsed.complete and parsed.answer_error == "truncated"
    for segment, full in zip(parsed.segments, whole.segments):
        assert segment == full if full.end <= cut else segment.error == "truncated"


def errors(ids):
    parsed = parse(CHAIN, ids)
    check_partition(list(ids), parsed)
    return [segment.error for segment in parsed.segments], parsed


def test_missing():
    context, _, remark, answer = lines()
    found, parsed = errors(join([context, remark, answer]))
    assert (
        found == [None, "missing", None] and parsed.bucket == 1 and parsed.answer_error is None and not parsed.complete
    )
    assert errors(answer)[0] == ["missing"] * 3
    found, parsed = errors(join([context, [EOS]]))
    assert found == [None, "missing", "missing"] and parsed.answer_error == "missing"


def test_duplicate():
    context, interests, remark, answer = lines()
    found, parsed = errors(join([context, interests, context, remark, answer]))
    assert found == ["duplicate", None, None] and parsed.segments[0].begin == 0 and parsed.bucket == 1


def test_out_of_order():
    context, interests, remark, answer = lines()
    found, parsed = errors(join([interests, context, remark, answer]))
    assert found == ["out_of_order", None, None] and parsed.bucket == 1 and not parsed.complete
    assert errors(join([remark, interests, context, answer]))[0] == ["out_of_order", "out_of_order", None]


def test_bad_enum_damages_only_its_line():
    context, interests, remark, answer = lines()
    bad = [*CHAIN.titles[0], 10**6, *context[-3:]]
    found, parsed = errors(join([bad, interests, remark, answer]))
    assert found == ["bad_enum", None, None] and parsed.bucket == 1
    assert parsed.segments[0].begin == 0 and parsed.segments[0].end == len(bad)
    assert np.all(parsed.segment_ids[: len(bad)] == -1)
    no_value = [*CHAIN.titles[0], NEWLINE]
    assert errors(join([no_value, interests, remark, answer]))[0][0] == "bad_enum"
    fresh_then_tins = [
        *CHAIN.titles[1],
        SEMICOLON,
        *CHAIN.value_ids(3, "fresh"),
        CHAIN.value_ids(3, "tins")[0],
        NEWLINE,
    ]
    assert errors(join([context, fresh_then_tins, remark, answer]))[0] == [None, "bad_enum", None]
    assert errors([*CHAIN.titles[0], EOS])[0][0] == "bad_enum"


def test_unclosed():
    context, interests, remark, answer = lines()
    found, _ = errors(join([context[:-1], interests, remark, answer]))
    assert found == ["unclosed", "missing", None], "the line swallowed the next one"
    assert errors([*context[:-1], EOS])[0][0] == "unclosed"
    one_slot = [*CHAIN.titles[0], *CHAIN.value_ids(0, "young"), NEWLINE]
    assert errors(join([one_slot, interests, remark, answer]))[0] == ["unclosed", None, None]


def test_overlong():
    context, interests, remark, answer = lines()
    third_slot = [*context[:-1], SEMICOLON, *CHAIN.value_ids(0, "young"), NEWLINE]
    assert errors(join([third_slot, interests, remark, answer]))[0] == ["overlong", None, None]
    long_text = [*CHAIN.titles[2], 7, 7, 7, NEWLINE]
    assert errors(join([context, interests, long_text, answer]))[0] == [None, None, "overlong"]
    found, parsed = errors(join([context, interests, remark, answer[:-1], [7, EOS]]))
    assert found == [None] * 3 and parsed.bucket == 1 and parsed.answer_error == "overlong" and not parsed.complete


def test_bad_answer():
    context, interests, remark, answer = lines()
    _, parsed = errors(join([context, interests, remark, answer[:-2], [7, EOS]]))
    assert parsed.bucket is None and parsed.answer_error == "bad_enum" and not parsed.complete
    _, parsed = errors(join([context, interests, remark, answer[:-2], [EOS]]))
    assert parsed.answer_error == "bad_enum"


def test_text_without_a_title_is_an_unparsed_tail():
    context, interests, remark, answer = lines()
    found, parsed = errors(join([context, [10**6, NEWLINE], interests, remark, answer]))
    assert found == [None, "missing", "missing"] and parsed.bucket is None and parsed.answer_error == "missing"
    assert np.all(parsed.segment_ids[len(context) :] == -1)


def test_the_end_token_ends_everything():
    context, interests, remark, answer = lines()
    ids = join([context, [EOS], interests, remark, answer])
    found, parsed = errors(ids)
    assert found == [None, "missing", "missing"] and np.sum(parsed.segment_ids == -3) == len(ids) - len(context) - 1


@pytest.mark.parametrize("ids", [[], [EOS], [EOS, EOS], [-1], [2**70], np.array([], np.int64)])
def test_tiny_responses(ids):
    _, parsed = errors(list(ids))
    assert not parsed.complete and parsed.bucket is None
