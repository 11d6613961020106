"""From a chain specification to a token automaton.

The values of a slot become a prefix trie over token ids (``encode(" " + value)``), closed by ";" or, after the last slot
of a segment, by a line break; titles, separators and the end are forced. A language model masked to the alternatives of
the current state cannot write an invalid chain, and its distribution over a slot's values is exact (the product of the
conditionals along the trie).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from scaletot_jax.chains.automaton import AFTER_END, ANSWER, STRUCTURAL, CompiledChain, Encode, Grammar, SlotCodes
from scaletot_jax.chains.spec import ChainSpec, SlotSpec
from scaletot_jax.errors import DataError

SEPARATOR = ";"
CLOSE = "\n"

_TOKENIZER = "reword it in the chain specification; encodings depend on the tokenizer of the language model"


def compile_chain(spec: ChainSpec, encode: Encode, eos_id: int, *, reserved: Collection[int] = ()) -> CompiledChain:
    """Compiles ``spec`` for one tokenizer.

    Args:
      spec: the chain specification.
      encode: text -> token ids, without special tokens.
      eos_id: the id that ends a chain.
      reserved: more ids that free text cannot contain; :func:`scaletot_jax.chains.reserved.reserved_ids` lists them. They
        matter to free slots alone.

    Raises:
      DataError: the tokenizer makes the chain ambiguous: two values with the same ids, a value or title that contains a
        closing token, titles that start alike, an answer word of several tokens. Names the place and the words.
    """
    builder = _Builder(spec, encode, int(eos_id))
    titles = builder.titles()
    slots = []
    start, body_starts, close_states = builder.new_state(), [], []
    state, i = start, 0
    for k, segment in enumerate(spec.segments):
        state = builder.forced(state, titles[k])
        body_starts.append(state)
        for slot in segment.slots:
            last = slot is segment.slots[-1]
            codes = SlotCodes(
                state, builder.close if last else builder.separator, builder.value_codes(segment.name, slot)
            )
            slots.append(codes)
            after = builder.new_state()
            closing = builder.slot(slot, i, k, codes, after, closes=k if last else -1)
            if last:
                close_states.append(closing)
            state, i = after, i + 1
    state = builder.forced(state, titles[-1])
    body_starts.append(state)
    words = builder.answer_codes()
    ending, end = builder.new_state(), builder.new_state(AFTER_END)
    builder.segment[state] = ANSWER
    for word in words:
        builder.add(state, word, ending, ANSWER)
    builder.add(ending, builder.eos, end, STRUCTURAL)

    longest = [
        slot.max_tokens if slot.source == "free" else max(map(len, codes.ids)) for slot, codes in zip(spec.slots, slots)
    ]
    return CompiledChain(
        spec=spec,
        grammar=builder.arrays(end, reserved),
        start=start,
        end=end,
        eos_id=builder.eos,
        max_length=sum(map(len, titles)) + sum(longest) + len(slots) + 2,
        slots=tuple(slots),
        titles=tuple(titles),
        body_starts=tuple(body_starts),
        answer_tokens=np.asarray(words, np.int32),
        close_token=builder.close,
        marks=frozenset(builder.stop),
        close_states=_rectangle(close_states),
        encode=encode,
    )


class _Builder:
    """Collects states and alternatives, then lays them out as arrays."""

    def __init__(self, spec: ChainSpec, encode: Encode, eos: int):
        self.spec, self.encode, self.eos = spec, encode, eos
        self.alternatives: list[
            list[tuple[int, int, int, int]]
        ] = []  # of each state: token, next state, segment, closes
        self.segment: list[int] = []
        self.slot_of: list[int] = []
        self.free_next: list[int] = []
        self.separator = self.single(SEPARATOR, "the separator ';'")
        self.close = self.single(CLOSE, "the line break")
        self.stop = {self.separator, self.close, eos}
        if len(self.stop) != 3:
            raise self.error(
                "the separator, the line break and the end token share an id",
                "",
                f"ids {self.separator}, {self.close}, {eos}",
            )

    def error(self, what: str, place: str, why: str = "") -> DataError:
        where = f"chain specification '{self.spec.name}'" + (f", {place}" if place else "")
        return DataError(what, where=where, why=why, do=_TOKENIZER)

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(int(i) for i in self.encode(text))

    def single(self, text: str, name: str, place: str = "") -> int:
        ids = self.ids(text)
        if len(ids) != 1:
            raise self.error(
                f"{name} is not a single token", place, f"{text!r} is encoded as {len(ids)} tokens: {list(ids)}"
            )
        return ids[0]

    def titles(self) -> list[tuple[int, ...]]:
        names = [segment.title for segment in self.spec.segments] + [self.spec.answer.title]
        codes = [self.ids(name + ":") for name in names]
        for name, ids in zip(names, codes):
            if not ids or self.stop & set(ids):
                raise self.error(
                    f"the title '{name}' has no token or contains a closing one", f"title '{name}'", f"ids {list(ids)}"
                )
        for a, first in enumerate(codes):
            for b, second in enumerate(codes):
                if a != b and second[: len(first)] == first:
                    raise self.error(
                        "one title's tokens start another's",
                        f"titles '{names[a]}' and '{names[b]}'",
                        f"{list(first)} and {list(second)}",
                    )
        return codes

    def value_codes(self, segment: str, slot: SlotSpec) -> tuple[tuple[int, ...], ...]:
        place = f"segment '{segment}', slot '{slot.name}'"
        seen: dict[tuple[int, ...], str] = {}
        for value in slot.values:
            ids = self.ids(" " + value)
            if not ids or self.stop & set(ids):
                raise self.error(
                    f"the value '{value}' has no token or contains a closing one", place, f"ids {list(ids)}"
                )
            if ids in seen:
                raise self.error(
                    f"the values '{seen[ids]}' and '{value}' have the same tokens",
                    place,
                    f"both are encoded as {list(ids)}",
                )
            seen[ids] = value
        return tuple(seen)

    def answer_codes(self) -> list[int]:
        codes: dict[int, str] = {}
        for word in self.spec.answer.words:
            code = self.single(word, f"the answer word {word!r}", "answer.words")
            if code in codes or code in self.stop:
                raise self.error(
                    f"the answer word {word!r} has the id of {codes.get(code, 'a closing token')!r}",
                    "answer.words",
                    f"id {code}",
                )
            codes[code] = word
        return list(codes)

    def new_state(self, segment: int = STRUCTURAL, slot: int = -1) -> int:
        self.alternatives.append([])
        self.segment.append(segment)
        self.slot_of.append(slot)
        self.free_next.append(-1)
        return len(self.segment) - 1

    def add(self, state: int, token: int, after: int, segment: int, closes: int = -1) -> None:
        self.alternatives[state].append((token, after, segment, closes))

    def forced(self, state: int, tokens: Sequence[int]) -> int:
        """A run of structural tokens; returns the state after them."""
        for token in tokens:
            after = self.new_state()
            self.add(state, token, after, STRUCTURAL)
            state = after
        return state

    def slot(self, slot: SlotSpec, index: int, k: int, codes: SlotCodes, after: int, closes: int) -> list[int]:
        """Builds a slot's states from ``codes.start`` to ``after``; returns the states that may emit its closing token."""
        self.segment[codes.start], self.slot_of[codes.start] = k, index
        leaf = self.new_state()  # shared: after any value that no other value continues
        self.add(leaf, codes.close, after, STRUCTURAL, closes)
        if slot.source == "free":
            state, closing = codes.start, [leaf]
            for used in range(slot.max_tokens):
                self.add(state, codes.close, after, STRUCTURAL, closes)
                closing.append(state)
                self.free_next[state] = leaf if used + 1 == slot.max_tokens else self.new_state(k, index)
                state = self.free_next[state]
            return closing
        prefixes = {ids[:n] for ids in codes.ids for n in range(len(ids))}  # these need a state of their own
        states: dict[tuple[int, ...], int] = {(): codes.start}
        for ids in codes.ids:
            for n in range(len(ids)):
                branch = ids[: n + 1]
                if branch not in states:
                    states[branch] = self.new_state(k, index) if branch in prefixes else leaf
                    self.add(states[ids[:n]], ids[n], states[branch], k)
        # A value that starts another may also be closed where the other goes on; the closing token stays the last choice.
        mixed = [states[ids] for ids in codes.ids if ids in prefixes]
        for state in mixed:
            self.add(state, codes.close, after, STRUCTURAL, closes)
        return [leaf, *mixed]

    def arrays(self, end: int, reserved: Collection[int]) -> Grammar:
        width = max(map(len, self.alternatives))
        table = np.empty((len(self.alternatives), width, 4), np.int32)
        table[:] = (-1, end, AFTER_END, -1)
        for state, rows in enumerate(self.alternatives):
            if rows:
                table[state, : len(rows)] = rows
        free_next = np.asarray(self.free_next, np.int32)
        free = free_next >= 0
        return Grammar(
            token=table[..., 0].copy(),
            next_state=table[..., 1].copy(),
            segment=np.asarray(self.segment, np.int32),
            slot=np.asarray(self.slot_of, np.int32),
            decision=free | ((table[..., 0] >= 0).sum(-1) > 1),
            free=free,
            free_next=free_next,
            alternative_segment=table[..., 2].copy(),
            closes=table[..., 3].copy(),
            stop=np.asarray(sorted({*self.stop, *map(int, reserved)}), np.int32),
        )


def _rectangle(rows: list[list[int]]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


__all__ = ["AFTER_END", "ANSWER", "STRUCTURAL", "CompiledChain", "Grammar", "SlotCodes", "compile_chain"]
