"""The reasoning states of the distilled profiles on disk: fixed blocks of profiles, each written once.

A block's content depends on its own profiles alone, so blocks may be made in any number of sittings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scaletot_jax.files import read_arrays, write_arrays

BLOCK = 32  # profiles a block: what a kill can cost


class Block(NamedTuple):
    """Profiles [begin, end) and the file of their states."""

    file: str
    begin: int
    end: int


def plan_blocks(profiles: int) -> list[Block]:
    starts = range(0, profiles, BLOCK)
    return [
        Block(f"states/block-{i:05d}.safetensors", begin, min(begin + BLOCK, profiles))
        for i, begin in enumerate(starts)
    ]


def missing_blocks(directory: Path, blocks: Iterable[Block]) -> list[Block]:
    """Blocks without a file; files are renamed into place when whole, so one that exists is whole."""
    return [block for block in blocks if not (directory / block.file).exists()]


def write_block(
    directory: Path, block: Block, states: dict[int, np.ndarray], prompt_end: dict[int, np.ndarray], answers: np.ndarray
) -> None:
    """Writes one block: for each layer its states [u, N, K, D] and prompt ends [u, D]; the answers [u, N, Kb]."""
    arrays = {f"states/{layer}": value for layer, value in states.items()}
    arrays |= {f"prompt_end/{layer}": value for layer, value in prompt_end.items()}
    write_arrays(directory / block.file, {**arrays, "answers": answers})


def read_states(directory: Path, blocks: Sequence[Block], layer: int) -> np.ndarray:
    """States [U, N, K, D] float32 of one layer, all blocks in order."""
    return np.concatenate([read_arrays(directory / block.file)[f"states/{layer}"] for block in blocks])
