"""The encoder on disk: ``encoder.safetensors`` (weights and whitening statistics) and ``encoder.json`` (what they mean).

The JSON names the schema, the feature space and the statistics by SHA-256; an encoder is never applied to a table that
was encoded with others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scaletot_jax.encoder.model import EncoderSpec
from scaletot_jax.encoder.whiten import Whitening
from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.files import read_arrays, read_json, sha256_file, write_arrays, write_json

FORMAT = 1


class Encoder(NamedTuple):
    """A loaded encoder."""

    spec: EncoderSpec
    params: dict[str, Any]
    whitening: tuple[Whitening, ...]  # one a segment, float64
    record: dict[str, Any]  # the whole encoder.json


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order and layout."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save_encoder(
    directory: str | Path, spec: EncoderSpec, params: Mapping[str, Any], whitening: Sequence[Whitening], **identity: Any
) -> None:
    """Writes both files, the JSON last. ``identity``: JSON-able facts such as ``schema_sha256``, ``features_sha256``."""
    directory = Path(directory)
    arrays = {f"params/{name}": np.asarray(value) for name, value in flatten_dict(dict(params), sep="/").items()}
    for k, statistics in enumerate(whitening):
        arrays |= {f"whitening/{k}/{name}": value for name, value in statistics._asdict().items()}
    write_arrays(directory / "encoder.safetensors", arrays)
    record = {
        "format": FORMAT,
        "spec": spec.to_dict(),
        "weights_sha256": sha256_file(directory / "encoder.safetensors"),
        **identity,
    }
    write_json(directory / "encoder.json", record)


def load_encoder(directory: str | Path, *, features_sha256: str | None = None) -> Encoder:
    """Reads an encoder.

    Args:
      directory: holds the two files.
      features_sha256: of the feature space about to be used; a different one is refused.

    Raises:
      DataError: a file is missing, damaged, of another format, or the two do not belong together.
      StaleRunError: the encoder was trained with another feature space.
    """
    directory = Path(directory)
    record = read_json(directory / "encoder.json")
    if record.get("format") != FORMAT:
        raise DataError(
            "the encoder has another format",
            where=str(directory / "encoder.json"),
            why=f"{record.get('format')!r}, not {FORMAT}",
        )
    if features_sha256 is not None and record.get("features_sha256") != features_sha256:
        raise StaleRunError(
            "the encoder was trained with another feature space",
            where=str(directory / "encoder.json"),
            why=f"features {record.get('features_sha256')}, not {features_sha256}",
            do="run 'scaletot distill' again for this population",
        )
    weights = directory / "encoder.safetensors"
    arrays = read_arrays(weights)
    if sha256_file(weights) != record["weights_sha256"]:
        raise DataError(
            "encoder.safetensors and encoder.json do not belong together",
            where=str(directory),
            why="the SHA-256 differs",
        )
    spec = EncoderSpec.from_dict(record["spec"])
    params = unflatten_dict(
        {name.removeprefix("params/"): value for name, value in arrays.items() if name.startswith("params/")}, sep="/"
    )
    whitening = tuple(
        Whitening(*(arrays[f"whitening/{k}/{name}"] for name in Whitening._fields)) for k in range(len(spec.segments))
    )
    return Encoder(spec, params, whitening, record)
