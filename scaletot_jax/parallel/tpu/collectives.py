"""What devices say to each other, read from the text of a compiled program.

A plain search of the text is wrong three times: a loop's body stands there once however often it runs; one collective may
stand there several times, in the pieces of an asynchronous fusion; and a TPU writes a reduce-scatter as a fusion of an
all-reduce and slices. So the program is walked with its loops' trip counts (:mod:`scaletot_jax.parallel.tpu.hlo_text`), a
channel counts once among fusions (alone it does not tell collectives apart: those of ``shard_map`` share one), and the
fusion is read for what it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from scaletot_jax.parallel.tpu.hlo_text import Line, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}  # all others have 4
_KIND = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] ?\{([^}]*)\})")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: one of :data:`KINDS`. An all-reduce whose fusion keeps only a slice on each device is a reduce-scatter.
      bytes: of the whole array on one device: what an all-gather makes, what the others read.
      group: devices that take part.
      trips: how often it runs, loops multiplied.
      depth: loops around it.
      name: its operation in the source program, as far as the text says.
    """

    kind: str
    bytes: float
    group: int
    trips: int
    depth: int
    name: str

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends in all trips, by the ring algorithm."""
        share = {"collective-permute": 1.0, "all-reduce": 2 * (1 - 1 / self.group)}
        return self.trips * self.bytes * share.get(self.kind, 1 - 1 / self.group)


class Total(NamedTuple):
    """All collectives of a kind: how many there are, how many run, and the bytes that a device sends."""

    listed: int
    runs: int
    wire_bytes: float


def collectives(text: str) -> list[Collective]:
    """The collectives that run when a compiled program (``compiled.as_text()``) runs once."""
    program = Program(text)
    found: dict[str, Collective] = {}
    for line in program.lines():
        match = _KIND.search(line.text)
        if not match:
            continue
        one = _collective(line, match, program)
        channel = _CHANNEL.search(line.text)
        key = f"{channel[1]} {one.kind} {one.bytes} {one.name}" if channel and line.fused else str(line.place)
        if key not in found or found[key].trips < one.trips:
            found[key] = one
    return list(found.values())


def by_kind(listed: Iterable[Collective]) -> dict[str, Total]:
    """Sums by kind; kinds that do not occur are left out."""
    listed = list(listed)
    out = {}
    for kind in KINDS:
        some = [one for one in listed if one.kind == kind]
        if some:
            out[kind] = Total(len(some), sum(one.trips for one in some), sum(one.wire_bytes for one in some))
    return out


def _collective(line: Line, match: re.Match[str], program: Program) -> Collective:
    kind = match[2]
    shapes = _SHAPE.findall(match[1])
    sizes = [_size(*shape) for shape in shapes]
    if match[3] and kind != "all-reduce":  # the start of an asynchronous one gives (operands, results, more)
        sizes = sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
    groups = _GROUPS.search(line.text)
    group = _group(groups) if groups else 2  # a permutation lists pairs
    size = sum(sizes)
    if kind == "reduce-scatter":
        size *= group  # the text gives the part that is kept
    if kind == "all-reduce" and line.fused and _keeps_a_slice(program.computations[line.place[0]]):
        kind = "reduce-scatter"
    label = re.search(r'op_name="([^"]*)"', line.text)
    return Collective(kind, size, max(group, 1), line.trips, line.depth, label[1] if label else "")


def _group(found: re.Match[str]) -> int:
    """Devices of a group: listed, as [groups, size], or as axes of a mesh or parts ``'axis':(before)size`` of them."""
    if found[1] is not None:
        return len(found[1].split(","))
    if found[2] is not None:
        return int(found[2])
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found[3])}
    parts = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", found[4])
    return math.prod(int(size) if size else sizes[name] for name, size in parts)


def _keeps_a_slice(lines: list[str]) -> bool:
    return any(" dynamic-slice(" in line for line in lines)


def _size(kind: str, dims: str) -> float:
    return _BYTES.get(kind, 4) * math.prod(int(size) for size in dims.split(",") if size)
