"""From the configuration's ``data`` section to a checked table: a built-in data set, or any Parquet file with a schema.

A built-in data set is read through the same table function that its tfds builder (``tfds_builders.py``) generates its
examples from, not through files of that builder: the low-activity population of Complete Journey takes 7.4 s to build
and read back as array_record, 1.2 s this way (2 cores). The rows are the same, but those files hold
numbers that are not counts as float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.datasets import complete_journey, kuairand_pure, oulad, synthetic
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.files import fingerprint, sha256_file
from scaletot_jax.profiles.schema import Schema, load_schema
from scaletot_jax.profiles.split import unit_hash
from scaletot_jax.profiles.table import read_parquet, validate

BUILDERS = ("complete_journey", "oulad", "kuairand_pure")
SYNTHETIC_ROWS = 600


class Source(NamedTuple):
    """A table before it is checked.

    Attributes:
      table: as it was read or built.
      schema: that it will be checked against.
      where: what errors call it.
    """

    table: pa.Table
    schema: Schema
    where: str


def load(data: Mapping[str, Any], *, seed: int = 0) -> tuple[pa.Table, Schema]:
    """The population of a ``data`` section in canonical form, and its schema.

    Args:
      data: keys name, path, schema, manual_dir, low_activity, limit as in :mod:`scaletot_jax.config`.
      seed: of the synthetic population and of the rows kept by ``limit``.

    Returns:
      the table of :func:`scaletot_jax.profiles.table.validate`, low-activity rows only where the section asks for them,
      at most ``limit`` rows chosen by the hash of the user id (so that a larger limit keeps the smaller one's rows).

    Raises:
      DataError: the data is missing or invalid, or nothing is left.
      ConfigError: an impossible combination of keys.
    """
    source = read_source(data, seed=seed)
    return select(source, data, seed=seed), source.schema


def read_source(data: Mapping[str, Any], *, seed: int = 0) -> Source:
    """Reads or builds the table of a ``data`` section."""
    schema = schema_of(data)
    name = data["name"]
    if data["path"] or name == "parquet":
        return Source(read_parquet(data["path"]), schema, str(data["path"]))
    if name == "synthetic":
        rows = data["limit"] or SYNTHETIC_ROWS
        return Source(synthetic.build_table(rows, seed=seed), schema, "synthetic population")
    module = _module(name)
    files = module.source_files(data["manual_dir"])
    where = files[0] if len(files) == 1 else files[0].parent
    return Source(module.build_table(data["manual_dir"]), schema, f"{name} from {where}")


def select(source: Source, data: Mapping[str, Any], *, seed: int = 0) -> pa.Table:
    """Checks a source and keeps the rows that the section asks for. Pure."""
    table = validate(source.table, source.schema, where=source.where)
    rule = source.schema.low_activity
    if data["low_activity"] and rule is not None:
        table = table.filter(pc.less_equal(table[rule.field], rule.at_most))
        if table.num_rows == 0:
            raise DataError(
                "no row belongs to the low-activity population",
                where=source.where,
                why=f"no row has {rule.field} <= {rule.at_most:g}",
                do="set data.low_activity=False",
            )
    if data["limit"] and data["limit"] < table.num_rows:
        order = np.argsort(unit_hash(table["user_id"].to_pylist(), seed, "limit"), kind="stable")
        table = table.take(pa.array(np.sort(order[: data["limit"]])))
    return table


def schema_of(data: Mapping[str, Any]) -> Schema:
    """The schema of a ``data`` section: the stated one, else the built-in one of the data set."""
    if not data["schema"] and data["name"] == "parquet":
        raise ConfigError(
            "a table of your own needs a schema", where="data.schema", do="--config.data.schema=users.yaml"
        )
    return load_schema(data["schema"] or data["name"])


def source_identity(data: Mapping[str, Any]) -> dict[str, str]:
    """What the stage's fingerprint holds beside the configuration: the schema and the bytes of the input files."""
    return {"schema": fingerprint(schema_of(data).to_dict()), **_source_identity(data)}


def _source_identity(data: Mapping[str, Any]) -> dict[str, str]:
    name = data["name"]
    if data["path"] or name == "parquet":
        return {"sha256": _sha256(data["path"])}
    if name == "synthetic":
        return {"version": synthetic.VERSION}
    module = _module(name)
    return {"version": module.VERSION, **{path.name: _sha256(path) for path in module.source_files(data["manual_dir"])}}


def _sha256(path: str | Path) -> str:
    if not Path(path).is_file():
        raise DataError("a table is missing", where=str(path) or "data.path", do="check data.path")
    return sha256_file(path)


def _module(name: str):
    modules = {"complete_journey": complete_journey, "oulad": oulad, "kuairand_pure": kuairand_pure}
    if name not in modules:
        raise ConfigError(
            "unknown data set",
            where="data.name",
            why=repr(name),
            do=f"one of {', '.join([*BUILDERS, 'synthetic', 'parquet'])}",
        )
    return modules[name]
