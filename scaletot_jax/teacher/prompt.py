"""The text the teacher reads: instruction, profile, chain so far, then a stem whose continuation is scored.

    <instruction>\\n
    <profile: one line a field, activity last>
    Context: settled; couple\\n          the chain so far, as the student will write it
    Habit:                               a stem; its allowed values follow as alternatives

No options are listed, no example is shown: both were measured to destroy a small teacher's signal. The profile text
comes from the renderer, which never sees identifiers or labels. Pieces are encoded one by one and their ids joined, so
a piece has the same ids wherever it stands and every cached prefix stays valid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scaletot_jax.chains.spec import ChainSpec

TEMPLATE = 1  # raise it when the text changes; it enters the store's keys

Encode = Callable[[str], list[int]]
# The values of the segments decided so far, one tuple a segment; None: free text that is not written yet.
Path = tuple[tuple[str | None, ...], ...]


def instruction_text(spec: ChainSpec) -> str:
    """The fixed first part, shared by all profiles."""
    return spec.instruction.rstrip() + "\n"


def chain_pieces(spec: ChainSpec, path: Path) -> list[str]:
    """The decided segments as the pieces of a chain: ``["Context:", " settled", ";", " couple", "\\n", ...]``.

    What is not written yet is not there, neither its place nor, where nothing else stands in it, its line: judgements are
    made without it. A text that is empty leaves its place, as in the student's chain.
    """
    pieces: list[str] = []
    for segment, values in zip(spec.segments, path):
        shown = [value for value in values if value is not None]
        if shown:
            pieces += [f"{segment.title}:", *_joined(shown), "\n"]
    return pieces


def open_pieces(spec: ChainSpec, values: Sequence[str], slot: int) -> list[str]:
    """A chain up to the place where slot number ``slot`` is written, after ``values`` of the slots before it.

    Only the title announces the text, and the slot's stem where it has one; the text follows with its own leading space.
    """
    k = spec.segment_of_slot[slot]
    path = [
        tuple(v for v, own in zip(values[:slot], spec.segment_of_slot) if own == segment) for segment in range(k + 1)
    ]
    here = _joined(path[k])
    stems = [f" {stem}" for stem in spec.slots[slot].stems]
    return [
        *chain_pieces(spec, tuple(path[:k])),
        f"{spec.segments[k].title}:",
        *here,
        *([";"] if path[k] else []),
        *stems,
    ]


def _joined(values: Sequence[str]) -> list[str]:
    pieces: list[str] = []
    for i, value in enumerate(values):
        pieces += ([";"] if i else []) + ([f" {value}"] if value else [])
    return pieces


def revision_pieces(candidates: Sequence[str], evidence: str) -> list[str]:
    """The note that asks for a grounded second look: the conflicting values and the facts that bear on them.

    Args:
      candidates: the values in conflict, in the order shown.
      evidence: profile lines of the fields that are present and concern the slot; may be empty.
    """
    return (
        ["Check:", f" {' or '.join(candidates)}?", "\n", evidence]
        if evidence
        else ["Check:", f" {' or '.join(candidates)}?", "\n"]
    )


def encode_pieces(pieces: Sequence[str], encode: Encode) -> list[int]:
    """Ids of separately encoded pieces, joined."""
    return [token for piece in pieces for token in encode(piece)]
