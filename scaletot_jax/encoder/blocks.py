"""The reasoning states of the distilled profiles on disk: fixed blocks of profiles, each written once.

A block's content depends on its own profiles alone, so blocks may be made in any number of sittings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scaletot_jax.files import read_arrays, seal, sealed, write_arrays
from scaletot_jax.run import Stage
from scaletot_jax.student.states import ReasoningStates

BLOCK = 32  # profiles a block: what a kill can cost


class Block(NamedTuple):
    """Profiles [begin, end) and the file of their states."""

    file: str
    begin: int
    end: int


def plan_blocks(*counts: int) -> list[Block]:
    """Blocks of runs of profiles that lie one after another; no block holds profiles of two runs."""
    out: list[Block] = []
    end = 0
    for count in counts:
        begin, end = end, end + count
        for start in range(begin, end, BLOCK):
            out.append(Block(f"states/block-{len(out):05d}.safetensors", start, min(start + BLOCK, end)))
    return out


def distilled_blocks(stage: Stage) -> list[Block]:
    """Those of a finished stage ``distill``, in the order of its profiles.parquet: each student's profiles lie apart."""
    return plan_blocks(*stage.summary()["profiles_by_student"])


def missing_blocks(directory: Path, blocks: Iterable[Block]) -> list[Block]:
    """Blocks whose file is not there, or not what was written."""
    return [block for block in blocks if not sealed(directory / block.file)]


def write_block(directory: Path, block: Block, found: ReasoningStates, layers: Sequence[int]) -> None:
    """Writes one block: what was found at ``layers``, the answers, and what the chains say."""
    arrays = {
        f"{kind}/{layer}": getattr(found, kind)[layer]
        for kind in ("states", "pooled", "prompt_end")
        for layer in layers
    }
    write_arrays(directory / block.file, {**arrays, "answers": found.answers, "slots": found.slots})
    seal(directory / block.file)


def read_states(directory: Path, blocks: Sequence[Block], layer: int, kind: str = "states") -> np.ndarray:
    """Of one layer, all blocks in order: ``states`` or ``pooled`` [U, N, K, D], or ``prompt_end`` [U, D]; float32."""
    return np.concatenate([read_arrays(directory / block.file)[f"{kind}/{layer}"] for block in blocks])


def read_slots(directory: Path, blocks: Sequence[Block]) -> np.ndarray:
    """Slot values [U, N, S] int32, all blocks in order."""
    return np.concatenate([read_arrays(directory / block.file)["slots"] for block in blocks])
