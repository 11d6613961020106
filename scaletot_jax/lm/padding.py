"""Padded lengths: a compiled program has one shape, so lengths are rounded up to few distinct ones."""

from __future__ import annotations


def round_up(length: int, multiple: int) -> int:
    """The smallest positive multiple of ``multiple`` that is not below ``length``."""
    return max(multiple, -(-length // multiple) * multiple)


def bucket(length: int, least: int) -> int:
    """The smallest power of two that is not below ``length``, or ``least`` where that is more."""
    return max(least, 1 << max(0, length - 1).bit_length())
