"""The ids of a profile's text, at most so many: teacher and student cut a long profile in the same way."""

from __future__ import annotations

from collections.abc import Callable


def fit_profile(text: str, encode: Callable[[str], list[int]], limit: int) -> tuple[list[int], int]:
    """Ids of a profile of at most ``limit`` tokens: whole lines are left out from the top, because activity comes last.

    Args:
      text: the renderer's text, one line a field.
      encode: text → ids; for data from outside, one under which the name of a control token is plain characters.
      limit: most tokens.

    Returns:
      The ids, and the number of tokens left out. If even the last line is too long, its end is kept.
    """
    lines = [list(encode(line)) for line in text.splitlines(keepends=True)]
    whole = sum(map(len, lines))
    while sum(map(len, lines)) > limit and len(lines) > 1:
        lines.pop(0)
    ids = [token for line in lines for token in line][-limit:]
    return ids, whole - len(ids)
