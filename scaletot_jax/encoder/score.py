"""Stage ``score``: the embedding of every row of the population, in shards that are committed once.

A shard is written aside, synced, renamed, and only then recorded in ``manifest.json`` with its rows, id range and
SHA-256. Readers trust recorded shards alone, so a kill at any moment neither loses nor doubles a row; running again
computes what is not recorded, and gives the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scaletot_jax.encoder.artifact import load_encoder, sha256_json
from scaletot_jax.encoder.model import EncoderSpec, Inputs, apply, check_inputs
from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.files import read_json, sha256_file, write_json, write_table
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage

FORMAT = 1
MANIFEST = "manifest.json"


class Shard(NamedTuple):
    """Rows [begin, end) of the population and the file their embeddings go to."""

    file: str
    begin: int
    end: int


def plan_shards(rows: int, shard_rows: int) -> list[Shard]:
    """Cuts ``rows`` rows into shards of ``shard_rows`` (the last one may be shorter)."""
    starts = range(0, rows, shard_rows)
    return [Shard(f"part-{i:05d}.parquet", begin, min(begin + shard_rows, rows)) for i, begin in enumerate(starts)]


def embed_rows(encode: Callable[[Inputs], Any], inputs: Inputs, batch_size: int) -> np.ndarray:
    """Embeddings [U, E] float32 by batches of one fixed shape; the last batch is filled up with copies of its last row."""
    rows = inputs.cat.shape[0]
    out = []
    for begin in range(0, rows, batch_size):
        index = np.minimum(np.arange(begin, begin + batch_size), rows - 1)
        batch = Inputs(*(column[index] for column in inputs))
        out.append(np.asarray(encode(batch))[: min(batch_size, rows - begin)])
    return np.concatenate(out)


def compile_embedding(spec: EncoderSpec, params: Any) -> Callable[[Inputs], jax.Array]:
    """The jitted forward pass inputs → embedding [B, E], with the weights on the device."""
    params = jax.device_put(params)
    return partial(_embedding, params, spec=spec)


@partial(jax.jit, static_argnames="spec")
def _embedding(params: Any, inputs: Inputs, *, spec: EncoderSpec) -> jax.Array:
    return apply(params, spec, inputs).embedding


def read_rows(file: pq.ParquetFile, begin: int, end: int, columns: list[str]) -> pa.Table:
    """Rows [begin, end) of a Parquet file, reading only the row groups that hold them."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    bounds = np.r_[0, np.cumsum(sizes)]
    groups = [i for i in range(len(sizes)) if bounds[i] < end and bounds[i + 1] > begin]
    return file.read_row_groups(groups, columns=columns).slice(begin - bounds[groups[0]], end - begin)


def score(run: Run) -> Stage:
    """Scores the population: ``part-*.parquet`` with row, user_id, snapshot (if any) and embedding float16 [E].

    Needs ``prepare`` and ``distill``. The shards are listed with their SHA-256 in ``manifest.json``, which is the one
    artifact of the stage; a shard that has gone or was changed is computed again.
    """
    stage = run.stage("score", sections=("score",), needs=("prepare", "distill"))
    source = run.finished("prepare").path("population.parquet")
    population = pq.ParquetFile(source)
    rows = population.metadata.num_rows
    if not rows:
        raise DataError("the population has no rows", where=str(source))
    shards = plan_shards(rows, run.config["score"]["shard_rows"])
    recorded = _verified(stage, shards)
    todo = [shard for shard in shards if shard.file not in recorded]
    if stage.done and not todo:
        return stage

    features = read_json(run.finished("prepare").path("features.json"))
    encoder = load_encoder(run.finished("distill").directory, features_sha256=sha256_json(features))
    space = FeatureSpace.from_dict(features)
    keys = [name for name in ("row", "user_id", "snapshot") if name in population.schema_arrow.names]
    columns = keys + [field.name for field in space.fields]
    encode = compile_embedding(encoder.spec, encoder.params)
    batch_size = min(
        run.config["score"]["batch_size"], run.config["score"]["shard_rows"], rows
    )  # never depends on what is left

    with Progress("score", rows, "rows", done=sum(entry["rows"] for entry in recorded.values())) as progress:
        for shard in todo:
            table = read_rows(population, shard.begin, shard.end, columns)
            inputs = Inputs(*space.encode(table))
            check_inputs(encoder.spec, inputs, where=f"{source}, rows {shard.begin}..{shard.end - 1}")
            embedding = embed_rows(encode, inputs, batch_size)
            _write_shard(stage, shard, table.select(keys), embedding)
            recorded[shard.file] = _entry(stage, shard)
            _write_manifest(stage, shards, recorded, rows, encoder.spec.dim)
            progress.advance(shard.end - shard.begin)
    _write_manifest(stage, shards, recorded, rows, encoder.spec.dim)
    stage.finish([MANIFEST], summary={"rows": rows, "shards": len(shards), "dim": encoder.spec.dim, "dtype": "float16"})
    return stage


def read_embeddings(directory: str | Path) -> np.ndarray:
    """All embeddings [U, E] float32, in row order, from the shards that the manifest records.

    Raises:
      DataError: the manifest is incomplete or a shard does not match it.
    """
    directory = Path(directory)
    manifest = read_json(directory / MANIFEST)
    if sum(entry["rows"] for entry in manifest["shards"]) != manifest["rows"]:
        raise DataError(
            "the population is not scored completely", where=str(directory), do="run 'scaletot score' again"
        )
    parts = []
    for entry in manifest["shards"]:
        path = directory / entry["file"]
        if not path.exists() or sha256_file(path) != entry["sha256"]:
            raise DataError(
                "a shard is missing or was changed",
                where=str(path),
                do="run 'scaletot score' again: it makes this shard anew",
            )
        column = pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
        parts.append(column.flatten().to_numpy().reshape(entry["rows"], manifest["dim"]).astype(np.float32))
    return np.concatenate(parts)


def _write_shard(stage: Stage, shard: Shard, keys: pa.Table, embedding: np.ndarray) -> None:
    fits = np.abs(embedding) <= np.finfo(np.float16).max  # False for NaN
    if not fits.all():
        bad = int(np.argwhere(~fits)[0][0])
        raise DataError(
            "an embedding is not finite in float16",
            where=f"row {shard.begin + bad}",
            do="train the encoder again with a lower distill.learning_rate",
        )
    half = embedding.astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1])
    table = keys.append_column("embedding", column)
    write_table(stage.path(shard.file), table.replace_schema_metadata({"fingerprint": stage.fingerprint}))


def _entry(stage: Stage, shard: Shard) -> dict[str, Any]:
    path = stage.path(shard.file)
    return {
        "file": shard.file,
        "rows": shard.end - shard.begin,
        "first_row": shard.begin,
        "last_row": shard.end - 1,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


def _write_manifest(stage: Stage, shards: list[Shard], recorded: dict[str, Any], rows: int, dim: int) -> None:
    entries = [recorded[shard.file] for shard in shards if shard.file in recorded]
    write_json(
        stage.path(MANIFEST),
        {"format": FORMAT, "fingerprint": stage.fingerprint, "rows": rows, "dim": dim, "shards": entries},
    )


def _verified(stage: Stage, shards: list[Shard]) -> dict[str, Any]:
    """The recorded shards whose files are what the record says. A torn manifest records nothing."""
    path = stage.path(MANIFEST)
    if not path.exists():
        return {}
    try:
        manifest = read_json(path)
        entries = {entry["file"]: entry for entry in manifest["shards"]}
        owner = manifest["fingerprint"]
    except (DataError, KeyError, TypeError):
        print(f"score: {path} is damaged; all shards are made again", file=sys.stderr)
        return {}
    if owner != stage.fingerprint:
        raise StaleRunError(
            "the shards belong to another encoder or population",
            where=str(path),
            why=f"fingerprint {owner}, not {stage.fingerprint}",
            do=f"delete {stage.directory} or use another --workdir",
        )
    kept = {}
    for shard in shards:
        entry, file = entries.get(shard.file), stage.path(shard.file)
        if entry and file.exists() and file.stat().st_size == entry["bytes"] and entry == _entry(stage, shard):
            kept[shard.file] = entry
    return kept
