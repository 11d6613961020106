"""Stop strings over tokens: against a search in the joined bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.errors import DataError
from scaletot_jax.sampler.stop_strings import stop_table

VOCABULARY = [
    b"",
    b"a",
    b"b",
    b"ab",
    b"ba",
    b"aab",
    b"bb\n",
    b"\n",
    b"aba",
    "é".encode(),
    "é".encode()[:1],
    "é".encode()[1:],
]


@given(
    st.lists(st.sampled_from(["a", "ab", "aba", "abab", "bb", "\n\n", "é", "bé", "aabaa"]), min_size=1, max_size=4),
    st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=20),
)
def test_the_last_state_is_reached_exactly_when_a_stop_string_has_occurred(strings, tokens):
    table = stop_table(strings, VOCABULARY)
    state, text = 0, b""
    for token in tokens:
        state, text = table[state, token], text + VOCABULARY[token]
        found = any(string.encode() in text for string in strings)
        assert (state == len(table) - 1) == found


def test_shapes_and_errors():
    table = stop_table(["ab"], VOCABULARY)
    assert table.shape == (3, len(VOCABULARY)) and table.dtype == np.int16
    for bad in ([], [""], ["a", ""]):
        with pytest.raises(DataError, match="stop string is empty"):
            stop_table(bad, VOCABULARY)
    with pytest.raises(DataError, match="too long"):
        stop_table(["a" * 5000], VOCABULARY)
