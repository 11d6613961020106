"""Compiles a program for a TPU slice that is not there, in a process of its own, and says what the compiler found."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaletot_jax.errors import ConfigError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.parallel.tpu.programs import Workload
from scaletot_jax.parallel.tpu.topology import Target

MARGIN = 2**29  # bytes a chip that must stay free for the runtime and other programs
# XLA would turn the gathers of split weights into loops of permutations (windowed einsums), which cost more than they hide.
OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compile gave; None where it did not get as far.

    Attributes:
      outcome: ``compiled``, ``out of memory``, ``out of time`` or ``failed``; ``reason`` says more of the last.
      memory: bytes a chip by kind, with ``peak``; after a refusal ``peak`` alone.
      flops: of all chips together, loops counted as often as they run.
      cpu_seconds, wall_seconds: of the compiler's process. rss: its peak memory in bytes.
      text: the compiled program, where the compiler could print it.
    """

    outcome: str
    reason: str = ""
    memory: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flops: int | None = None
    cpu_seconds: float | None = None
    wall_seconds: float | None = None
    rss: int | None = None
    text: str | None = None

    def fits(self, target: Target) -> bool:
        """Whether it compiled and leaves :data:`MARGIN` bytes a chip."""
        return self.outcome == "compiled" and self.memory["peak"] + MARGIN <= target.generation.hbm


def compile_ahead(
    work: Workload,
    config: LMConfig,
    target: Target,
    *,
    options: Mapping[str, str] | None = None,
    seconds: float = 900.0,
    text: bool = True,
) -> Compiled:
    """Compiles one workload.

    Args:
      options: of the compiler; default :data:`OPTIONS` where there are several chips.
      seconds: the process is ended after so long.
      text: whether the program's text is wanted too.

    Raises:
      ConfigError: libtpu is not installed, or the mesh has not as many devices as the slice has chips.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "the TPU compiler is not installed",
            where="libtpu",
            why="programs are compiled for a TPU by its own compiler, which needs no TPU",
            do="pip install libtpu, or leave --compile away",
        )
    if work.data * work.fsdp * work.tensor != target.chips:
        raise ConfigError(
            "the mesh does not fill the slice",
            where="mesh",
            why=f"data={work.data} × fsdp={work.fsdp} × tensor={work.tensor} of {target.chips} chips ({target.name})",
            do="choose mesh sizes whose product is the number of chips",
        )
    options = dict(OPTIONS if options is None and target.chips > 1 else options or {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.txt")
        request = {
            "topology": target.topology,
            "work": dataclasses.asdict(work),
            "model": dataclasses.asdict(config),
            "options": options,
            "text": str(path) if text else None,
        }
        outcome, reason = "compiled", ""
        command = [sys.executable, "-m", "scaletot_jax.parallel.tpu.worker"]
        try:
            done = subprocess.run(
                command, env=_environment(), input=json.dumps(request), capture_output=True, text=True, timeout=seconds
            )
            said, trouble = done.stdout, done.stderr
        except subprocess.TimeoutExpired as expired:
            said = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
            outcome, reason, trouble = "out of time", f"ended after {seconds:.0f} s", ""
        found: dict[str, Any] = {}
        for line in said.splitlines():
            if line.startswith("{"):
                found |= json.loads(line)
        if found.get("fits") is False:
            outcome, found["memory"] = "out of memory", {"peak": found["peak"], "available": found["available"]}
        elif outcome == "compiled" and "memory" not in found:
            outcome, reason = "failed", " | ".join(trouble.strip().splitlines()[-3:])[-600:]
        return Compiled(
            outcome=outcome,
            reason=reason,
            memory=found.get("memory", {}),
            flops=found.get("flops"),
            cpu_seconds=found.get("cpu_seconds"),
            wall_seconds=found.get("wall_seconds"),
            rss=found.get("rss"),
            text=path.read_text() if path.exists() and "text" in found else None,
        )


def _environment() -> dict[str, str]:
    """The compiler alone: no search for TPUs, several such processes at once."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
