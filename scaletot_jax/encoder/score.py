"""Stage ``score``: the embedding of every row of the run's own population, in shards that are committed once.

Its shards and their records are those of :mod:`scaletot_jax.population`, which scores tables of any size with a served
model; here the encoder alone is applied, since the LTV heads come after this stage.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from scaletot_jax.encoder.artifact import load_encoder, sha256_json
from scaletot_jax.encoder.model import Inputs, check_inputs
from scaletot_jax.errors import DataError
from scaletot_jax.files import read_json
from scaletot_jax.population.commit import MANIFEST, Ledger, plan_shards, read_manifest
from scaletot_jax.population.compute import column_names, compile_columns
from scaletot_jax.population.forward import ServedSpec
from scaletot_jax.population.rows import Layout, RowEncoder
from scaletot_jax.population.scoring import Job, make_missing
from scaletot_jax.population.source import Source
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.run import Run, Stage


def score(run: Run) -> Stage:
    """Scores the population: ``part-*.parquet`` with row, user_id, snapshot (if any) and embedding float16 [E].

    Needs ``prepare`` and ``distill``. The shards are listed with their SHA-256 in ``manifest.json``, which is the one
    artifact of the stage; a shard that has gone or was changed is computed again.
    """
    stage = run.stage("score", sections=("score",), needs=("prepare", "distill"))
    prepared, distilled = run.finished("prepare"), run.finished("distill")
    path = prepared.path("population.parquet")
    names = pq.ParquetFile(path).schema_arrow.names
    features = read_json(prepared.path("features.json"))
    space = FeatureSpace.from_dict(features)
    keys = {name: name for name in ("user_id", "snapshot") if name in names}
    layout = Layout(keys, {field.name: field.name for field in space.fields})
    source = Source(path, layout.columns, coded=list(layout.fields))
    encoder = load_encoder(distilled.directory, features_sha256=sha256_json(features))
    settings = run.config["score"]
    ledger = Ledger(
        stage.directory,
        stage.identity,
        plan_shards(source.rows, settings["shard_rows"]),
        facts={"dim": encoder.spec.dim},
        stated={"encoder": encoder.record["weights_sha256"]},
        owner=stage.fingerprint,
    )
    recorded = ledger.recorded(ledger.shards)
    if stage.done and len(recorded) == len(ledger.shards):
        return stage
    # The fixed shape never depends on what is left.
    batch_rows = min(settings["batch_size"], settings["shard_rows"], source.rows)
    spec = ServedSpec(encoder.spec, len(space.number_fields), len(space.ordered_fields), (), (), ())
    job = Job(
        source=source,
        encode=RowEncoder(space, layout),
        check=lambda inputs, where: check_inputs(encoder.spec, Inputs(*inputs), where=where),
        compute=compile_columns({"encoder": encoder.params}, spec, embedding="float16", batch_rows=batch_rows),
        columns=column_names(spec, "float16"),
        ledger=ledger,
    )
    make_missing(job, ledger.shards, recorded)
    ledger.seal()
    summary = {"rows": source.rows, "shards": len(ledger.shards), "dim": encoder.spec.dim, "dtype": "float16"}
    stage.finish([MANIFEST], summary=summary)
    return stage


def read_embeddings(directory: str | Path) -> np.ndarray:
    """All embeddings [U, E] float32, in row order, from the shards that the manifest records.

    Raises:
      DataError: the manifest is absent or a shard does not match it.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    parts = []
    for entry in manifest["shards"]:
        column = pq.read_table(directory / entry["file"], columns=["embedding"])["embedding"].combine_chunks()
        parts.append(column.flatten().to_numpy().reshape(entry["rows"], manifest["dim"]).astype(np.float32))
    if not parts:
        raise DataError("the population has no rows", where=str(directory))
    return np.concatenate(parts)
