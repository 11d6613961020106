"""Does a text name the person it is about? Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

LEAST_SHARE = 0.005  # of texts that may hold their own identifier more often than somebody else's


class Named(NamedTuple):
    """Shares of texts.

    Attributes:
      own: that hold their own identifier as a whole word.
      other: that hold the identifier of another row, which happens by chance to short ones such as ``7``.
      first: the first row that holds its own; −1 where none does.
    """

    own: float
    other: float
    first: int

    @property
    def leak(self) -> bool:
        return self.own - self.other >= LEAST_SHARE


def named(texts: Sequence[str], identifiers: Sequence[str]) -> Named:
    """Looks for each row's identifier in its own text and, for comparison, for that of a row half the table away.

    Upper and lower case are alike; an identifier inside a longer word or number does not count.
    """
    count = len(texts)
    if not count:
        return Named(0.0, 0.0, -1)
    own = [_holds(text, name) for text, name in zip(texts, identifiers, strict=True)]
    shift = max(1, count // 2)
    other = [
        _holds(text, identifiers[(i + shift) % count]) and identifiers[(i + shift) % count] != identifiers[i]
        for i, text in enumerate(texts)
    ]
    return Named(sum(own) / count, sum(other) / count, own.index(True) if any(own) else -1)


def _holds(text: str, name: str) -> bool:
    return bool(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
