"""The verb ``export``: a finished run becomes a served model that needs the run no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaletot_jax.chains.spec import spec_of_run
from scaletot_jax.errors import StaleRunError
from scaletot_jax.evaluation import kept_heads
from scaletot_jax.export.write import write_exports
from scaletot_jax.files import read_table
from scaletot_jax.population.exemplars import collect, write_exemplars
from scaletot_jax.population.install import replaces
from scaletot_jax.population.model import ENCODER, ServedModel, copy_parts, seal_model
from scaletot_jax.population.probe import write_probe
from scaletot_jax.population.watch import training_reference
from scaletot_jax.run import Run


def export_model(run: Run, out: str | Path, formats: Sequence[str] = (), min_users: int = 0) -> ServedModel:
    """Writes the served model of a run with ``distill`` and ``evaluate`` finished.

    Args:
      run: may be opened without its lock.
      out: a new directory, or one of an earlier export, which is replaced when the new one is whole, see
        :func:`scaletot_jax.population.install.replaces`.
      min_users: above 0, chains that at least so many users share are written for explanations, see
        :mod:`scaletot_jax.population.exemplars`.
      formats: programs to write beside the model, see :func:`scaletot_jax.export.write.write_exports`.

    Raises:
      StaleRunError: a stage is not finished or was done by a version that did not keep the heads; ``out`` holds other
        things.
      DataError: an exported program does not agree with the model, or no chain is shared by ``min_users``; an earlier export
        stays.
    """
    out = Path(out)
    stages = {name: run.finished(name) for name in ("prepare", "distill", "evaluate")}
    heads = {name: stages["evaluate"].path(name) for name in kept_heads.FILES}
    if not all(path.is_file() for path in heads.values()):
        raise StaleRunError(
            "the finished stage 'evaluate' kept no heads",
            where=str(stages["evaluate"].directory),
            why="it was done by an earlier version",
            do=f"delete {stages['evaluate'].directory} and run 'scaletot evaluate' again",
        )
    population = read_table(stages["prepare"].path("population.parquet"))
    sources = {name: stages["distill"].path(name) for name in ENCODER}
    sources |= {name: stages["prepare"].path(name) for name in ("features.json", "schema.json")}
    with replaces(out, "choose another --out") as aside:
        copy_parts(sources | heads, aside)
        results = {name: stage.result for name, stage in stages.items()}
        add = [write_probe]
        if min_users:
            spec, chains = spec_of_run(run.config), read_table(run.finished("teach").path("chains.parquet"))
            add.append(lambda model: write_exemplars(model, collect(model, chains, population, spec), spec, min_users))
        model = seal_model(aside, reference=lambda model: training_reference(model, population), add=add, run=results)
        write_exports(model, formats, population)
    return model._replace(directory=out)
