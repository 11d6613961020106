"""The LTV heads that are served, on disk: ``heads.safetensors`` (weights and scaler) and ``heads.json`` (what they mean).

They are the heads of the system "profile fields and ẑ" on the configured profile fields, those of every seed and label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scaletot_jax.errors import DataError
from scaletot_jax.evaluation.heads import Mixing, Scaler
from scaletot_jax.files import read_arrays, read_json, sha256_file, write_arrays, write_json

FORMAT = 1
FILES = ("heads.safetensors", "heads.json")


class KeptHead(NamedTuple):
    """The heads of one label.

    Attributes:
      column: the label.
      kind: "days" (hurdle-ordinal over 0..horizon) or "value" (zero-inflated log-normal).
      horizon: of days; 0 for a value.
      cap: the largest label of the rows the heads learnt from; no expected value above it is believed.
      width, mixing: of :class:`scaletot_jax.evaluation.heads.Head`.
      params: its weights with a leading axis [S] of seeds.
    """

    column: str
    kind: str
    horizon: int
    cap: float
    width: int
    mixing: Mixing
    params: Mapping[str, Any]


class KeptHeads(NamedTuple):
    """All of them, and the scaler of their inputs (dense features, then ẑ)."""

    heads: tuple[KeptHead, ...]
    scaler: Scaler
    record: Mapping[str, Any]  # the whole heads.json


def write_heads(directory: str | Path, heads: Sequence[KeptHead], scaler: Scaler, **identity: Any) -> None:
    """Writes both files, the JSON last. ``identity``: JSON-able facts such as ``profile_fields`` and ``columns``."""
    directory = Path(directory)
    arrays = {f"scaler/{name}": value for name, value in scaler._asdict().items()}
    for head in heads:
        flat = flatten_dict(dict(head.params), sep="/")
        arrays |= {f"{head.column}/{name}": np.asarray(value) for name, value in flat.items()}
    write_arrays(directory / FILES[0], arrays)
    record = {
        "format": FORMAT,
        "targets": [{**head._asdict(), "params": None, "seeds": len(head.params["bias"])} for head in heads],
        "weights_sha256": sha256_file(directory / FILES[0]),
        **identity,
    }
    write_json(directory / FILES[1], record)


def read_heads(directory: str | Path) -> KeptHeads:
    """Reads them; DataError where a file is missing, damaged, of another format, or the two do not belong together."""
    directory = Path(directory)
    record = read_json(directory / FILES[1])
    if record.get("format") != FORMAT:
        raise DataError(
            "the LTV heads have another format",
            where=str(directory / FILES[1]),
            why=f"{record.get('format')!r}, not {FORMAT}",
        )
    arrays = read_arrays(directory / FILES[0])
    if sha256_file(directory / FILES[0]) != record["weights_sha256"]:
        raise DataError(
            "heads.safetensors and heads.json do not belong together", where=str(directory), why="the SHA-256 differs"
        )
    heads = []
    for entry in record["targets"]:
        prefix = entry["column"] + "/"
        flat = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        fields = {name: entry[name] for name in KeptHead._fields if name not in ("params", "mixing")}
        mixing = tuple(tuple(float(weight) for weight in row) for row in entry["mixing"])
        heads.append(KeptHead(**fields, mixing=mixing, params=unflatten_dict(flat, sep="/")))
    return KeptHeads(tuple(heads), Scaler(arrays["scaler/mean"], arrays["scaler/std"]), record)
