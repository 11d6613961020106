"""Does a run again from its own record, in a folder beside it, and compares what came out.

The record is ``config.json``, ``env.json``, ``metrics.json`` and the ``stage.json`` of each stage. Nothing of the run's work is
read or used: a stage is done anew from the inputs that the configuration names. Killed, the same command continues: the folder
says by a mark, written before anything else, from which record and in which environment it is made, and one that holds anything
without that very mark is refused. Stages that something else left there would be compared with the record as if just run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from scaletot_jax.config import override, validate
from scaletot_jax.errors import ConfigError, NotReproducedError, StaleRunError
from scaletot_jax.files import fingerprint, plain, read_json, sha256_file, write_json
from scaletot_jax.reproduce.compare import SAME, Comparison, Row, compare, differences
from scaletot_jax.reproduce.manifest import Manifest, config_of, inputs_of, read_manifest
from scaletot_jax.reproduce.table import sentence
from scaletot_jax.run import STAGES, Run

RESULT = "reproduction.json"
MARK = "reproducing.json"
MOVABLE = ("data.path", "data.schema", "data.manual_dir", "lm.weights", "lm.chain_spec")


class Repetition(NamedTuple):
    """What is about to be run: ``before`` says how it already differs from the record, ``mark`` what ``into`` is marked with."""

    record: Manifest
    config: ConfigDict
    into: Path
    before: list[Row]
    mark: Mapping[str, Any]

    @property
    def other_inputs(self) -> list[Row]:
        return [row for row in self.before if row.kind == "inputs"]


def begin(workdir: str | Path, into: str | Path = "", moved: Sequence[tuple[str, str]] = ()) -> Repetition:
    """Reads the record of ``workdir`` and looks at machine, versions and inputs. Nothing is run or written.

    Args:
      workdir: the run directory, of which the record suffices.
      into: the folder of the repetition (default: beside it, with ``.reproduced`` at the end of its name).
      moved: (key, path) for inputs that lie elsewhere than the record says, keys of :data:`MOVABLE`.

    Raises:
      DataError: no record, or an input that is not there.
      ConfigError: a folder that would mix both, a key that is no place of an input, or a record of another version.
      StaleRunError: the folder holds something that was not made from this record in this environment.
    """
    from scaletot_jax.report.environment import environment

    workdir = Path(workdir).resolve()
    place = Path(into).resolve() if into else workdir.with_name(f"{workdir.name}.reproduced")
    if place == workdir or place in workdir.parents or workdir in place.parents:
        raise ConfigError(
            "a repetition needs a folder of its own", where=f"--workdir {place}", do="name one beside the run directory"
        )
    record = read_manifest(workdir)
    config = config_of(record.config, workdir / "config.json")
    for key, value in moved:
        if key not in MOVABLE:
            raise ConfigError(
                "with another value this would be another run",
                where=f"--config.{key}={value}",
                do=f"only places of inputs may be others: {', '.join(MOVABLE)}",
            )
        override(config, key, value)
    validate(config)
    chosen = json.loads(json.dumps(config.to_dict(), default=plain))
    now = environment()
    mark = _mark(workdir, record, now)
    _refuse_other_work(place, mark)
    return Repetition(record, config, place, [
        *differences("environment", record.environment, now, judged=False),
        *differences("inputs", record.inputs, inputs_of(chosen, record.inputs), judged=True),
        *differences("configuration", record.config, chosen, judged=False),
    ], mark)  # fmt: skip


def _mark(workdir: Path, record: Manifest, now: Mapping[str, Any]) -> dict[str, Any]:
    """What names a repetition. Where the run is itself one its own mark enters, so that a copy of it has another."""
    own = workdir / MARK
    return {
        "record": fingerprint([record._asdict(), sha256_file(own) if own.is_file() else ""]),
        "environment": json.loads(json.dumps(now, default=plain)),
    }


def _refuse_other_work(into: Path, mark: Mapping[str, Any]) -> None:
    """Raises StaleRunError where the folder holds anything and is not marked so; hidden files are of a start that was killed."""
    if not into.is_dir() or all(path.name.startswith(".") for path in into.iterdir()):
        return
    path = into / MARK
    found = read_json(path) if path.is_file() else None
    if found != mark:
        stated = found.get("environment") if isinstance(found, dict) else None
        told = differences("environment", stated if isinstance(stated, dict) else {}, mark["environment"], judged=False)
        why = f"it has no {MARK}" if found is None else ", ".join(f"{row.name}: {row.detail}" for row in told[:4])
        raise StaleRunError(
            "the folder holds work that was not done from this record in this environment",
            where=str(into),
            why=why or "its mark is of another record",
            do="name a folder that is new or empty with --workdir, or delete this one",
        )


def reproduce(repetition: Repetition, *, tolerance: float | None = None, anyway: bool = False) -> Comparison:
    """Runs every stage that the record has, the coverage curve included, and writes ``reproduction.json`` beside them.

    Args:
      repetition: of :func:`begin`.
      tolerance: see :func:`scaletot_jax.reproduce.compare.compare`.
      anyway: run although the inputs are not those of the record.

    Raises:
      NotReproducedError: the inputs are others; nothing was run.
      ScaleToTError: as :func:`scaletot_jax.pipeline.run_all`.
    """
    from scaletot_jax.evaluation import cover
    from scaletot_jax.pipeline import run_all

    record, config, into, before, mark = repetition
    if repetition.other_inputs and not anyway:
        raise NotReproducedError(
            "the inputs are not those of the record, so nothing was run",
            where=", ".join(row.name for row in repetition.other_inputs),
            why="; ".join(row.detail for row in repetition.other_inputs),
            do="bring back the inputs, say where they lie (--config.data.path=… and the like), or pass --anyway",
        )
    write_json(into / MARK, mark)
    run_all(config, into, stages=[name for name in STAGES[:-1] if name not in record.metrics["missing"]])
    if "coverage" in record.metrics:
        with Run(into, config.to_dict()) as run:
            cover.coverage(run)
    run_all(config, into, stages=STAGES[-1:])
    again = read_manifest(into)
    found = compare((record.metrics, again.metrics), (record.files, again.files), before, tolerance)
    write_json(into / RESULT, {
        "reproduced": found.agrees,
        "tolerance": found.tolerance,
        "before": [row._asdict() for row in found.before],
        "same": sum(row.status == SAME for row in found.rows),
        "other": [row._asdict() for row in found.rows if row.status != SAME],
        "times": found.times,
    })  # fmt: skip
    return found


def refuse_differences(found: Comparison, into: Path) -> None:
    """Raises NotReproducedError where something that is judged did not come out again."""
    if not found.agrees:
        raise NotReproducedError(
            sentence(found),
            where=str(into / RESULT),
            do="look at what differs first in the order of the line: what follows is built on it",
        )
