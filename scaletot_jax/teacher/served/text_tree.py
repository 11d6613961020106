"""Allowed values as a tree of text, walked with the top k tokens a server tells at each place. Pure.

A server's tokens are known only by their text, so the tree of values branches where the tokens it reports do. After the
text s, each value v goes on with the longest reported token t that begins what remains of it: text is cut into long
tokens, and a shorter one (" in" of " inactive") begins something else. With the reported probabilities p(t),

    P(v | s) = Σ p(t)                    over the tokens that spell all that remains, alone or with what closes it
    P(v | s) = p(t) · P(v | s t)         where t stops before its end: another request, at s t

Where several values share t, P(· | s t) is taken among them alone, as the local scorer does
(:mod:`scaletot_jax.teacher.token_tree`), and a token that only one value begins with decides it ("8" of " 8-14 days").
Not so if t is white space or stops inside a word, and so may belong to anything: its values get no more than the server
says they have.

A value that no reported token begins is not impossible: it gets the most it can have, min(p_k, tail / m), with p_k the
least reported probability, tail = 1 − Σ p(t), and m such values. So does one that would get less on its way through
white space or a part of a word.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np

_LEAST = 1e-12  # probability of a value that the server rules out


class Token(NamedTuple):
    """A reported token: its text and natural log-probability."""

    text: str
    log_prob: float


Top = tuple[Token, ...]


class Found(NamedTuple):
    """The distribution of one stem's values, and how it was come by.

    Attributes:
      log_probs: [V] float64, sums to 1 in probability.
      how: ``top-k``, ``decision tokens``, ``samples`` or ``nothing``.
      requests: places asked, or requests made.
      entropy: of the first place's truncated distribution, nats; NaN without one.
      tail: probability outside its top k; NaN without one.
      unseen: values that no token began at the first place.
      repaired: answers that could be read only after a second request.
    """

    log_probs: np.ndarray
    how: str
    requests: int
    entropy: float = math.nan
    tail: float = math.nan
    unseen: int = 0
    repaired: int = 0


Walk = Generator[str, Top | None, Found]


def tail_of(top: Top) -> float:
    """Probability that the reported tokens leave over, in [0, 1]."""
    return min(1.0, max(0.0, 1.0 - sum(math.exp(token.log_prob) for token in top)))


def entropy_of(top: Top) -> float:
    """−Σ p ln p over the reported tokens and the tail as one symbol, nats: a lower bound of the model's entropy."""
    masses = [math.exp(token.log_prob) for token in top]
    return -sum(p * math.log(p) for p in [*masses, tail_of(top)] if p > 0)


def closed_values(values: Sequence[str], close: str) -> list[str]:
    """Values with ``close`` behind those that another one begins with ("1" and "1 day"), so that all differ."""
    return [v + close if any(o != v and o.startswith(v) for o in values) else v for v in values]


def walk(values: Sequence[str], *, close: str = "\n") -> Walk:
    """Walks the tree of ``values``.

    Args:
      values: V ≥ 2 different texts, none empty, as they stand after the stem.
      close: what ends a value; a token may hold its beginning too.

    Yields:
      Text to be put after the stem; wants the top tokens that follow it, most probable first, or None where nothing can
      be learnt (its values then share equally). Starts with "", and never asks the same twice.

    Returns:
      The values' distribution.

    Raises:
      ValueError: fewer than two values, an empty one, or two alike.
    """
    if len(values) < 2 or len(set(values)) < len(values) or not all(values):
        raise ValueError("at least two different values, none of them empty")
    texts = closed_values(values, close)
    asked: list[Top | None] = []
    unseen: list[int] = []

    def place(prefix: str, members: Sequence[int]) -> Generator[str, Top | None, dict[int, float]]:
        top = yield prefix
        asked.append(top)
        if top is None:
            return dict.fromkeys(members, 1.0 / len(members))
        rest = {v: texts[v][len(prefix) :] for v in members}
        masses: dict[str, float] = {}
        for token in top:
            if token.text:
                masses[token.text] = masses.get(token.text, 0.0) + math.exp(token.log_prob)
        out: dict[int, float] = {}
        shared: dict[str, list[int]] = {}
        for v in members:
            fitting = [t for t in masses if _fits(t, rest[v], close)]
            ending = [t for t in fitting if len(t) >= len(rest[v])]
            if ending:
                out[v] = sum(masses[t] for t in ending)
            elif fitting:
                shared.setdefault(max(fitting, key=len), []).append(v)
        unsure = [v for t, group in shared.items() for v in group if not _tells(t, rest[v])]
        missing = [v for v in members if v not in out and not any(v in group for group in shared.values())]
        room = min(tail_of(top) / max(1, len(missing + unsure)), min(masses.values(), default=1.0))
        for token_text, group in sorted(shared.items()):
            mass, sure = masses[token_text], not any(v in unsure for v in group)
            if sure and len(group) == 1:
                out[group[0]] = mass
            elif sure or mass > room:
                below = yield from place(prefix + token_text, group)
                whole = sum(below.values()) if sure else 1.0
                out.update({v: mass * below[v] / whole for v in group})
        for v in missing + unsure:
            out[v] = max(out.get(v, 0.0), room)
        unseen.append(sum(out[v] <= room for v in missing + unsure))
        return {v: max(p, _LEAST) for v, p in out.items()}

    shares = yield from place("", range(len(values)))
    p = np.asarray([shares[v] for v in range(len(values))], np.float64)
    first = asked[0]
    measured = (math.nan, math.nan) if first is None else (entropy_of(first), tail_of(first))
    return Found(np.log(p / p.sum()), "top-k", len(asked), *measured, unseen[-1] if unseen else len(values))


def _fits(token: str, rest: str, close: str) -> bool:
    """Whether a token begins the rest of a value, or spells it and goes on behind its close."""
    closed = rest.endswith(close) or token[len(rest) :].startswith(close)
    return rest.startswith(token) or (closed and token.startswith(rest))


def _tells(token: str, rest: str) -> bool:
    """Whether a token that begins a value can be taken for it: not white space alone, not a part of a word."""
    return not token.isspace() and not (token[-1].isalpha() and rest[len(token)].isalpha())
