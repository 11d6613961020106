"""The record of a run, as far as another run can be held against it: what was run, on what, from what, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from scaletot_jax.config import default_config
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.files import read_json
from scaletot_jax.run import STAGES, flatten, read_record

NEEDED = ("config.json", "env.json", "metrics.json")
_INPUTS = {"prepare": "data", "teach": "model"}  # the stages that record what they read from outside the run


class Manifest(NamedTuple):
    """Attributes:
    config: the whole configuration, nested.
    environment: versions and kind of machine (:mod:`scaletot_jax.report.environment`).
    metrics: everything that was measured.
    inputs: hashes of what came from outside: table or data set, schema, chain specification, weights.
    files: ``stage/name`` → SHA-256 of every artifact that a stage promises to reproduce.
    """

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]


def read_manifest(workdir: str | Path) -> Manifest:
    """Reads ``config.json``, ``env.json``, ``metrics.json`` and the ``stage.json`` of each stage; no artifact is opened but the
    list of scored shards, so that a record can travel without the tables.

    Raises:
      DataError: one of the first three is missing, or a file is damaged.
    """
    workdir = Path(workdir)
    absent = [name for name in NEEDED if not (workdir / name).is_file()]
    if absent:
        raise DataError(
            "this is no record of a run",
            where=str(workdir),
            why=f"there is no {', '.join(absent)}",
            do="name a run directory in which 'scaletot run' or 'scaletot report' has ended",
        )
    inputs: dict[str, str] = {}
    files: dict[str, str] = {}
    for stage in (*STAGES, "coverage"):
        path = workdir / stage / "stage.json"
        if not path.is_file():
            continue
        record = read_record(path)
        for name, entry in record["artifacts"].items():
            files[f"{stage}/{name}"] = entry["sha256"]
        if stage in _INPUTS:
            found = record["identity"].get("extra") or {}
            inputs.update({f"{_INPUTS[stage]}.{key}": str(value) for key, value in flatten(found).items()})
    config, environment, metrics = (read_json(workdir / name) for name in NEEDED)
    return Manifest(config, environment, metrics, inputs, _with_shards(workdir, files))


def _with_shards(workdir: Path, files: dict[str, str]) -> dict[str, str]:
    """The list of shards also names the configuration; the shards themselves are what has to come out again."""
    path = workdir / "score" / "manifest.json"
    if files.pop("score/manifest.json", None) and path.is_file():
        files.update({f"score/{entry['file']}": entry["sha256"] for entry in read_json(path)["shards"]})
    return files


def inputs_of(config: Mapping[str, Any], recorded: Mapping[str, str]) -> dict[str, str | None]:
    """The hashes of :attr:`Manifest.inputs` if the configuration were run here and now; None where there is none any more.

    A run that ended early has not recorded, and perhaps never had, all of its inputs: only those in ``recorded`` are looked at.

    Raises:
      DataError: an input is missing.
    """
    from scaletot_jax.datasets.load import source_identity
    from scaletot_jax.teacher.identity import identity_of_model

    found: dict[str, str] = {}
    if any(key.startswith("data.") for key in recorded):
        found |= {f"data.{key}": value for key, value in source_identity(config["data"]).items()}
    if any(key.startswith("model.") for key in recorded):
        found |= {f"model.{key}": value for key, value in identity_of_model(config).items()}
    return {key: found.get(key) for key in recorded}


def config_of(recorded: Mapping[str, Any], where: str | Path) -> ConfigDict:
    """The configuration of a record, checked against the keys and types of this version; a key it lacks has its default.

    Raises:
      ConfigError: a key that this version does not know, or a value of another type.
    """
    config, values = default_config(), flatten(recorded)
    unknown = sorted(values.keys() - flatten(config.to_dict()).keys())
    for key, value in values.items():
        if key in unknown:
            continue
        node = config
        *parents, leaf = key.split(".")
        for part in parents:
            node = node[part]
        try:
            node[leaf] = tuple(value) if isinstance(node[leaf], tuple) else value
        except TypeError as error:
            raise ConfigError("a recorded value has another type", where=f"{where}: {key}", why=str(error)) from error
    if unknown:
        raise ConfigError(
            "the record has keys that this version does not know",
            where=str(where),
            why=", ".join(unknown),
            do="reproduce the run with the version that its env.json names",
        )
    return config
