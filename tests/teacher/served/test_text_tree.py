"""The tree of values walked with top-k tokens equals the exact scorer's distribution, and keeps its bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from teacher.served.toy_server import Toy

from scaletot_jax.teacher.served.reading import drive
from scaletot_jax.teacher.served.text_tree import Token, entropy_of, tail_of, walk
from scaletot_jax.teacher.token_tree import Variant, read_values, token_tree

DAYS = (" 0 days", " 1 day", " 2-3 days", " 8-14 days", " 15-22 days", " 23-30 days")
DIGITS = (*map(str, range(10)), " ", "-", " day", " days")


def top_of(toy, prompt, k):
    return tuple(Token(*pair) for pair in toy.top(prompt, k))


def exact(toy, prompt, values):
    """The local scorer's distribution over ``values`` for a model whose tokens are the toy's, by greedy longest match."""
    ids = {text: i for i, text in enumerate(toy.vocabulary)}

    def encode(text):
        out = []
        while text:
            token = max((t for t in ids if text.startswith(t)), key=len)
            out.append(ids[token])
            text = text[len(token) :]
        return tuple(out)

    tree = token_tree([Variant((0,), tuple(map(encode, values)))], close=ids["\n"], full=False)
    spelled = [""] * len(tree.tokens)  # text after the stem's own token
    for i in range(1, len(spelled)):
        mother = max((j for j in range(i) if tree.ancestors[i, j]), default=0)
        spelled[i] = spelled[mother] + toy.vocabulary[tree.tokens[i]]
    local = np.zeros(tree.candidates.shape)
    for r, (node, row) in enumerate(zip(tree.nodes, tree.candidates)):
        listed = row[row >= 0]
        scores = toy.log_probs(prompt + spelled[node])[listed]
        local[r, : len(listed)] = scores - np.log(np.exp(scores).sum())
    return read_values(tree, local, local)[0].local


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        ((" none", " few", " many"), (" none", " few", " many", " no")),
        (DAYS, DIGITS),
        ((" 1", " 1 day", " 12"), ("1", "2", " ", " day")),  # " 1" is the beginning of the others
        ((" inactive", " active"), (" inactive", " active", " in", " act", "active")),
    ],
)
def test_with_all_tokens_told_it_is_the_exact_scorer(values, tokens, seed):
    toy, prompt = Toy(tokens), f"stem {seed}:"
    found = drive(walk(values), lambda prefix: top_of(toy, prompt + prefix, 99))
    np.testing.assert_allclose(found.log_probs, exact(toy, prompt, values), atol=1e-5)
    assert found.unseen == 0 and found.tail == pytest.approx(0, abs=1e-9)


def test_requests_are_the_places_where_values_part():
    places = []

    def tell(prefix):
        places.append(prefix)
        return top_of(Toy(DIGITS), prefix, 99)

    assert drive(walk(DAYS), tell).requests == len(places)
    assert places == ["", " ", " 1", " 2"]  # " 1 day" or " 15-22", " 2-3" or " 23-30"


def test_values_outside_the_top_share_what_is_left():
    top = (Token(" few", math.log(0.5)), Token(" the", math.log(0.2)))
    found = drive(walk((" few", " many", " most")), lambda _: top)
    np.testing.assert_allclose(np.exp(found.log_probs), np.array([0.5, 0.15, 0.15]) / 0.8)  # tail .3 for two
    assert (found.unseen, found.requests) == (2, 1)
    crowded = drive(walk((" few", " many")), lambda _: (*top, Token(" a", math.log(0.05))))
    np.testing.assert_allclose(np.exp(crowded.log_probs), np.array([0.5, 0.05]) / 0.55)  # no more than the least told
    assert entropy_of(top) == pytest.approx(-(0.5 * np.log(0.5) + 0.2 * np.log(0.2) + 0.3 * np.log(0.3)))
    assert tail_of(top) == pytest.approx(0.3)


def test_a_part_of_a_word_is_not_taken_for_the_word():
    """ " in" is likely, but hardly ever begins " inactive", which is itself below the top."""
    tops = {
        "": (Token(" in", math.log(0.6)), Token(" active", math.log(0.1)), Token(".", math.log(0.01))),
        " in": (Token(" the", math.log(0.9)), Token("active", math.log(1e-4))),
    }
    found = drive(walk((" inactive", " active")), tops.__getitem__)
    assert np.exp(found.log_probs[0]) == pytest.approx(0.01 / 0.11)  # the most it can have: the least told
    tops[" in"] = (Token("active", math.log(0.5)), Token(" the", math.log(0.4)))
    found = drive(walk((" inactive", " active")), tops.__getitem__)
    assert np.exp(found.log_probs[0]) == pytest.approx(0.3 / 0.4)


def test_a_token_may_hold_the_close():
    top = (Token(" few\n", math.log(0.3)), Token(" few", math.log(0.3)), Token(" fewer", math.log(0.2)))
    found = drive(walk((" few", " many")), lambda _: top)
    np.testing.assert_allclose(np.exp(found.log_probs), np.array([0.6, 0.2]) / 0.8)


def test_nothing_told_is_nothing_known():
    found = drive(walk((" a", " b", " c")), lambda _: ())
    np.testing.assert_allclose(np.exp(found.log_probs), 1 / 3)
    assert found.unseen == 3
    np.testing.assert_allclose(np.exp(drive(walk((" a", " b")), lambda _: None).log_probs), 1 / 2)


@pytest.mark.parametrize("values", [(" a",), (" a", " a"), (" a", "")])
def test_values_that_cannot_be_told_apart_are_refused(values):
    with pytest.raises(ValueError, match="different"):
        next(walk(values))


words = st.text(alphabet="ab1 -", min_size=1, max_size=5)


@given(st.sets(words, min_size=2, max_size=6), st.sets(words, max_size=12), st.integers(1, 12), st.integers(0, 9))
def test_any_server_gives_a_distribution_in_few_requests(values, tokens, k, seed):
    values, toy, places = tuple(sorted(values)), Toy(tuple(sorted(tokens))), []

    def tell(prefix):
        places.append(prefix)
        return top_of(toy, f"{seed}{prefix}", k)

    found = drive(walk(values), tell)
    assert np.exp(found.log_probs).sum() == pytest.approx(1) and np.isfinite(found.log_probs).all()
    assert len(places) == len(set(places)) == found.requests <= 1 + sum(map(len, values)) + len(values)
    assert all(any(v.startswith(prefix) or prefix.startswith(v) for v in values) for prefix in places)
    assert 0 <= found.unseen <= len(values) and 0 <= found.tail <= 1
    again = drive(walk(values), lambda prefix: top_of(toy, f"{seed}{prefix}", k))
    np.testing.assert_array_equal(again.log_probs, found.log_probs)
