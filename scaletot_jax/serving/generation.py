"""One loaded model, its programs for every fixed shape, and the gate it has to pass before it answers anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa

from scaletot_jax.encoder.model import Inputs, check_inputs
from scaletot_jax.errors import DataError
from scaletot_jax.population.compute import Compute, column_names, compile_columns
from scaletot_jax.population.exemplars import Exemplars, read_exemplars
from scaletot_jax.population.model import ServedModel, load_model
from scaletot_jax.population.probe import check_probe
from scaletot_jax.population.rows import Layout, RowEncoder
from scaletot_jax.profiles.features import Features
from scaletot_jax.profiles.fields import Field
from scaletot_jax.serving.remembered import RememberingEncoder
from scaletot_jax.serving.rows_schema import row_schema


class Generation(NamedTuple):
    """A model that has passed the gate; a new export makes a new one.

    Attributes:
      model: as loaded.
      fields: column of a request → field.
      programs: rows of the fixed shape → inputs of any number of rows to columns, ascending.
      encode: table → features; for one thread.
      chains: the explanations, if the model has any.
      error: the largest error of the probe.
    """

    model: ServedModel
    fields: Mapping[str, Field]
    programs: Mapping[int, Compute]
    encode: RememberingEncoder
    chains: Exemplars | None
    error: float

    @property
    def labels(self) -> list[str]:
        """Columns of a prediction, as ``scaletot score`` writes them."""
        return column_names(self.model.spec, "none")

    @property
    def most_rows(self) -> int:
        return max(self.programs)

    def inputs(self, table: pa.Table) -> Inputs:
        """Encoded rows; DataError where a value is not allowed, rows counted from 0."""
        try:
            features = self.encode(table)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError("a value cannot be read", why=" ".join(str(error).split())[:200]) from error
        check_inputs(self.model.spec.encoder, Inputs(*features), where="request")
        return Inputs(*features)

    def compute(self, inputs: Inputs | Features) -> dict[str, np.ndarray]:
        """Columns of n rows, by the smallest shape that holds them, or the largest in turn."""
        rows = inputs.cat.shape[0]
        shape = next((size for size in self.programs if size >= rows), self.most_rows)
        return self.programs[shape](inputs)

    def contract(self) -> dict[str, Any]:
        """What callers rely on: a reload must not change it."""
        return {
            "row": row_schema(self.fields),
            "predictions": self.labels,
            "dim": self.model.spec.encoder.dim,
            "chains": self.chains is not None,
        }


def open_generation(directory: str | Path, shapes: Sequence[int]) -> Generation:
    """Loads a model, compiles it for every shape and lets each program compute the probe.

    Args:
      directory: what ``scaletot export`` wrote.
      shapes: rows of the compiled calls.

    Raises:
      DataError: the model is damaged, has no probe, or a program says of the probe something else than the export did.
    """
    model = load_model(Path(directory).resolve())  # a link that is moved now must not give parts of two models
    params = jax.device_put(model.params)
    programs = {
        size: compile_columns(params, model.spec, embedding="float32", batch_rows=size) for size in sorted(set(shapes))
    }
    fields = {field.source: field for field in model.fields}
    encode = RowEncoder(model.space, Layout({}, {field.name: source for source, field in fields.items()}))
    error = check_probe(model, {f"{size} rows a call": compute for size, compute in programs.items()})
    return Generation(model, fields, programs, RememberingEncoder(encode), read_exemplars(model), error)


def successor(old: Generation, directory: str | Path) -> Generation:
    """The next generation from ``directory``; DataError where it does not pass, or callers would notice more than its numbers."""
    new = open_generation(directory, list(old.programs))
    before, after = old.contract(), new.contract()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise DataError(
            "the new model takes or gives other things than the one that is served",
            where=str(directory),
            why=f"changed: {', '.join(changed)}",
            do="start another server for it and move the callers",
        )
    return new
