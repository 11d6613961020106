"""Joined automata walk as the ones they were made from."""

import jax.numpy as jnp
import numpy as np
import pytest
from chains import example

from scaletot_jax.errors import DataError
from scaletot_jax.sampler.constraint import END, advance, allowed_tokens, chain_automaton, free_text, join


def random_chain(chain, vocab, rng):
    """Any chain the grammar accepts, token by token."""
    state = chain.start
    while state != chain.end:
        token = next(token for token in map(int, rng.permutation(vocab)) if chain.step(state, token) >= 0)
        state = chain.step(state, token)
        yield token


@pytest.fixture(scope="module")
def chain():
    return example.example()


def test_a_chain_is_walked_as_by_its_own_grammar(chain):
    vocab = len(chain.encode.table) + 40
    automaton, number = chain_automaton(chain)
    constraint, kinds, (before, offset) = join([free_text([3]), automaton], vocab)
    assert kinds == (True, True) and before == 0 and offset > 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        state, own = automaton.start + offset, chain.start
        for token in random_chain(chain, vocab, rng):
            listed = set(np.asarray(constraint.tokens[state])) - {-1}
            allowed = np.flatnonzero(allowed_tokens(constraint, jnp.asarray([state]))[0])
            for other in rng.integers(0, vocab, 6):
                fits = chain.step(own, int(other)) >= 0
                assert fits == (other in allowed if constraint.free[state] else other in listed)
            state, own = int(advance(constraint, jnp.asarray([state]), jnp.asarray([token]))[0]), chain.step(own, token)
            assert state == (number[own] + offset if own != chain.end else END)
        assert state == END


def test_free_text_ends_at_its_stop_token_and_nowhere_else():
    constraint, kinds, _ = join([free_text([3, 5], banned=[3, 7])], 9)
    assert kinds == (True, False)
    allowed = np.asarray(allowed_tokens(constraint, jnp.asarray([1])))[0]
    assert allowed.tolist() == [True] * 7 + [False, True]  # a stop token is allowed even where it is banned, too
    after = advance(constraint, jnp.full(9, 1), jnp.arange(9))
    assert after.tolist() == [1, 1, 1, END, 1, END, 1, 1, 1]


def test_a_token_beyond_the_vocabulary_is_named():
    with pytest.raises(DataError, match="token 12"):
        join([free_text([12])], 10)
