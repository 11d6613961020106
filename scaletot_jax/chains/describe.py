"""A chain in words, for reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scaletot_jax.chains.automaton import Value
from scaletot_jax.chains.spec import ChainSpec


def describe(
    spec: ChainSpec, values: Sequence[Value], bucket: int | None, decode: Callable[[list[int]], str] | None = None
) -> tuple[list[tuple[str, list[tuple[str, str]]]], str | None]:
    """``[(segment title, [(slot name, value), ...]), ...]`` and the answer in the teacher's phrase (e.g. "2-3 days").

    Args:
      spec: the chain specification.
      values: one value a slot, in the order of ``spec.slots``.
      bucket: the answer, or ``None``.
      decode: turns token ids of free text into a string; needed only where a value is given as ids.

    Returns:
      Strings in lists and tuples, ready for JSON.
    """
    rest = iter(values)
    segments = []
    for segment in spec.segments:
        pairs = []
        for slot in segment.slots:
            value = next(rest)
            if not isinstance(value, str):
                value = decode(list(value)).strip() if decode else " ".join(map(str, value))
            pairs.append((slot.name, value))
        segments.append((segment.title, pairs))
    return segments, None if bucket is None else spec.answer.phrases[bucket].strip()
