"""Token ids to a typed chain, by ids only: decoded text is never looked at, and any ids parse to something.

A line that is damaged stays unparsed as a whole (structural tokens), and parsing resumes at the next line if that opens
with a known title; anything else at the start of a line makes the rest an unparsed tail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from scaletot_jax.chains.automaton import AFTER_END, ANSWER, STRUCTURAL, CompiledChain, Value

MISSING = "missing"  # the response ended without this line
DUPLICATE = "duplicate"  # the line occurs more than once; none of its copies counts
OUT_OF_ORDER = "out_of_order"  # the line stands after one that should follow it
UNCLOSED = (
    "unclosed"  # the line breaks off after a whole value: another line, the end, or stray text without a closing token
)
BAD_ENUM = "bad_enum"  # a token that begins or continues no value of the slot; in free text, a reserved token
OVERLONG = "overlong"  # more slots than declared, more free text than max_tokens, or text after the answer
TRUNCATED = "truncated"  # the response has no end token and stops before this line is complete
ERRORS = (MISSING, DUPLICATE, OUT_OF_ORDER, UNCLOSED, BAD_ENUM, OVERLONG, TRUNCATED)


@dataclass(frozen=True)
class ParsedSegment:
    """One segment as found. ``begin:end`` are its tokens from the title to the closing token (-1, -1 if absent; for a
    duplicate, its first copy). ``values`` has one entry a slot (token ids for free text) if ``ok``, else none."""

    name: str
    ok: bool = False
    begin: int = -1
    end: int = -1
    values: tuple[Value, ...] = ()
    error: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ParsedChain:
    """A parsed response of T tokens. Printed or shown in a notebook it says nothing of free text but its length."""

    segments: tuple[ParsedSegment, ...]  # [K], in the order of the specification
    bucket: int | None  # the answer, if one was read
    answer_error: str | None
    complete: bool  # every segment ok, in order and nothing else, then the answer and the end token
    segment_ids: (
        np.ndarray
    )  # int32 [T]: 0..K-1 content of ok segments, -1 structural or unparsed, -2 answer, -3 after the end

    @property
    def values(self) -> list[Value] | None:
        """All slot values in the order of the chain, or ``None`` if a segment is not ok."""
        return (
            [value for segment in self.segments for value in segment.values]
            if all(s.ok for s in self.segments)
            else None
        )

    def __repr__(self) -> str:
        state = "complete" if self.complete else "incomplete"
        found = ", ".join(f"{s.name} {'ok' if s.ok else s.error}" for s in self.segments)
        return f"ParsedChain({state}: {found}; answer {self.answer_error if self.bucket is None else self.bucket})"

    def _repr_html_(self) -> str:
        from scaletot_jax.report.inline import parsed_chain

        return parsed_chain(self)


def parse(compiled: CompiledChain, ids: Iterable[int]) -> ParsedChain:
    """Parses a response (without its prompt). Never raises on integers, whatever they are."""
    tokens = [int(i) for i in ids]
    segment_ids = np.full(len(tokens), STRUCTURAL, np.int32)
    ended = compiled.eos_id in tokens
    stop = tokens.index(compiled.eos_id) if ended else len(tokens)  # the line scanner sees what is before the end token
    segment_ids[stop + 1 :] = AFTER_END

    num = compiled.spec.num_segments
    segments = [ParsedSegment(segment.name) for segment in compiled.spec.segments]
    contents: list[list[int]] = [[] for _ in range(num)]
    bucket: int | None = None
    answer_error: str | None = MISSING if ended else TRUNCATED
    position, latest = 0, -1
    while position < stop:
        k = _title_at(compiled, tokens, position, stop)
        if k is None:
            break
        if k == num:
            latest, at = num, position + len(compiled.titles[-1])
            bucket, answer_error = _answer(compiled, tokens, at, stop, ended)
            if bucket is not None:
                segment_ids[at] = ANSWER
            break
        found, contents_found = _segment(compiled, k, tokens, position, stop, ended)
        position = found.end
        if segments[k].begin >= 0:
            segments[k] = replace(segments[k], ok=False, values=(), error=DUPLICATE)
        elif k < latest:
            segments[k] = replace(found, ok=False, values=(), error=OUT_OF_ORDER)
        else:
            segments[k], contents[k], latest = found, contents_found, k
    for k, segment in enumerate(segments):
        if segment.begin < 0:
            segments[k] = replace(segment, error=MISSING if ended or k < latest else TRUNCATED)
        elif segment.ok:
            segment_ids[contents[k]] = k
    complete = ended and bucket is not None and answer_error is None and all(segment.ok for segment in segments)
    return ParsedChain(tuple(segments), bucket, answer_error, complete, segment_ids)


def _title_at(compiled: CompiledChain, tokens: list[int], position: int, stop: int) -> int | None:
    """The line (K: the answer) whose title stands at ``position``; titles are prefix-free."""
    for k, title in enumerate(compiled.titles):
        if position + len(title) <= stop and tuple(tokens[position : position + len(title)]) == title:
            return k
    return None


def _answer(
    compiled: CompiledChain, tokens: list[int], at: int, stop: int, ended: bool
) -> tuple[int | None, str | None]:
    if at >= stop:
        return None, BAD_ENUM if ended else TRUNCATED
    found = np.flatnonzero(compiled.answer_tokens == tokens[at])
    if not len(found):
        return None, BAD_ENUM
    if at + 1 < stop:
        return int(found[0]), OVERLONG
    return int(found[0]), None if ended else TRUNCATED


def _segment(
    compiled: CompiledChain, k: int, tokens: list[int], begin: int, stop: int, ended: bool
) -> tuple[ParsedSegment, list[int]]:
    """Reads segment ``k`` from its title at ``begin``: the segment, and the positions of its content tokens."""
    name = compiled.spec.segments[k].name
    slot = compiled.spec.segment_of_slot.index(k)
    state, at, value_begin = compiled.body_starts[k], begin + len(compiled.titles[k]), begin + len(compiled.titles[k])
    values: list[Value] = []
    contents: list[int] = []
    while at < stop:
        token = tokens[at]
        after = compiled.step(state, token)
        if after < 0:
            return ParsedSegment(
                name, begin=begin, end=_line_end(compiled, tokens, at, stop), error=_fault(compiled, slot, state, token)
            ), []
        at += 1
        if token != compiled.slots[slot].close:
            contents.append(at - 1)
        else:
            values.append(_value(compiled, slot, tuple(tokens[value_begin : at - 1])))
            value_begin, slot = at, slot + 1
            if token == compiled.close_token:
                return ParsedSegment(name, True, begin, at, tuple(values)), contents
        state = after
    if not ended:
        error = TRUNCATED
    else:
        error = UNCLOSED if compiled.step(state, compiled.slots[slot].close) >= 0 else BAD_ENUM
    return ParsedSegment(name, begin=begin, end=stop, error=error), []


def _value(compiled: CompiledChain, slot: int, ids: tuple[int, ...]) -> Value:
    spec = compiled.spec.slots[slot]
    return ids if spec.source == "free" else spec.values[compiled.slots[slot].ids.index(ids)]


def _fault(compiled: CompiledChain, slot: int, state: int, token: int) -> str:
    """Why ``token`` may not follow ``state``."""
    close = compiled.slots[slot].close
    if compiled.step(state, close) < 0:  # the value is not whole
        return BAD_ENUM
    if token in compiled.marks:  # the other closing token: a slot too many, or a line that ends too early
        return OVERLONG if close == compiled.close_token else UNCLOSED
    if compiled.spec.slots[slot].source == "free":
        return BAD_ENUM if token < 0 or token in compiled.grammar.stop else OVERLONG
    return BAD_ENUM if compiled.grammar.slot[state] >= 0 else UNCLOSED


def _line_end(compiled: CompiledChain, tokens: list[int], at: int, stop: int) -> int:
    """Where the line that contains position ``at`` is over: after the next closing token."""
    while at < stop and tokens[at] != compiled.close_token:
        at += 1
    return min(at + 1, stop)
