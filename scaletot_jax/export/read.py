"""An exported program with its record, for callers that do have this package: tables in, outputs by name out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.export.interface import PROGRAMS, check_table, read_interface
from scaletot_jax.profiles.features import FeatureSpace


class Exported(NamedTuple):
    """A program that was checked against its record."""

    record: Mapping[str, Any]  # interface.json
    space: FeatureSpace
    call: Callable[[Inputs], dict[str, np.ndarray]]  # encoded rows → outputs by name

    def predict(self, table: pa.Table, *, where: str = "table") -> dict[str, np.ndarray]:
        """Outputs for the rows of a canonical table; DataError where it is not a table of the export's fields."""
        check_table(self.record, table.schema, where=where)
        return self.call(Inputs(*self.space.encode(table)))


def open_export(directory: str | Path, format: str, *, fingerprint: str | None = None) -> Exported:
    """Reads one exported format; arguments and errors as :func:`scaletot_jax.export.interface.read_interface`."""
    record = read_interface(directory, format, fingerprint=fingerprint)
    program = (Path(directory) / PROGRAMS[format]).read_bytes()
    if format == "jax":
        from scaletot_jax.export.jax_format import load_jax as load
    else:
        from scaletot_jax.export.onnx_format import load_onnx as load
    return Exported(record, FeatureSpace.from_dict(record["features"]), load(program))
