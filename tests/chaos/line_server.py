"""Runs of the command line by the dozen: a process that has imported everything and forks one real process a run.

Each line of input is a command, each line of output its answer:

    {"argv": [...], "log": file, FAULTS}   a run is begun                → {"pid": ...}
    {"wait": pid}                          until it has ended            → {"code": ..., "events": ...}
    {"able": null}                         whether a small disk can be   → {"disk": true}

FAULTS, each may be absent: ``kill`` (SIGKILL at that event, see :func:`_count_events`), ``clock`` (seed of a wall clock that
jumps), ``version`` (the program calls itself so), ``disk`` (KiB that are free: the run directory then lies on a tmpfs of
that much more than it holds, in a mount namespace of this process alone, and is copied back in the end).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

MODULES = (
    "jax", "flax", "optax", "orbax.checkpoint", "grain", "pyarrow.parquet", "safetensors.numpy", "tokenizers", "sklearn",
    "matplotlib.figure", "scaletot_jax.cli", "scaletot_jax.pipeline", "scaletot_jax.profiles.prepare",
    "scaletot_jax.teacher.teach", "scaletot_jax.student.sft", "scaletot_jax.student.osipo", "scaletot_jax.encoder.distill",
    "scaletot_jax.encoder.score", "scaletot_jax.evaluation.evaluate", "scaletot_jax.report.report",
)  # fmt: skip
YEAR = 365 * 86400.0
_NEW_NAMESPACE, _PRIVATE = 0x00020000, 0x4000 | 0x40000  # CLONE_NEWNS; MS_REC | MS_PRIVATE


def _count_events(kill: int | None) -> list[int]:
    """Everything that a kill may fall between is an event: syncs, renames, commits of the store, lines of a step log."""
    from scaletot_jax.step_log import StepLog
    from scaletot_jax.teacher.store import Store

    seen = [0]

    def happen() -> None:
        seen[0] += 1
        if kill is not None and seen[0] > kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(real):
        def wrapped(*args, **kwargs):
            happen()
            out = real(*args, **kwargs)
            happen()
            return out

        return wrapped

    for place, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (StepLog, "append"), (Store, "put")):
        setattr(place, name, around(getattr(place, name)))
    return seen


def _jump(seed: int) -> None:
    """The wall clock jumps by up to ten years, forwards and backwards, at one of five readings; the monotonic one goes on."""
    rng, honest, offset = random.Random(seed), time.time, [0.0]

    def now() -> float:
        if rng.random() < 0.2:
            offset[0] = rng.uniform(-10 * YEAR, 10 * YEAR)
        return honest() + offset[0]

    time.time = now
    time.time_ns = lambda: int(now() * 1e9)


def _small_disk(place: Path, free: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    held = sum(-(-path.stat().st_size // 4096) * 4 for path in place.rglob("*") if path.is_file())
    disk = place.with_name(place.name + ".disk")
    disk.mkdir(exist_ok=True)  # an empty folder outside: an earlier small disk went with its process
    size = f"size={held + free}k".encode()
    if (
        libc.unshare(_NEW_NAMESPACE)
        or libc.mount(b"none", b"/", None, _PRIVATE, None)
        or libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, size)
    ):
        raise OSError(ctypes.get_errno(), "no small disk here")
    shutil.copytree(place, disk, dirs_exist_ok=True)


def _copy_back(place: Path) -> None:
    disk = place.with_name(place.name + ".disk")
    shutil.rmtree(place)
    shutil.copytree(disk, place)


def _run(command: dict) -> int:
    """The command line in this forked process."""
    argv = list(command["argv"])
    place = Path(argv[argv.index("--workdir") + 1])
    if command.get("disk") is not None:
        _small_disk(place, command["disk"])
        argv[argv.index("--workdir") + 1] += ".disk"
    if command.get("clock") is not None:
        _jump(command["clock"])
    if command.get("version"):
        for name, module in list(sys.modules.items()):
            if name.startswith("scaletot_jax") and hasattr(module, "__version__"):
                module.__version__ = command["version"]
    seen = _count_events(command.get("kill"))
    from scaletot_jax.cli import main

    try:
        code = main(argv)
    except BaseException:
        traceback.print_exc()
        code = 1
    print(f"events: {seen[0]}", flush=True)
    if command.get("disk") is not None:
        _copy_back(place)
    return code


def _fork(command: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(log, number)
        code = _run(command)
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _able() -> bool:
    """Whether this process may mount; tried in a process of its own."""
    pid = os.fork()
    if not pid:
        libc = ctypes.CDLL(None)
        os._exit(int(bool(libc.unshare(_NEW_NAMESPACE) or libc.mount(b"none", b"/", None, _PRIVATE, None))))
    return os.waitpid(pid, 0)[1] == 0


def serve() -> None:
    for name in MODULES:
        importlib.import_module(name)
    for line in sys.stdin:
        command = json.loads(line)
        if "able" in command:
            answer = {"disk": _able()}
        elif "wait" in command:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1])}
        else:
            answer = {"pid": _fork(command)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
