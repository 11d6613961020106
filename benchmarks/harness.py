"""What every benchmark shares: ours and its peers in turn, medians, one JSON line last.

A ratio above 1 means ours is better.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping


def in_turn(jobs: Mapping[str, Callable[[], float]], rounds: int, *, warm: bool = True) -> dict[str, list[float]]:
    """Runs every job once to warm up, then ``rounds`` times in turn (A B C A B C …). A job returns units of work done.

    ``warm=False``: no warm-up, for jobs beside whose length a compilation is nothing.

    Returns:
      Seconds a unit of each job, one a round.
    """
    for job in jobs.values() if warm else ():
        job()
    out: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            units = job()
            out[name].append((time.perf_counter() - start) / units)
    return out


def table(rates: Mapping[str, list[float]], unit: str) -> None:
    """Prints units a second: median, lowest, highest."""
    print(f"\n{'':28}{'median':>10}{'lowest':>10}{'highest':>10}  {unit}")
    for name, seconds in rates.items():
        values = sorted(1 / s for s in seconds)
        print(f"{name:28}{statistics.median(values):10.1f}{values[0]:10.1f}{values[-1]:10.1f}")


def last_line(
    benchmark: str, rates: Mapping[str, list[float]], unit: str, *, missing: Mapping[str, str], **more
) -> None:
    """The JSON line. ``rates``: seconds a unit, ours under ``ours``; ``missing``: peers that could not run, and why."""
    median = {name: 1 / statistics.median(seconds) for name, seconds in rates.items()}
    record = {
        "benchmark": benchmark,
        "ours": round(median["ours"], 2),
        "peers": {name: round(value, 2) for name, value in median.items() if name != "ours"},
        "missing": dict(missing),
        "ratio": {name: round(median["ours"] / value, 2) for name, value in median.items() if name != "ours"},
        "unit": unit,
        "machine": machine(),
        "versions": versions("jax", "torch", "transformers"),
        **more,
    }
    print(json.dumps(record))


def machine() -> str:
    """Processor and count of cores, or the accelerator."""
    import jax

    if jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{len(os.sched_getaffinity(0))} cores, {model}"


def versions(*names: str) -> dict[str, str]:
    """Installed versions; a package that is absent is left out."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
