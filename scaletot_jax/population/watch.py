"""``scaletot watch --model DIR --table FILE|FOLDER [--scores DIR]``: the quality watch of a table, and of its scores.

Prints a table and, with ``--json FILE``, writes the same as JSON. Exit code 6 where there is an alarm. What ``score`` would
refuse (a value outside a closed list, a number out of range or not finite) is counted here, so that it can be seen at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import ConfigError, StaleRunError
from scaletot_jax.files import write_json
from scaletot_jax.population import quality
from scaletot_jax.population.commit import read_manifest
from scaletot_jax.population.compute import column_names, compile_columns
from scaletot_jax.population.model import ServedModel, load_model
from scaletot_jax.population.quality import Tally, Thresholds
from scaletot_jax.population.score import open_table
from scaletot_jax.population.source import Source
from scaletot_jax.profiles import columns
from scaletot_jax.profiles.faults import Faults
from scaletot_jax.profiles.split import TRAIN

ALARM = 6  # exit code
BLOCK = 1 << 16  # rows held at a time
_SCORED, _BATCH = 1 << 16, 4096  # most training rows whose scores enter the reference; rows of the compiled call


def score_columns(model: ServedModel) -> list[str]:
    """The columns of scored shards that are watched: expected labels and P(y > 0)."""
    return [name for name in column_names(model.spec, "none") if name.startswith(("expected_", "p_positive_"))]


def training_reference(model: ServedModel, population: pa.Table) -> dict[str, Any]:
    """``reference.json`` of a model.

    Args:
      model: its feature space and heads.
      population: canonical rows with the column ``split``; those the feature space was fitted on count.
    """
    train = population.filter(pc.is_in(population["split"], value_set=pa.array(TRAIN)))
    index = np.unique(np.linspace(0, train.num_rows - 1, min(train.num_rows, _SCORED)).astype(np.int64))
    scores: dict[str, np.ndarray] = {}
    if model.spec.targets:
        compute = compile_columns(model.params, model.spec, embedding="none", batch_rows=min(_BATCH, len(index)))
        found = compute(Inputs(*model.space.encode(train.take(pa.array(index)))))
        scores = {name: found[name] for name in score_columns(model)}
    return quality.reference(model.space, train, scores)


def watch(
    model: str | Path, table: str | Path, scores: str | Path | None = None, thresholds: Thresholds | None = None
) -> dict[str, Any]:
    """The judgement of :func:`scaletot_jax.population.quality.judge`.

    Raises:
      DataError: the model has no reference, the table lacks a column or has one of another type, or the scores are not
        complete.
      StaleRunError: the scores are of another model.
    """
    served = load_model(model)
    quality.check_reference(served.reference)
    fields = tally_table(served, open_table(served, table))
    return quality.judge(served.reference, fields, tally_scores(served, scores) if scores else {}, thresholds)


def tally_table(model: ServedModel, source: Source) -> dict[str, Tally]:
    """Tallies of every field over all rows of a table."""
    found: dict[str, Tally] = {}
    ranges = [(begin, min(begin + BLOCK, source.rows)) for begin in range(0, source.rows, BLOCK)]
    for block in source.blocks(ranges):
        for field in model.fields:
            array = columns.array(block, field.source)
            ignored = Faults(str(source.path))
            column = pa.chunked_array([columns.canonical(array, field, ignored, str(source.path))])
            tally = quality.tally_field(model.space, field, model.reference["fields"][field.name], column)
            found[field.name] = found[field.name].plus(tally) if field.name in found else tally
    return found


def tally_scores(model: ServedModel, directory: str | Path) -> dict[str, Tally]:
    """Tallies of the scores of a finished job, from the shards that its manifest records."""
    manifest = read_manifest(directory)
    if manifest.get("model") != model.fingerprint:
        raise StaleRunError(
            "the scores are of another model",
            where=str(directory),
            why=f"model {manifest.get('model')}, not {model.fingerprint}",
            do="give the --out of 'scaletot score' with this --model",
        )
    names = score_columns(model)
    found: dict[str, Tally] = {}
    for entry in manifest["shards"]:
        with pq.ParquetFile(Path(directory) / entry["file"]) as file:
            for batch in file.iter_batches(BLOCK, columns=names):
                for name in names:
                    tally = quality.tally_numbers(model.reference["scores"][name], batch[name].to_numpy())
                    found[name] = found[name].plus(tally) if name in found else tally
    return found


def main(arguments: Sequence[str]) -> int:
    """The verb ``watch``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scaletot watch", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a served model, from 'scaletot export'")
    parser.add_argument("--table", required=True, metavar="FILE", help="a Parquet file, or a folder of them")
    parser.add_argument("--scores", metavar="DIR", help="what 'scaletot score' wrote for this model and table")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON, too")
    for name, value in Thresholds()._asdict().items():
        option = f"--max-{name.replace('_', '-')}"
        parser.add_argument(
            option, dest=name, type=float, default=value, metavar="X", help=f"alarm above (default {value})"
        )
    options = parser.parse_args(arguments)
    thresholds = Thresholds(*(getattr(options, name) for name in Thresholds._fields))
    for name, value in thresholds._asdict().items():
        if not value >= 0:
            raise ConfigError("a threshold is negative", where=f"--max-{name.replace('_', '-')}", why=str(value))
    found = watch(options.model, options.table, options.scores, thresholds)
    print(quality.show(found))
    if options.json:
        write_json(options.json, found)
    return ALARM if found["alarms"] else 0
