"""The line from profiles to report: which stage follows which, and one function that runs them all."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from scaletot_jax.config import validate
from scaletot_jax.errors import PreemptedError, StaleRunError
from scaletot_jax.parallel import distributed
from scaletot_jax.run import STAGES, Run, Stage

# Stage modules are imported when they run: `prepare` must not wait for jax, `report` not for orbax.
_MODULES = {
    "prepare": "scaletot_jax.profiles.prepare",
    "teach": "scaletot_jax.teacher.teach",
    "sft": "scaletot_jax.student.sft",
    "osipo": "scaletot_jax.student.osipo",
    "distill": "scaletot_jax.encoder.distill",
    "score": "scaletot_jax.encoder.score",
    "evaluate": "scaletot_jax.evaluation.evaluate",
    "report": "scaletot_jax.report.report",
}
assert tuple(_MODULES) == STAGES
_DIVIDED = ("sft", "osipo")  # stages that all processes run together


def run_stage(run: Run, name: str) -> Stage:
    """Runs one stage, or returns at once when its finished result lies in the run directory.

    Of several processes the first runs a stage that is not divided, while the others wait.
    """

    def stage() -> Stage:
        return getattr(importlib.import_module(_MODULES[name]), name)(run)

    if distributed.count() == 1 or name in _DIVIDED:
        return stage()
    if distributed.leads():
        try:
            with distributed.alone():
                stage()
        except PreemptedError as error:
            error.together = False
            raise
    distributed.barrier(name)
    return run.finished(name)


def run_all(
    config: ConfigDict, workdir: str | Path, *, on_change: str = "refuse", stages: Sequence[str] = STAGES
) -> Path:
    """Runs the whole line, or the given stages of it, and returns the run directory.

    Args:
      config: from :func:`scaletot_jax.config.default_config` or a recipe; validated here.
      workdir: the run directory; finished stages in it are not run again, unfinished ones are continued.
      on_change: ``"refuse"`` or ``"redo"`` a stage that was done with another configuration.

    Raises:
      ScaleToTError: bad configuration, bad input, a stale run directory, or a resource that ran out.
    """
    if on_change not in ("refuse", "redo"):
        raise ValueError(f"on_change must be 'refuse' or 'redo', not {on_change!r}")
    validate(config)
    with Run(workdir, config.to_dict(), on_change=on_change) as run:
        for name in stages:
            run_stage(run, name)
    return Path(workdir)


def verdict(workdir: str | Path) -> str:
    """The verdict sentence of a finished run."""
    from scaletot_jax.files import read_json

    metrics = read_json(Path(workdir) / "metrics.json")
    try:
        return metrics["verdict"]["sentence"]
    except (KeyError, TypeError) as error:
        raise StaleRunError("the run has no verdict yet", where=str(workdir), do="run 'scaletot run'") from error
