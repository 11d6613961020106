"""What search, writing and language model say to each other: requests about one profile, and the replies."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from scaletot_jax.teacher.tree import NO_VALUE

Values = tuple[int, ...]  # one value index a slot of a segment
Kind = Literal["segment", "revision", "answer"]


class Segment(NamedTuple):
    """One segment of one profile. ``fixed``: per slot the value decided by rule, or NO_VALUE where it is to be judged;
    ``unknown``: per slot the index of "unknown"; ``sizes``: per slot the number of values."""

    fixed: Values
    unknown: Values
    sizes: Values

    @property
    def scored(self) -> bool:
        return NO_VALUE in self.fixed


class Draw(NamedTuple):
    """Reply to a segment or a revision: per slot a distribution over its values, and how uncertain the node is."""

    probabilities: tuple[np.ndarray, ...]
    entropy: float
    disagreement: float
    uncertainty: float
    focus: int  # the slot a revision would ask about
    tokens: int
    spreads: tuple[float, ...] = ()  # per slot, its own disagreement; 0 for a fixed one


class Answer(NamedTuple):
    """Reply to an answer: a distribution over the buckets."""

    probabilities: np.ndarray
    tokens: int


class Ask(NamedTuple):
    """One call to the language model. ``slot`` and ``conflict`` belong to revisions."""

    kind: Kind
    path: tuple[Values, ...]
    segment: int = -1
    slot: int = -1
    conflict: tuple[int, int] = (NO_VALUE, NO_VALUE)


class TextRequest(NamedTuple):
    """A text to be written after one profile.

    Attributes:
      profile: row of the batch.
      lead: the chain so far as pieces of text, up to the place of the text; no space follows.
      close: the mark that ends the text, ";" or a line break.
      max_tokens: most tokens of the text.
    """

    profile: int
    lead: tuple[str, ...]
    close: str
    max_tokens: int


class Draft(NamedTuple):
    """What the model wrote.

    Attributes:
      text: as decoded.
      ids: its tokens, at most ``max_tokens``; empty where the writer does not know them.
      log_probs: of each token under the model's own distribution (nothing masked), nats.
      entropies: of that distribution at each token, nats.
      closed: whether the model ended it; False where ``max_tokens`` did.
      tokens: read and written, which count against the bound.
    """

    text: str
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    entropies: tuple[float, ...]
    closed: bool
    tokens: int
