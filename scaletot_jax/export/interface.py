"""``interface.json``: all that a program without this package needs to encode a profile and to read the answer.

    ids       what the special ids mean: padding, missing, unknown, redacted
    columns   one entry for each column of cat, num and multi, in order, with its field, its values' ids and its statistics
    inputs    dtype and shape of the four arrays (the batch is dynamic)
    outputs   name → shape
    files     the programs, with their SHA-256
    model     version and SHA-256 of the served model; a program of another model is refused
    schema    the profile schema; features: the fitted feature space (the source of ``columns``)

Values are canonical: text NFC-normalised and trimmed, an empty one null; dates count days since 1970-01-01; the words of a
multi field are distinct and, unless ``ranked``, sorted; numbers are rounded to ``digits``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax import __version__
from scaletot_jax.encoder.artifact import sha256_json
from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.files import read_json, sha256_file
from scaletot_jax.population.forward import LEVELS
from scaletot_jax.profiles.features import (
    _CLIP,
    FIRST_VALUE,
    MISSING,
    PADDING,
    REDACTED_ID,
    UNKNOWN,
    FeatureSpace,
)
from scaletot_jax.profiles.fields import REDACTED

FORMAT = 1
FILE = "interface.json"
PROGRAMS = {"jax": "model.jax_export", "onnx": "model.onnx"}


def input_arrays(space: FeatureSpace) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape, without the batch, of the arrays that a program reads; in the order of ``Inputs``."""
    fields, numbers = len(space.multi_fields), len(space.num_columns)
    return {
        "cat": (np.dtype(np.int32), (len(space.cat_fields),)),
        "num": (np.dtype(np.float32), (numbers,)),
        "missing": (np.dtype(np.bool_), (numbers,)),
        "multi": (np.dtype(np.int32), (fields, space.multi_width)),
    }


def columns(space: FeatureSpace) -> dict[str, list[dict[str, Any]]]:
    """How each column of cat, num and multi follows from a profile's field.

    cat and multi: ``ids[value]``; missing where there is none, unknown where it is not listed; booleans are true and false.
    num, part "log": clip((sign(x) log1p|x| − mean) / std, ±clip); part "rank": linear interpolation of ranks at knots; part
    "order": ``places[value]``. 0 and missing where there is no value, or no place.
    """
    by_name = {field.name: field for field in space.fields}

    def ids(name: str) -> dict[str, int]:
        return {REDACTED: REDACTED_ID} | {value: FIRST_VALUE + i for i, value in enumerate(space.vocabulary[name])}

    num: list[dict[str, Any]] = []
    for name in space.number_fields:
        scale, field = space.scales[name], by_name[name]
        common = {"field": name, "kind": field.kind} | ({} if field.digits is None else {"digits": field.digits})
        num.append(common | {"part": "log", "mean": scale.mean, "std": scale.std, "clip": _CLIP})
        knots, ranks = scale.knots or (0.0,), [2 * rank - 1 for rank in scale.ranks] or [0.0]
        num.append(common | {"part": "rank", "knots": list(knots), "ranks": ranks})
    for name in space.ordered_fields:
        values = by_name[name].values
        places = {value: i / (len(values) - 1) * 2 - 1 for i, value in enumerate(values)}
        num.append({"field": name, "kind": "ordered", "part": "order", "places": places})
    return {
        "cat": [{"field": name, "ids": ids(name)} for name in space.cat_fields],
        "num": num,
        "multi": [
            {"field": name, "ids": ids(name), "keep": by_name[name].max_values, "ranked": by_name[name].ranked}
            for name in space.multi_fields
        ],
    }


def describe(
    space: FeatureSpace,
    outputs: Mapping[str, tuple[int, ...]],
    *,
    schema: Mapping[str, Any],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """The record without what is known only once the programs exist (``files``, ``parity``).

    Args:
      space: the feature space of the model.
      outputs: name → shape without the batch.
      schema, model: JSON-able; ``model["fingerprint"]`` names the model.
    """
    return {
        "format": FORMAT,
        "version": __version__,
        "model": dict(model),
        "ids": {
            "padding": PADDING,
            "missing": MISSING,
            "unknown": UNKNOWN,
            "redacted": REDACTED_ID,
        },
        "inputs": {
            name: {"dtype": kind.name, "shape": ["batch", *shape]}
            for name, (kind, shape) in input_arrays(space).items()
        },
        "quantile_levels": list(LEVELS),
        "outputs": {name: ["batch", *shape] for name, shape in outputs.items()},
        "columns": columns(space),
        "schema": dict(schema),
        "features": space.to_dict(),
        "features_sha256": sha256_json(space.to_dict()),
    }


def read_interface(directory: str | Path, format: str, *, fingerprint: str | None = None) -> dict[str, Any]:
    """Reads and checks the record and the program of one format.

    Args:
      directory: of the export. format: a key of PROGRAMS.
      fingerprint: of the model that the program must have been made from; None asks for none.

    Raises:
      DataError: a file is missing, damaged or of another format.
      StaleRunError: the program was exported from another model.
    """
    directory = Path(directory)
    where = str(directory / FILE)
    record = read_json(directory / FILE)
    if record.get("format") != FORMAT:
        raise DataError("the export has another format", where=where, why=f"{record.get('format')!r}, not {FORMAT}")
    if sha256_json(record["features"]) != record["features_sha256"]:
        raise DataError("the export's vocabulary and statistics were changed", where=where, why="the SHA-256 differs")
    known = record["model"]["fingerprint"]
    if fingerprint is not None and known != fingerprint:
        raise StaleRunError(
            "the export was made from another model",
            where=where,
            why=f"fingerprint {known}, not {fingerprint}",
            do="run 'scaletot export' again",
        )
    name = PROGRAMS[format]
    if name not in record["files"]:
        raise DataError(
            f"the model was not exported as {format}", where=where, do=f"run 'scaletot export --format {format}'"
        )
    if not (directory / name).is_file() or sha256_file(directory / name) != record["files"][name]:
        raise DataError("an exported program is missing or was changed", where=str(directory / name))
    return record


def check_table(record: Mapping[str, Any], table: pa.Schema, *, where: str = "table") -> None:
    """Refuses a table that is not the one of the export: every field must be there, with its kind of values.

    Raises:
      DataError: names the fields that are missing or of another type.
    """
    wrong = []
    for field in record["features"]["fields"]:
        name = field["name"]
        if name not in table.names:
            wrong.append(f"'{name}' is missing")
        elif not _fits(field["kind"], table.field(name).type):
            wrong.append(f"'{name}' is {table.field(name).type}, not {field['kind']}")
    if wrong:
        raise DataError(
            "a table is not the one the export was made for",
            where=where,
            why="; ".join(wrong),
            do=f"give a table of the schema '{record['schema'].get('name', '')}', with null where a value is unknown",
        )


def _fits(kind: str, found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return True
    text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    if kind == "number":
        return pa.types.is_integer(found) or pa.types.is_floating(found)
    if kind == "date":
        return pa.types.is_date(found)
    if kind == "boolean":
        return pa.types.is_boolean(found)
    if kind == "multi":
        return pa.types.is_list(found) or pa.types.is_large_list(found)
    return text
