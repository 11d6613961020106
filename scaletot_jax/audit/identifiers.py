"""Does a text name the person it is about? Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
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


def named(texts: Sequence[str], identifiers: Sequence[Set[str]]) -> Named:
    """Looks for each row's identifiers in its own text and, for comparison, for those of a row half the table away.

    Upper and lower case are alike; an identifier inside a longer word or number does not count.

    Args:
      texts: one a row.
      identifiers: of those whom the text is about: one, or all who share a profile.
    """
    count = len(texts)
    if not count:
        return Named(0.0, 0.0, -1)
    own = [_holds(text, names) for text, names in zip(texts, identifiers, strict=True)]
    shift = max(1, count // 2)
    other = [_holds(text, identifiers[(i + shift) % count] - identifiers[i]) for i, text in enumerate(texts)]
    return Named(sum(own) / count, sum(other) / count, own.index(True) if any(own) else -1)


def _holds(text: str, names: Iterable[str]) -> bool:
    folded = text.casefold()  # most names are in no text at all, which this tells at once
    return any(
        name
        and name.casefold() in folded
        and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
        for name in names
    )
