"""Padded lengths: a compiled program has one shape, so lengths are rounded up to few distinct ones."""

from __future__ import annotations


def round_up(length: int, multiple: int) -> int:
    """The smallest positive multiple of ``multiple`` that is not below ``length``."""
    return max(multiple, -(-length // multiple) * multiple)
