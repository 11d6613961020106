"""The clock of a training loop: tokens a second a device and model FLOPs utilisation, a line a step.

Times differ between two runs of the same configuration, and ``steps.jsonl`` must not: so they stand in ``timing.jsonl``
beside it, which is no artifact of the stage and no part of what a restart reproduces. The convention of the numbers is
that of :mod:`scaletot_jax.student.throughput`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from jax.sharding import Mesh

from scaletot_jax.run import Stage
from scaletot_jax.sinks import Sinks
from scaletot_jax.step_log import StepLog
from scaletot_jax.student.throughput import peak_flops, utilisation


class Clock:
    """Open it before the first step.

    Args:
      stage: whose folder holds ``timing.jsonl``.
      mesh: whose devices share the work.
      done: steps done by earlier processes; later lines are dropped.
      sinks: of the stage, where the lines go besides.
      convention: how FLOPs were counted, such as ``"4ND"``; printed at the end.
    """

    def __init__(self, stage: Stage, mesh: Mesh, *, done: int, convention: str, sinks: Sinks | None = None):
        self._stage, self._convention = stage.name, convention
        self._devices, self._kind = mesh.devices.size, mesh.devices.flat[0].device_kind
        self._log = StepLog(stage.path("timing.jsonl"), keep_through=done, sinks=sinks, prefix="timing/")
        self._steps: list[tuple[float, float]] = []
        self.started = time.monotonic()

    def start(self) -> None:
        """The step begins."""
        self.started = time.monotonic()

    def stop(self, step: int, tokens: int, flops: float, **more: Any) -> str:
        """The step has ended: its line is written, and a note for the progress line is returned.

        The first step of a process includes compilation and is left out of the closing line's median. ``model_flops_utilisation``
        is null where no peak of the device is known.
        """
        seconds = time.monotonic() - self.started
        rate = tokens / (seconds * self._devices)
        share = utilisation(flops, seconds, self._devices, self._kind)
        self._log.append(
            step,
            seconds=seconds,
            tokens=tokens,
            tokens_per_second_per_device=rate,
            model_flops=flops,
            model_flops_utilisation=float("nan") if share is None else share,
            **more,
        )
        self._steps.append((rate, float("nan") if share is None else share))
        return f"{rate:,.0f} tokens/s a device" + ("" if share is None else f", {share:.1%} of its peak")

    def close(self) -> None:
        """Prints the medians."""
        self._log.close()
        if len(self._steps) < 2:
            return
        rate, share = np.median(np.asarray(self._steps[1:]), axis=0)
        peak = peak_flops(self._kind)
        if peak is None:
            used = f"no utilisation: no peak is known for '{self._kind}'"
        else:
            used = f"model FLOPs utilisation {share:.1%} of {peak / 1e12:g} TFLOP/s ({self._kind}, {self._convention})"
        print(f"{self._stage}: {rate:,.0f} tokens/s a device (median); {used}", file=sys.stderr)
