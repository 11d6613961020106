"""``scaletot score --model DIR --table FILE|FOLDER --out DIR``: a served model, a table, shards of results.

The process makes its share of the shards and, when all are recorded, the manifest. Running again checks the shards and
makes what is missing; with nothing missing nothing is written.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import pyarrow as pa

from scaletot_jax import __version__
from scaletot_jax.encoder.artifact import sha256_json
from scaletot_jax.encoder.model import Inputs, check_inputs
from scaletot_jax.errors import ConfigError
from scaletot_jax.files import fingerprint, sha256_file
from scaletot_jax.population.commit import Ledger, plan_shards
from scaletot_jax.population.compute import EMBEDDINGS, column_names, compile_columns
from scaletot_jax.population.model import ServedModel, load_model
from scaletot_jax.population.rows import Layout, RowEncoder
from scaletot_jax.population.scoring import BLOCK, FORMS, Job, make_missing
from scaletot_jax.population.source import Source
from scaletot_jax.population.worker import ALONE, Worker

_PACKAGE = Path(__file__).parent.parent
_CODE = (  # what the bytes of a shard depend on
    "encoder/model.py",
    "losses/ltv.py",
    "population/compute.py",
    "population/forward.py",
    "population/quantiles.py",
    "population/rows.py",
    "population/scoring.py",
    "profiles/columns.py",
    "profiles/features.py",
)


@dataclass(frozen=True)
class Options:
    """How a table is scored.

    Attributes:
      shard_rows: rows a shard: what a kill can cost, and the unit of workers. Whole blocks of 65,536 are read best.
      batch_rows: rows of the compiled call; 0: 2,048 on a CPU, whose caches they fit, and 65,536 elsewhere.
      embedding: "float16", "int8" with a scale a row, or "none".
      form: "rows", or "distinct": equal profiles of a shard are computed once. The bytes are the same, so a job may be
        continued in the other form.
    """

    shard_rows: int = 1 << 20
    batch_rows: int = 0
    embedding: str = "float16"
    form: str = "rows"

    def __post_init__(self) -> None:
        for name, known in (("embedding", EMBEDDINGS), ("form", FORMS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    "unknown choice", where=f"--{name}", why=repr(getattr(self, name)), do=f"one of {known}"
                )
        for name, least in (("shard_rows", 1), ("batch_rows", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    "not a positive number", where=f"--{name.replace('_', '-')}", why=str(getattr(self, name))
                )


DEFAULT = Options()


def layout_of(model: ServedModel) -> Layout:
    """Where a table of the model's schema has its keys and fields."""
    keys = {"user_id": model.schema.id}
    if model.schema.snapshot:
        keys["snapshot"] = model.schema.snapshot
    return Layout(keys, {field.name: field.source for field in model.fields})


def open_table(model: ServedModel, table: str | Path) -> Source:
    """The table with the columns the model reads; DataError where it has others."""
    layout = layout_of(model)
    return Source(table, layout.columns, coded=list(layout.fields.values()))


def open_job(model: ServedModel, table: str | Path, out: str | Path, options: Options) -> Job:
    """Opens the folder ``out`` for this model, table and options.

    Raises:
      StaleRunError: it holds shards of another model, table, option or version of the code.
    """
    source = open_table(model, table)
    files = {entry.pop("file"): entry for entry in source.identity()}
    batch_rows = options.batch_rows or (2048 if jax.default_backend() == "cpu" else BLOCK)
    options = replace(options, batch_rows=batch_rows)
    choices = {name: value for name, value in asdict(options).items() if name != "form"}
    code = code_identity()
    schema = sha256_json(model.schema.to_dict())
    columns = column_names(model.spec, options.embedding)
    ledger = Ledger(
        out,
        {"model": model.fingerprint, "schema": schema, "code": code, "options": choices, "table": files},
        plan_shards(source.rows, options.shard_rows),
        facts={"columns": columns, "dim": model.spec.encoder.dim, "embedding": options.embedding},
        stated={
            "model": model.fingerprint,
            "schema": schema,
            "code": fingerprint(code),
            "table": fingerprint(files),
        },
    )
    return Job(
        source=source,
        encode=RowEncoder(model.space, layout_of(model)),
        check=lambda inputs, where: check_inputs(model.spec.encoder, Inputs(*inputs), where=where),
        compute=compile_columns(
            model.params, model.spec, embedding=options.embedding, batch_rows=options.batch_rows
        ),
        columns=columns,
        ledger=ledger,
        form=options.form,
    )  # fmt: skip


def code_identity() -> dict[str, Any]:
    """What the bytes depend on beside model, table and options: our code, the libraries, the kind of device."""
    sources = fingerprint({name: sha256_file(_PACKAGE / name) for name in _CODE})
    return {
        "scaletot_jax": __version__,
        "sources": sources,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "platform": jax.default_backend(),
    }


def score_table(
    model: str | Path,
    table: str | Path,
    out: str | Path,
    options: Options = DEFAULT,
    worker: Worker = ALONE,
) -> bool:
    """Scores this worker's share of the shards.

    Returns:
      whether the manifest is there, that is, all workers have finished.

    Raises:
      DataError: the model or the table is damaged, or a value is not allowed.
      StaleRunError: ``out`` belongs to another model, table or option.
      ResourceError: the disk is full.
    """
    job = open_job(load_model(model), table, out, options)
    shards = worker.share(job.ledger.shards)
    make_missing(job, shards, job.ledger.recorded(shards))
    return job.ledger.seal()
