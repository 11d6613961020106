"""What is done to a run, drawn from a seed: which stage is disturbed, by which faults, in which order. Pure but for ``harm``."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import NamedTuple

from scaletot_jax.run import STAGES

# In the order in which the first schedules meet them: eleven meet every stage, and every fault.
ROTATION = ("sft", "score", "teach", "prepare", "osipo", "score", "distill", "report", "prepare", "score", "evaluate")
CHEAP = ("prepare", "score", "report")  # a second or two; the others are disturbed once, unless there is time for more
FAULTS = ("kill", "corrupt", "second", "disk", "version", "moment", "clock")
HARMS = ("emptied", "cut", "flipped", "garbled", "removed")
# Events of an undisturbed stage (line_server.py); a later kill lets the stage end.
EVENTS = {
    "prepare": 40,
    "teach": 60,
    "sft": 90,
    "osipo": 110,
    "distill": 120,
    "score": 50,
    "evaluate": 40,
    "report": 40,
}


class Fault(NamedTuple):
    """``kind`` of :data:`FAULTS`; ``number``: what is random about it."""

    kind: str
    number: int


class Schedule(NamedTuple):
    """Faults of one stage, one after the other; then the stage is asked for once more, undisturbed."""

    stage: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"{self.stage}: " + ", ".join(f"{fault.kind} {fault.number}" for fault in self.faults)


def draw(seed: int, number: int, *, disk: bool, rich: bool = False) -> Schedule:
    """Schedule ``number`` of a seed.

    Args:
      disk: whether a full disk can be made here.
      rich: whether dear stages, too, may be disturbed more than once.
    """
    rng = random.Random(f"{seed} {number}")
    stage = ROTATION[number % len(ROTATION)]
    first = FAULTS[number % len(FAULTS)]
    kinds = [first, *rng.choices(FAULTS, k=rng.choice((0, 1, 1, 2)) if rich or stage in CHEAP else 0)]
    if "corrupt" in kinds and not {"kill", "moment", "disk"} & set(kinds[: kinds.index("corrupt")]):
        kinds.insert(0, rng.choice(("kill", "kill", "moment")))  # something must be there to be damaged
    if not disk:
        kinds = ["kill" if kind == "disk" else kind for kind in kinds]
    return Schedule(stage, tuple(Fault(kind, _number(kind, stage, rng)) for kind in kinds))


def _number(kind: str, stage: str, rng: random.Random) -> int:
    if kind == "kill":
        return rng.randrange(EVENTS[stage])
    if kind == "moment":
        return rng.randrange(3000)  # milliseconds
    if kind == "disk":
        return rng.choice((0, 8, 40, 100, 250))  # KiB
    return rng.randrange(2**31)


def harm(workdir: Path, stage: str, number: int) -> str:
    """Damages one file of a run directory, half of the time of the stage itself; says which and how."""
    rng = random.Random(number)
    everything = sorted(
        path
        for path in workdir.rglob("*")
        if path.is_file() and path.name != ".lock" and "tensorboard" not in path.parts
    )
    own = [path for path in everything if stage in path.relative_to(workdir).parts]
    if not everything:
        return "nothing to damage"
    path = rng.choice(own if own and rng.random() < 0.5 else everything)
    how, data = rng.choice(HARMS), path.read_bytes()
    at = rng.randrange(max(1, len(data)))
    if how == "removed":
        path.unlink()
    elif how == "emptied" or not data:
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[:at])
    elif how == "flipped":
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
    else:
        path.write_bytes(data[:at] + rng.randbytes(min(64, len(data) - at)) + data[at + 64 :])
    return f"{path.relative_to(workdir)} {how} at {at} of {len(data)}"


def turn_back(workdir: Path, number: int) -> None:
    """Gives every file a time of its own within ten years of now, as a clock that jumped would have."""
    rng = random.Random(number)
    for path in sorted(workdir.rglob("*")):
        when = path.stat().st_mtime + rng.uniform(-1, 1) * 10 * 365 * 86400
        os.utime(path, (when, when))


def later(stage: str) -> tuple[str, ...]:
    """The stage and those after it."""
    return STAGES[STAGES.index(stage) :]
