"""What a compile says, in numbers that can be defended, and as text.

Memory is the compiler's. Time is an estimate and is given as a range, from what the compiler's text says of single
operations, and on v5e only, whose text says it:

    lower = max(Σ cycles × trips / clock,  FLOPs a chip / peak),    upper = lower + wire bytes / link speed

The lower end has communication hidden entirely, the upper end not at all. Cycles leave out what collectives wait for,
copies from memory, and custom kernels. The compiler's own ``optimal_seconds`` is wrong for programs with loops and is not
used. Nothing of this has been measured on a TPU.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.parallel.tpu.ahead import MARGIN, Compiled
from scaletot_jax.parallel.tpu.collectives import Total, by_kind, collectives
from scaletot_jax.parallel.tpu.hlo_text import Program
from scaletot_jax.parallel.tpu.programs import LOOPS, Workload, needed_flops
from scaletot_jax.parallel.tpu.topology import GIB, Target

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CACHE = re.compile(r"= (bf16|f32)\[([\d,]+)\]\S* copy\(")


class Times(NamedTuple):
    """Seconds of a step, and the compiler-estimated utilisation at either end: model FLOPs / (chips × peak × seconds)."""

    lower: float
    upper: float
    utilisation_low: float
    utilisation_high: float


def cycles(text: str) -> int:
    """Estimated cycles of a program on one chip, loops multiplied."""
    total = 0
    for line in Program(text).lines():
        found = _CYCLES.search(line.text)
        if found and not line.fused:
            total += line.trips * int(found[1])
    return total


def times(compiled: Compiled, work: Workload, config: LMConfig, target: Target) -> Times | None:
    """The range; None where the compiler gives no cycles (v5p, v6e), or no text."""
    if compiled.text is None or compiled.flops is None or not target.estimates_cycles:
        return None
    made = target.generation
    lower = max(cycles(compiled.text) / made.clock, compiled.flops / target.chips / made.flops)
    upper = lower + sum(one.wire_bytes for one in collectives(compiled.text)) / made.ici
    done = needed_flops(work, config) / (target.chips * made.flops)
    return Times(lower, upper, done / upper, done / lower)


def cache_copies(text: str, shapes: set[tuple[int, ...]]) -> int:
    """How many ``copy`` operations of a program make an array of one of these shapes (a cache's, on one chip)."""
    found = (tuple(int(size) for size in match[2].split(",")) for match in _CACHE.finditer(text))
    return sum(shape in shapes for shape in found)


def aliased(text: str) -> int:
    """How many outputs reuse the memory of an argument, by the program's own header."""
    header = text.split("\n", 1)[0]
    found = re.search(r"input_output_alias=\{(.*?)\}, \w+=", header)
    return len(re.findall(r"\{[\d, ]*\}: \(", found[1])) if found else 0


def record(compiled: Compiled, work: Workload, config: LMConfig, target: Target) -> dict[str, Any]:
    """The result as a JSON object."""
    out: dict[str, Any] = {
        "target": target.topology,
        "program": work.program,
        "mesh": [work.data, work.fsdp, work.tensor],
        "rows": work.rows,
        "tokens_a_row": work.tokens // work.rows,
        "outcome": compiled.outcome,
        "fits": compiled.fits(target),
        "hbm_gib": round(target.generation.hbm / GIB, 2),
        "memory_gib": {name: round(size / GIB, 3) for name, size in compiled.memory.items()},
        "flops_a_chip": None if compiled.flops is None else compiled.flops / target.chips,
        "cpu_seconds": compiled.cpu_seconds,
    }
    if compiled.reason:
        out["reason"] = compiled.reason
    if compiled.text is not None:
        out["collectives"] = {
            kind: {"listed": total.listed, "runs": total.runs, "wire_gib": round(total.wire_bytes / GIB, 3)}
            for kind, total in by_kind(collectives(compiled.text)).items()
        }
    found = times(compiled, work, config, target)
    if found is not None and work.program not in LOOPS:
        out["seconds"] = [round(found.lower, 4), round(found.upper, 4)]
        out["compiler_estimated_utilisation"] = [round(found.utilisation_low, 3), round(found.utilisation_high, 3)]
    return out


def show(compiled: Compiled, work: Workload, config: LMConfig, target: Target) -> str:
    """A few lines for people."""
    hbm = target.generation.hbm / GIB
    head = f"{work.program} on {target.topology}, {work.rows} rows of {work.tokens // work.rows} tokens"
    if compiled.outcome != "compiled":
        if compiled.outcome == "out of memory":
            return f"{head}: does NOT fit, needs {compiled.memory['peak'] / GIB:.2f} of {hbm:.2f} GiB a chip"
        return f"{head}: {compiled.outcome} {compiled.reason}"
    verdict = "fits" if compiled.fits(target) else f"compiles, but leaves less than {MARGIN / GIB} GiB"
    lines = [f"{head}: {verdict}, {compiled.memory['peak'] / GIB:.2f} of {hbm:.2f} GiB a chip"]
    if compiled.flops is not None:
        lines.append(f"  {compiled.flops / target.chips:.3g} FLOPs a chip, recomputation included")
    if compiled.text is None:
        lines.append("  the compiler could not print the program: no collectives, no times")
    else:
        lines += [f"  {_say(kind, total)}" for kind, total in by_kind(collectives(compiled.text)).items()]
    found = times(compiled, work, config, target)
    if found is not None and work.program not in LOOPS:
        lines.append(
            f"  {found.lower:.3g} to {found.upper:.3g} s a step, compiler-estimated utilisation "
            f"{found.utilisation_low:.0%} to {found.utilisation_high:.0%}, never measured"
        )
    lines.append(f"  {compiled.cpu_seconds:.0f} CPU seconds to compile")
    return "\n".join(lines)


def _say(kind: str, total: Total) -> str:
    return f"{kind}: {total.runs:,} runs of {total.listed:,}, {total.wire_bytes / GIB:.3f} GiB sent a chip"
