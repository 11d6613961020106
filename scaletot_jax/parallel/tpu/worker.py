"""The process that compiles: ``python -m scaletot_jax.parallel.tpu.worker``, a request on stdin, JSON lines out.

A line of its own for each thing that is known, as soon as it is: the compiler's process may die over a later one (reading
the text of a v5p or v6e program has), and what was known before must not be lost with it.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from typing import Any


def main() -> int:
    """Reads ``{"topology": ..., "model": ..., "work": {...}, "options": {...}}``; returns the exit code."""
    request = json.load(sys.stdin)
    import jax
    from jax.experimental import topologies

    from scaletot_jax.lm.config import LMConfig
    from scaletot_jax.parallel.mesh import make_mesh
    from scaletot_jax.parallel.tpu.flops import flops
    from scaletot_jax.parallel.tpu.programs import Workload, build

    work, config = Workload(**request["work"]), LMConfig(**request["model"])
    topology = topologies.get_topology_desc(platform="tpu", topology_name=request["topology"])
    mesh = make_mesh(data=work.data, fsdp=work.fsdp, tensor=work.tensor, devices=topology.devices)
    say(devices=mesh.size, jax=jax.__version__)
    program = build(work, config, mesh)  # not under the mesh, where nothing may run
    with jax.set_mesh(mesh):
        traced = program.jitted.trace(*program.arguments)
        say(flops=flops(traced.jaxpr), trace_seconds=_seconds())
        started = time.monotonic()
        try:
            compiled = traced.lower().compile(compiler_options=request["options"] or None)
        except jax.errors.JaxRuntimeError as error:
            needed = out_of_memory(str(error))
            if needed is None:
                raise
            say(fits=False, peak=needed[0], available=needed[1], cpu_seconds=_seconds())
            return 0
    say(memory=memory(compiled), wall_seconds=time.monotonic() - started, cpu_seconds=_seconds())
    say(rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    if request.get("text"):
        say(text=_write(compiled.as_text(), request["text"]))
    return 0


def out_of_memory(message: str) -> tuple[float, float] | None:
    """Bytes that a program needs and bytes there are, from the compiler's refusal; None where it refuses otherwise.

    The message speaks of temporaries, but the number holds arguments and results as well.
    """
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(
        r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
        message,
    )
    if found is None:
        return None
    return float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]


def memory(compiled: Any) -> dict[str, int]:
    """The compiler's own figures, bytes a device; ``peak`` = arguments + outputs − reused + temporaries + code."""
    analysis = compiled.memory_analysis()
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "reused": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    signs = {"reused": -1}
    return parts | {"peak": sum(signs.get(name, 1) * size for name, size in parts.items())}


def say(**found: Any) -> None:
    """One JSON line."""
    print(json.dumps(found), flush=True)


def _seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _write(text: str, path: str) -> str:
    with open(path, "w") as out:
        out.write(text)
    return path


if __name__ == "__main__":
    sys.exit(main())
