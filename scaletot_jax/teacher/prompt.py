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
Path = tuple[tuple[str, ...], ...]  # the values of the segments decided so far, one tuple a segment


def instruction_text(spec: ChainSpec) -> str:
    """The fixed first part, shared by all profiles."""
    return spec.instruction.rstrip() + "\n"


def chain_pieces(spec: ChainSpec, path: Path) -> list[str]:
    """The decided segments as the pieces of a chain: ``["Context:", " settled", ";", " couple", "\\n", ...]``."""
    pieces: list[str] = []
    for segment, values in zip(spec.segments, path):
        pieces.append(f"{segment.title}:")
        for i, value in enumerate(values):
            pieces += [";", f" {value}"] if i else [f" {value}"]
        pieces.append("\n")
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
