"""Runs the same Python source in several real processes that find each other over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(devices: int = 1, cache: Path | None = None) -> dict[str, str]:
    """CPU alone, with so many emulated devices; compiled programs shared through ``cache``."""
    environ = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    if cache is not None:
        environ |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    return environ


def start(source: str, *arguments: str, processes: int, environ: Mapping[str, str]) -> list[subprocess.Popen[str]]:
    """Starts ``processes`` of them; SCALETOT_PROCESS says which is which."""
    port, group = free_port(), []
    for number in range(processes):
        own = dict(environ)
        if processes > 1:
            own |= {
                "SCALETOT_COORDINATOR": f"127.0.0.1:{port}",
                "SCALETOT_PROCESSES": str(processes),
                "SCALETOT_PROCESS": str(number),
            }
        command = [sys.executable, "-c", source, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        group.append(subprocess.Popen(command, env=own, text=True, **pipes))
    return group


def finish(group: list[subprocess.Popen[str]], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; none survives the call."""
    try:
        return [(process.wait(), out, err) for process in group for out, err in [process.communicate(timeout=timeout)]]
    finally:
        for process in group:
            process.kill()


def run(source: str, *arguments: str, processes: int, environ: Mapping[str, str]) -> list[tuple[int, str, str]]:
    return finish(start(source, *arguments, processes=processes, environ=environ))
