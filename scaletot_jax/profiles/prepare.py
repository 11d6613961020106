"""Stage ``prepare``: from a table of profiles to a checked, split and keyed population, with its renderer and features.

Writes, for the stages after it:

    population.parquet  rows sorted by (user_id, snapshot): row, user_id, group, snapshot (if any), split, exact_key,
                        coarse_key, every field of the schema, the labels
    schema.json         the schema, with data.profile_fields
    renderer.json       fitted on training rows without their labels; see profiles/render.py
    features.json       likewise; see profiles/features.py
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.files import read_json, read_table, write_json, write_table
from scaletot_jax.profiles import keys, split
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.fields import Field
from scaletot_jax.profiles.render import Renderer
from scaletot_jax.profiles.schema import Schema
from scaletot_jax.profiles.table import surplus_columns
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ARTIFACTS = ("population.parquet", "schema.json", "renderer.json", "features.json")


class Population(NamedTuple):
    """What ``prepare`` wrote, read back.

    Attributes:
      table: population.parquet.
      schema: of the input.
      fields: the profile fields of this run (``data.profile_fields``).
      renderer, features: fitted on the training rows.
    """

    table: pa.Table
    schema: Schema
    fields: list[Field]
    renderer: Renderer
    features: FeatureSpace

    def __repr__(self) -> str:  # never the rows: their identifiers would be stored with a notebook
        return f"Population({self.table.num_rows:,} rows of {self.schema.name}, {len(self.fields)} profile fields)"

    def _repr_html_(self) -> str:
        from scaletot_jax.report.inline import population

        return population(summarise(self.table, self.schema, self.fields), self.fields)


def open_population(run: Run) -> Population:
    """Reads the artifacts of the finished stage ``prepare``."""
    stage = run.finished("prepare")
    stated = read_json(stage.path("schema.json"))
    schema = Schema.from_dict(stated["schema"], where=str(stage.path("schema.json")))
    return Population(
        read_table(stage.path("population.parquet")),
        schema,
        schema.profile_fields(stated["profile_fields"]),
        Renderer.from_dict(read_json(stage.path("renderer.json"))),
        FeatureSpace.from_dict(read_json(stage.path("features.json"))),
    )


def prepare(run: Run) -> Stage:
    """Loads, checks, splits and keys the population. Seconds of work, so it restarts from its beginning when killed."""
    from scaletot_jax.datasets.load import read_source, select, source_identity

    data = run.config["data"]
    stage = run.stage("prepare", sections=("seed", "data", "split"), extra=source_identity(data))
    if stage.done:
        return stage
    with Progress("prepare", 3, "steps") as progress:
        source = read_source(data, seed=run.config["seed"])
        table, schema = select(source, data, seed=run.config["seed"]), source.schema
        progress.advance(note="data read")
        population = build_population(table, schema, data["profile_fields"], run.config["split"], run.config["seed"])
        fields = schema.profile_fields(data["profile_fields"])
        train = population.filter(pc.is_in(population["split"], value_set=pa.array(split.TRAIN)))
        renderer = Renderer.fit(train, fields)
        features = FeatureSpace.fit(train, schema, fields)
        progress.advance(note="population built")
        write_table(stage.path("population.parquet"), population)
        write_json(stage.path("schema.json"), {"schema": schema.to_dict(), "profile_fields": data["profile_fields"]})
        write_json(stage.path("renderer.json"), renderer.to_dict())
        write_json(stage.path("features.json"), features.to_dict())
        progress.advance()
    stage.finish(
        ARTIFACTS,
        summary={
            **summarise(population, schema, fields),
            "left_out": _left_out(source.table, schema, data["low_activity"], population.num_rows),
            "surplus_columns": surplus_columns(source.table, schema),
            "example_prompt": renderer.text(population.slice(0, 1).to_pylist()[0]),
        },
    )
    return stage


def _left_out(table: pa.Table, schema: Schema, low_activity: bool, kept: int) -> dict[str, int]:
    """Rows of the input that are no part of the population; those whose activity is unknown belong to no activity class."""
    rule, unknown = schema.low_activity, 0
    if low_activity and rule is not None and rule.field in table.column_names:
        unknown = table[rule.field].null_count
    if unknown and rule is not None:
        print(
            f"prepare: {unknown:,} of {table.num_rows:,} rows left out: {rule.field} is missing, so that nobody knows whether they are "
            "of low activity; data.low_activity=False keeps them",
            file=sys.stderr,
        )
    return {"rows": table.num_rows - kept, "activity_unknown": unknown}


def build_population(table: pa.Table, schema: Schema, which: str, fractions: Mapping[str, Any], seed: int) -> pa.Table:
    """Sorts a canonical table, assigns splits and keys. Pure.

    Args:
      table: from :func:`scaletot_jax.profiles.table.validate`.
      which: ``static`` or ``static+early``, the fields that enter the keys.
      fractions: the ``split`` section of the configuration.
      seed: of the split.

    Raises:
      DataError: a split got no row.
    """
    order = [("user_id", "ascending")] + ([("snapshot", "ascending")] if schema.snapshot else [])
    table = table.sort_by(order).combine_chunks()
    groups = table["group"].to_pylist()
    days = None
    if schema.snapshot and fractions["time_forward"]:
        days = table["snapshot"].cast(pa.int32()).to_numpy().astype(np.int64)
    horizon = schema.labels.days.horizon
    if fractions["shift_field"]:
        splits = _shifted(table, groups, fractions, seed=seed, by_time=days is not None)
    else:
        splits = split.assign(
            groups, fractions, seed=seed, days=days, horizon=horizon, evaluation_share=fractions["evaluation_share"]
        )
    split.assert_disjoint(groups, splits, days=days, horizon=horizon)
    empty = [name for name in split.SPLITS if not (splits == name).any()]
    if empty:
        raise DataError(
            "a split has no row",
            where=f"split {', '.join(empty)}",
            why=f"{table.num_rows} rows of {len(set(groups))} groups were split by hash",
            do="use more users (data.limit, data.low_activity), larger fractions, or another seed",
        )
    fields = schema.profile_fields(which)
    head = {
        "row": pa.array(np.arange(table.num_rows, dtype=np.int64)),
        **{name: table[name] for name in ("user_id", "group", "snapshot") if name in table.column_names},
        "split": pa.array(splits, pa.string()),
        "exact_key": pa.array(keys.exact_keys(table, fields), pa.string()),
        "coarse_key": pa.array(keys.coarse_keys(table, fields), pa.string()),
    }
    rest = {name: table[name] for name in table.column_names if name not in head}
    return pa.table({**head, **rest})


def _shifted(
    table: pa.Table, groups: Sequence[str], fractions: Mapping[str, Any], *, seed: int, by_time: bool
) -> np.ndarray:
    name = fractions["shift_field"]
    if by_time:
        raise ConfigError(
            "a shift test and a split by time exclude each other",
            where="split.shift_field, split.time_forward",
            do="set split.time_forward=False to test the shift alone",
        )
    if name not in table.column_names or not pa.types.is_string(table[name].type):
        raise ConfigError(
            "a shift test needs a field of words",
            where="split.shift_field",
            why=f"'{name}' is not one",
            do="name an enum or ordered field of the schema",
        )
    return split.assign_shifted(
        groups, table[name].to_pylist(), fractions, seed=seed, field=name,
        train=fractions["shift_train"], test=fractions["shift_test"],
    )  # fmt: skip


def summarise(population: pa.Table, schema: Schema, fields: Sequence[Field]) -> dict[str, Any]:
    """Counts that the report shows: rows, users, splits, repetition, labels, missing values."""
    labels = {}
    for column in schema.labels.columns:
        value = population[column].cast(pa.float64()).to_numpy()
        labels[column] = {
            "mean": float(value.mean()),
            "zero_share": float((value == 0).mean()),
            "max": float(value.max()),
        }
    counts = {item["values"]: item["counts"] for item in population["split"].value_counts().to_pylist()}
    exact, coarse = (population[name].to_numpy() for name in ("exact_key", "coarse_key"))
    summary = {
        "schema": schema.name,
        "rows": population.num_rows,
        "users": len(pc.unique(population["group"])),
        "splits": {name: counts.get(name, 0) for name in (*split.SPLITS, split.UNUSED)},
        "profile_fields": [field.name for field in fields],
        "distinct_profiles": {"exact": len(np.unique(exact)), "coarse": len(np.unique(coarse))},
        "repetition": {"exact": keys.share_of_repeats(exact), "coarse": keys.share_of_repeats(coarse)},
        "labels": labels,
        "missing": {f.name: population[f.name].null_count / population.num_rows for f in schema.fields},
    }
    if schema.snapshot:
        summary["snapshots"] = [str(day) for day in sorted(pc.unique(population["snapshot"]).to_pylist())]
    return summary
