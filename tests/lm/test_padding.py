"""Padded lengths."""

from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.lm.padding import round_up


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_the_smallest_positive_multiple_that_is_long_enough(length, multiple):
    assert round_up(length, multiple) == next(m for m in range(multiple, 11_000, multiple) if m >= length)
