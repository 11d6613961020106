"""The compiled chain: a token automaton as arrays, and the chains it accepts.

Made by :func:`scaletot_jax.chains.grammar.compile_chain`. A chain's ids come from joining separately encoded pieces, never
from re-tokenising text, so that automaton, sampler, parser and trainer agree on every id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.errors import DataError

# Segment ids of tokens that belong to no reasoning segment (those are 0..K-1).
STRUCTURAL = -1  # titles, separators, closing tokens, the end token, and text that did not parse
ANSWER = -2
AFTER_END = -3

Value = str | Sequence[int]  # an enum value; a free slot also takes its token ids
Encode = Callable[[str], Sequence[int]]


class Grammar(NamedTuple):
    """The automaton as arrays: S states, at most A alternatives a state. All int32 unless said otherwise.

    A state of a free slot lists only its closing token; any other id that is not in ``stop`` is allowed as well and
    leads to ``free_next``.
    """

    token: np.ndarray  # [S, A] allowed token ids, -1 beyond the last
    next_state: np.ndarray  # [S, A] where each leads; the end state at padding
    segment: (
        np.ndarray
    )  # [S] segment id of the content emitted here: 0..K-1, -1 structural, -2 answer, -3 after the end
    slot: np.ndarray  # [S] slot whose value is being written, -1 elsewhere
    decision: np.ndarray  # [S] bool: more than one continuation
    free: np.ndarray  # [S] bool: any token but `stop` may follow
    free_next: np.ndarray  # [S] where such a token leads, -1 where not free
    alternative_segment: np.ndarray  # [S, A] segment id of each alternative; differs from `segment` only at a closing
    # token that competes with a longer value (it is structural), and is -3 at padding
    closes: np.ndarray  # [S, A] the segment that this alternative closes, else -1
    stop: np.ndarray  # [P] ids that free text cannot contain: the closing tokens, and what `compile_chain` was told


class SlotCodes(NamedTuple):
    """A slot in token ids."""

    start: int  # the state before its first token
    close: int  # the closing token's id
    ids: tuple[tuple[int, ...], ...]  # of each value, without the closing token; empty for a free slot


@dataclass(frozen=True, eq=False)
class CompiledChain:
    """A chain specification compiled for one tokenizer. Make it with :func:`~scaletot_jax.chains.grammar.compile_chain`."""

    spec: ChainSpec
    grammar: Grammar
    start: int
    end: int
    eos_id: int
    max_length: int  # tokens of the longest chain, the end token included
    slots: tuple[SlotCodes, ...]
    titles: tuple[tuple[int, ...], ...]  # [K + 1] ids of each segment's title, then the answer's
    body_starts: tuple[int, ...]  # [K + 1] the state after each title; the last is `answer_state`
    answer_tokens: np.ndarray  # [Kb] int32 code words
    close_token: int  # the id that ends every segment, where its reasoning state is read
    marks: frozenset[int]  # ids of the separator, the line break and the end token
    close_states: (
        np.ndarray
    )  # [K, C] int32 states from which segment k's closing token may be emitted, -1 padding. C is
    # 1 unless a value of a last slot starts another; then such a state also continues the longer value
    encode: Encode

    @property
    def answer_state(self) -> int:
        """The state from which the answer word is emitted."""
        return self.body_starts[-1]

    def value_index(self, slot: int, value: str) -> int:
        """The position of ``value`` in the enum of slot number ``slot``."""
        spec = self.spec.slots[slot]
        if value not in spec.values:
            raise DataError(
                f"'{value}' is not a value of slot '{spec.name}'",
                where=f"chain specification '{self.spec.name}'",
                do=f"use one of: {', '.join(spec.values)}",
            )
        return spec.values.index(value)

    def value_ids(self, slot: int, value: Value) -> tuple[int, ...]:
        """Token ids of a value, without the closing token."""
        spec, codes = self.spec.slots[slot], self.slots[slot]
        if spec.source != "free":
            return codes.ids[self.value_index(slot, value if isinstance(value, str) else str(value))]
        ids = tuple(int(i) for i in (self.encode(" " + value) if isinstance(value, str) else value)) if value else ()
        bad = [i for i in ids if i < 0 or i in self._stop]
        if len(ids) > spec.max_tokens or bad:
            raise DataError(
                f"a text does not fit the free slot '{spec.name}'",
                where=f"chain specification '{self.spec.name}'",
                why=f"{len(ids)} tokens for max_tokens {spec.max_tokens}"
                if not bad
                else f"it contains the reserved token {bad[0]}",
                do="shorten it, and leave out ';' and line breaks",
            )
        return ids

    def value_path(self, slot: int, value: Value) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of a value with its closing token, and the state before each: two int32 arrays of equal length."""
        tokens = [*self.value_ids(slot, value), self.slots[slot].close]
        state, states = self.slots[slot].start, []
        for token in tokens:
            states.append(state)
            state = self.step(state, token)
        return np.asarray(tokens, np.int32), np.asarray(states, np.int32)

    def step(self, state: int, token: int) -> int:
        """The state after ``token``, or -1 where the grammar does not allow it."""
        following = self._transitions[state].get(token)
        if following is not None:
            return following
        if token >= 0 and self.grammar.free[state] and token not in self._stop:
            return int(self.grammar.free_next[state])
        return -1

    def serialize(self, values: Sequence[Value], bucket: int | None = None) -> list[int]:
        """The ids of a whole chain, end token included.

        Args:
          values: one value a slot, in the order of ``spec.slots``; a free slot takes text or token ids.
          bucket: the answer; ``None`` stops after the answer's title, where the answer would be read.

        Raises:
          DataError: a value is not of its slot's enum, a text is too long, or the counts do not match.
        """
        if len(values) != len(self.slots):
            raise DataError(
                f"a chain of '{self.spec.name}' has {len(self.slots)} values, not {len(values)}",
                where=f"chain specification '{self.spec.name}'",
            )
        ids: list[int] = []
        before = -1
        for i, value in enumerate(values):
            if self.spec.segment_of_slot[i] != before:
                before = self.spec.segment_of_slot[i]
                ids.extend(self.titles[before])
            ids.extend(self.value_ids(i, value))
            ids.append(self.slots[i].close)
        ids.extend(self.titles[-1])
        if bucket is None:
            return ids
        if not 0 <= bucket < self.spec.num_buckets:
            raise DataError(
                f"bucket {bucket} is not one of 0..{self.spec.num_buckets - 1}",
                where=f"chain specification '{self.spec.name}'",
            )
        return [*ids, int(self.answer_tokens[bucket]), self.eos_id]

    def token_targets(
        self,
        distributions: Sequence[Sequence[float] | None],
        answer: Sequence[float],
        values: Sequence[Value],
        bucket: int | None = None,
    ) -> np.ndarray:
        """Soft targets for imitating the teacher's distributions along one chain.

        At a token of a slot, alternative a of trie node v gets Σ_{values through a} p / Σ_{values through v} p: the
        marginal of the slot's distribution given the path so far, so that the product along a value's path is its
        probability. Forced tokens are one-hot; the answer's row is ``answer``.

        Args:
          distributions: per slot, probabilities over ``spec.slots[i].values``; ``None`` (rule and free slots) means all
            mass on the chain's own value.
          answer: probabilities over the buckets.
          values: the chain's values, as for :meth:`serialize`.
          bucket: the chain's answer; it changes the chain's ids but not these rows.

        Returns:
          float32 [T, A] aligned with ``serialize(values, bucket)`` and the alternatives of each token's state. Every row
          sums to 1, except where free text goes on: there it is zero, because the token is not a listed alternative (its
          own id is the hard target). Where the chain has left the distribution's support, the row is one-hot at its token.
        """
        ids = self.serialize(values, 0 if bucket is None else bucket)
        rows = np.zeros((len(ids), self.grammar.token.shape[1]), np.float32)
        probabilities = [
            None if p is None else _distribution(p, len(spec.values), spec.name)
            for p, spec in zip(distributions, self.spec.slots, strict=True)
        ]
        answers = _distribution(answer, self.spec.num_buckets, "answer")
        state = self.start
        for t, token in enumerate(ids):
            if state == self.answer_state:
                rows[t, : len(answers)] = answers
            else:
                own = self.grammar.token[state] == token
                slot = int(self.grammar.slot[state])
                p = probabilities[slot] if slot >= 0 else None
                mass = self._reach[state] @ p if p is not None and state in self._reach else own.astype(np.float64)
                rows[t] = mass / mass.sum() if mass.sum() > 0 else own
            state = self.step(state, token)
        return rows

    @cached_property
    def _transitions(self) -> list[dict[int, int]]:
        pairs = zip(self.grammar.token.tolist(), self.grammar.next_state.tolist())
        return [{token: after for token, after in zip(tokens, afters) if token >= 0} for tokens, afters in pairs]

    @cached_property
    def _stop(self) -> frozenset[int]:
        return frozenset(self.grammar.stop.tolist())

    @cached_property
    def _reach(self) -> dict[int, np.ndarray]:
        """For each trie state: float64 [A, n_values], 1 where the value's path takes that alternative."""
        reach: dict[int, np.ndarray] = {}
        for slot, (spec, codes) in enumerate(zip(self.spec.slots, self.slots)):
            for v in range(len(codes.ids)):
                for token, state in zip(*self.value_path(slot, spec.values[v])):
                    table = reach.setdefault(int(state), np.zeros((self.grammar.token.shape[1], len(codes.ids))))
                    table[self.grammar.token[state] == token, v] = 1
        return reach


def _distribution(probabilities: Sequence[float], size: int, name: str) -> np.ndarray:
    p = np.asarray(probabilities, np.float64)
    if p.shape != (size,) or not np.all(np.isfinite(p)) or np.any(p < 0) or p.sum() <= 0:
        raise DataError(
            f"the distribution of '{name}' is not {size} finite, non-negative numbers with a positive sum",
            why=f"it is {p.tolist()}",
        )
    return p / p.sum()
