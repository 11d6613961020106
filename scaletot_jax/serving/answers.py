"""Columns of a request's rows as JSON or as an Arrow IPC stream, under the names of ``scaletot score``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from fastapi import Response
from pydantic_core import to_json

from scaletot_jax.population.exemplars import show
from scaletot_jax.population.scoring import arrange
from scaletot_jax.serving.generation import Generation

ARROW = "application/vnd.apache.arrow.stream"
Nearest = tuple[np.ndarray, np.ndarray]  # number of the chain [B], similarity [B]


def json_response(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def json_answer(generation: Generation, columns: dict[str, np.ndarray], nearest: Nearest | None) -> Response:
    """``{"model": fingerprint, "predictions": [{column: number, …}, …]}``, with ``explanation`` where asked for."""
    # float16 and float32 are exact in float64, so JSON holds the very numbers.
    values = [value.astype(np.float64).tolist() for value in columns.values()]
    rows: list[dict[str, Any]] = [dict(zip(columns, row)) for row in zip(*values)]
    if nearest is not None and generation.chains is not None:
        record = generation.chains.record
        for row, index, similarity in zip(rows, nearest[0].tolist(), nearest[1].tolist()):
            row["explanation"] = {"number": index, "similarity": similarity, **show(record, index)}
    return json_response({"model": generation.model.fingerprint, "predictions": rows})


def arrow_answer(generation: Generation, columns: dict[str, np.ndarray], nearest: Nearest | None) -> Response:
    """One column each; an explanation is the number of a chain of ``/v1/chains`` and the similarity."""
    if nearest is not None:
        columns = columns | {"chain": nearest[0].astype(np.int32), "similarity": nearest[1].astype(np.float32)}
    rows = len(next(iter(columns.values())))
    table = arrange(pa.table({"row": pa.array(np.arange(rows, dtype=np.int64))}), columns)
    table = table.replace_schema_metadata({"fingerprint": generation.model.fingerprint})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Response(sink.getvalue().to_pybytes(), media_type=ARROW)
