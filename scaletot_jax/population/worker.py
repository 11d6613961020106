"""Which part of the shards a process makes: worker I of N takes every shard whose number is I modulo N. No messages pass.

``--worker I/N``; else SCALETOT_WORKER=I/N; else the task of a Slurm step or job array; else JOB_COMPLETION_INDEX of a
Kubernetes indexed job with SCALETOT_WORKERS=N, which Kubernetes does not tell; else 0/1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scaletot_jax.errors import ConfigError
from scaletot_jax.population.commit import Shard


class Worker(NamedTuple):
    """The number of this worker, from 0, and how many there are."""

    number: int
    of: int

    def share(self, shards: Sequence[Shard]) -> list[Shard]:
        return [shard for shard in shards if shard.number % self.of == self.number]


ALONE = Worker(0, 1)


def find_worker(environ: Mapping[str, str], stated: str = "") -> Worker:
    """The worker that this process is.

    Args:
      environ: the environment.
      stated: of the command line, "I/N"; goes before the environment.

    Raises:
      ConfigError: not of that form, or I is not below N.
    """
    if stated:
        return _parse(stated, "--worker")
    if "SCALETOT_WORKER" in environ:
        return _parse(environ["SCALETOT_WORKER"], "SCALETOT_WORKER")
    if "SLURM_ARRAY_TASK_ID" in environ:
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_STEP")
        task, first, count, step = (environ.get(name, default) for name, default in zip(names, ("", "0", "", "1")))
        place = _number(task, names[0]) - _number(first, names[1])
        return _parse(f"{place // max(1, _number(step, names[3]))}/{count}", ", ".join(names))
    if "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ:
        return _parse(f"{environ['SLURM_PROCID']}/{environ['SLURM_STEP_NUM_TASKS']}", "the Slurm step")
    if "JOB_COMPLETION_INDEX" in environ:
        count = environ.get("SCALETOT_WORKERS", "")
        if not count:
            raise ConfigError(
                "a worker of a Kubernetes indexed job does not know how many there are",
                where="SCALETOT_WORKERS",
                do="set it to the job's 'completions', or pass --worker I/N",
            )
        return _parse(f"{environ['JOB_COMPLETION_INDEX']}/{count}", "JOB_COMPLETION_INDEX and SCALETOT_WORKERS")
    return ALONE


def _parse(text: str, where: str) -> Worker:
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(
            "a worker is stated as I/N with I from 0 to N - 1", where=where, why=repr(text), do="for example 0/4"
        )
    return Worker(int(match[1]), int(match[2]))


def _number(text: str, where: str) -> int:
    if not text.isdigit():
        raise ConfigError("not a number", where=where, why=repr(text))
    return int(text)
