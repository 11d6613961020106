"""TPU slices by name: their chips, their memory as the compiler knows it, and their published speeds."""

from __future__ import annotations

import math
from typing import NamedTuple

from scaletot_jax.errors import ConfigError

GIB = 2**30


class Generation(NamedTuple):
    """One generation of chips.

    Attributes:
      hbm: usable bytes a chip: what libtpu 0.0.52 says is available when a program does not fit.
      flops: peak bfloat16 FLOP/s a chip, published.
      ici: bytes/s a chip between chips, published.
      clock: Hz of the compiler's cycle estimates; 0 where it gives none.
      slices: chips → topology, of the slices that can be asked for by name.
      cores: what the number in a slice's name counts: 1 chips, 2 cores.
    """

    hbm: float
    flops: float
    ici: float
    clock: float
    slices: dict[int, str]
    cores: int = 1


_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
GENERATIONS = {
    "v5e": Generation(15.75 * GIB, 197e12, 200e9, 1.5e9, _FLAT),
    "v5p": Generation(95.73 * GIB, 459e12, 600e9, 0, _CUBES, cores=2),
    "v6e": Generation(31.24 * GIB, 918e12, 448e9, 0, _FLAT),
}


class Target(NamedTuple):
    """A slice: ``name`` as asked for, ``topology`` as the compiler wants it, e.g. ``v5e:4x4``."""

    name: str
    topology: str
    chips: int
    generation: Generation

    @property
    def estimates_cycles(self) -> bool:
        """Whether the compiler's text says how long it expects an operation to take."""
        return self.generation.clock > 0


def known_targets() -> list[str]:
    """The names that :func:`target` knows besides topologies."""
    return [f"{kind}-{chips * found.cores}" for kind, found in GENERATIONS.items() for chips in found.slices]


def target(name: str) -> Target:
    """The slice ``v5e-16`` (chips; cores on v5p, as it is sold) or ``v5e:4x4`` (topology).

    Raises:
      ConfigError: nobody knows it; the message lists what is known.
    """
    kind, colon, shape = name.partition(":")
    generation = GENERATIONS.get(kind)
    if colon and generation and shape in generation.slices.values():
        return Target(name, name, math.prod(map(int, shape.split("x"))), generation)
    kind, _, count = name.partition("-")
    generation = GENERATIONS.get(kind)
    if generation and count.isdigit():
        chips = int(count) / generation.cores
        if chips in generation.slices:
            return Target(name, f"{kind}:{generation.slices[int(chips)]}", int(chips), generation)
    raise ConfigError(
        "unknown TPU target",
        where=f"--target {name}",
        why=f"known: {', '.join(known_targets())}",
        do="choose one of them, or a topology of theirs such as v5e:4x4 or v5p:2x2x4",
    )
