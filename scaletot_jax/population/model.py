"""A served model: a directory with all that scoring a user needs, and nothing of the run it came from.

    encoder.json, encoder.safetensors   the profile encoder
    features.json                       vocabularies, scales, active ids
    schema.json                         the table's schema, and which of its fields the model reads
    heads.json, heads.safetensors       the LTV heads "profile fields and ẑ" of every seed, and their scaler
    reference.json                      statistics of the training rows, for the quality watch
    probe.safetensors                   made-up rows and what the model says of them, which a server must say too (probe.py)
    chains.json, chains.safetensors     where asked for: chains shared by many users, with embeddings (exemplars.py)
    model.json                          written last: format, versions, SHA-256 of every file, fingerprint

:func:`load_model` refuses a directory in which a file is missing or is not the recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from scaletot_jax import __version__
from scaletot_jax.encoder.artifact import load_encoder, sha256_json
from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.evaluation import kept_heads
from scaletot_jax.files import copy_file, fingerprint, read_json, sha256_file, write_json
from scaletot_jax.population.forward import Served, ServedLabel, ServedSpec, TargetSpec, apply, dense, serve
from scaletot_jax.population.nested import nested_columns
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.fields import Field
from scaletot_jax.profiles.schema import Schema

__all__ = ["Served", "ServedLabel", "ServedModel", "ServedSpec", "TargetSpec", "apply", "dense", "load_model", "serve"]

FORMAT = 1
ENCODER = ("encoder.json", "encoder.safetensors")
FILES = (*ENCODER, "features.json", "schema.json", *kept_heads.FILES, "reference.json")
OPTIONAL = ("probe.safetensors", "chains.json", "chains.safetensors")  # recorded where they are there


class ServedModel(NamedTuple):
    """A loaded model.

    Attributes:
      spec, params: of :func:`scaletot_jax.population.forward.apply`.
      space: the feature space; ``space.encode`` makes the inputs.
      schema: of the table.
      fields: the fields the model reads, those of the feature space.
      reference: statistics of the training rows (``{}`` where none were written).
      fingerprint: short hash of every file.
      record: the whole model.json.
      directory: where it was read from.
    """

    spec: ServedSpec
    params: dict[str, Any]
    space: FeatureSpace
    schema: Schema
    fields: tuple[Field, ...]
    reference: Mapping[str, Any]
    fingerprint: str
    record: Mapping[str, Any]
    directory: Path


def load_model(directory: str | Path) -> ServedModel:
    """Reads and checks a served model.

    Raises:
      DataError: a file is missing, was changed, has another format, or the parts do not belong together.
    """
    directory = Path(directory)
    if not (directory / "model.json").is_file():
        raise DataError(
            "this is no served model",
            where=str(directory),
            why="it has no model.json",
            do="'scaletot export --config FILE --workdir RUN --out DIR' writes one",
        )
    record = read_json(directory / "model.json")
    _check_files(directory, record)
    features = read_json(directory / "features.json")
    try:
        encoder = load_encoder(directory, features_sha256=sha256_json(features))
    except StaleRunError as error:
        raise DataError(
            "the parts of a served model do not belong together", where=str(directory), why=error.what
        ) from error
    heads = kept_heads.read_heads(directory)
    space = FeatureSpace.from_dict(features)
    if heads.heads and heads.record["columns"] != space.dense_columns():
        raise DataError(
            "the parts of a served model do not belong together",
            where=str(directory / "heads.json"),
            why="its columns are not those of features.json",
        )
    stated = read_json(directory / "schema.json")
    schema = Schema.from_dict(stated["schema"], where=str(directory / "schema.json"))
    places = {head.column: place for place, head in enumerate(heads.heads)}
    nested = tuple(places[column] for column in nested_columns(schema.labels) if column in places)
    spec = ServedSpec(
        encoder=encoder.spec,
        numbers=len(space.number_fields),
        ordered=len(space.ordered_fields),
        cat_active=tuple(space.active[name] for name in space.cat_fields),
        multi_active=tuple(space.active[name] for name in space.multi_fields),
        targets=tuple(TargetSpec(head.column, head.kind, head.horizon, head.cap, head.mixing) for head in heads.heads),
        nested=nested if len(nested) > 1 else (),
    )
    params = {
        "encoder": encoder.params,
        "scaler": {name: jnp.asarray(value, jnp.float32) for name, value in heads.scaler._asdict().items()},
        "heads": tuple(head.params for head in heads.heads),
    }
    return ServedModel(
        spec=spec,
        params=params,
        space=space,
        schema=schema,
        fields=space.fields,
        reference=read_json(directory / "reference.json"),
        fingerprint=record["fingerprint"],
        record=record,
        directory=directory,
    )


def _check_files(directory: Path, record: Mapping[str, Any]) -> None:
    stated = record.get("format") if isinstance(record, dict) else None
    if stated != FORMAT:
        raise DataError(
            "the served model has another format",
            where=str(directory / "model.json"),
            why=f"{stated!r}, not {FORMAT}",
            do="export it again with this version",
        )
    try:
        whole = set(FILES) <= set(record["files"]) and record["fingerprint"] == fingerprint(_identity(record))
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError("the record of a served model is damaged", where=str(directory / "model.json"))
    for name, entry in record["files"].items():
        path = directory / name
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            raise DataError(
                "a file of the served model is missing or was changed",
                where=str(path),
                why="its SHA-256 is not the one in model.json",
                do="copy the directory again, or export the model again",
            )


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": record["format"], "files": {name: entry["sha256"] for name, entry in record["files"].items()}}


def seal_model(
    directory: str | Path,
    *,
    reference: Mapping[str, Any] | Callable[[ServedModel], Mapping[str, Any]] | None = None,
    add: Sequence[Callable[[ServedModel], None]] = (),
    **facts: Any,
) -> ServedModel:
    """Makes a directory that holds the parts (all of FILES but reference.json) a served model.

    Args:
      directory: the parts lie there.
      reference: statistics of the training rows, or a function that makes them with the loaded model; they become
        ``reference.json``.
      add: functions of the loaded model that write further files of OPTIONAL beside it; of an earlier model none is kept.
      facts: JSON-able, e.g. which run it came from; kept in model.json, not part of the fingerprint.

    Returns:
      the model, loaded.
    """
    directory = Path(directory)
    for name in OPTIONAL:
        (directory / name).unlink(missing_ok=True)
    statistics: Mapping[str, Any] = {}
    if callable(reference):
        write_json(directory / "reference.json", statistics)
        _record(directory, facts)
        statistics = reference(load_model(directory))
        (directory / "model.json").unlink()  # until the parts are whole again this is no model
    elif reference is not None:
        statistics = reference
    write_json(directory / "reference.json", statistics)
    _record(directory, facts)
    model = load_model(directory)
    if not add:
        return model
    (directory / "model.json").unlink()
    for write in add:
        write(model)
    _record(directory, facts)
    return load_model(directory)


def _record(directory: Path, facts: Mapping[str, Any]) -> None:
    import jax

    names = [*FILES, *(name for name in OPTIONAL if (directory / name).exists())]
    files = {
        name: {"sha256": sha256_file(directory / name), "bytes": (directory / name).stat().st_size} for name in names
    }
    record = {"format": FORMAT, "files": files, **facts}
    record["versions"] = {"scaletot_jax": __version__, "jax": jax.__version__, "numpy": np.__version__}
    write_json(directory / "model.json", {**record, "fingerprint": fingerprint(_identity(record))})


def copy_parts(sources: Mapping[str, Path], directory: str | Path) -> None:
    """Copies ``sources`` (name in the model → file) into a new or unfinished model directory, model.json gone first."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.json").unlink(missing_ok=True)
    for name, source in sources.items():
        copy_file(source, directory / name)
