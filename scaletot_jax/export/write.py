"""Writes the programs beside a served model: each only after it has passed the gate, ``interface.json`` last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.export import interface
from scaletot_jax.export.parity import TOLERANCE, Outputs, flax_outputs, gate, random_inputs
from scaletot_jax.files import read_json, write_bytes, write_json
from scaletot_jax.population.model import ServedModel

GATE_ROWS = 512  # of each sample


def parse_formats(text: str) -> tuple[str, ...]:
    """``"jax,onnx"`` → ``("jax", "onnx")``; ConfigError on an unknown one."""
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in formats if name not in interface.PROGRAMS]
    if unknown:
        raise ConfigError(
            "unknown export format",
            where="--format",
            why=", ".join(unknown),
            do=f"any of {', '.join(interface.PROGRAMS)}",
        )
    return formats


def samples(model: ServedModel, table: pa.Table, rows: int = GATE_ROWS) -> dict[str, Inputs]:
    """The gate's rows: made-up ones, and rows of ``table`` spread over it (repeated where it is short)."""
    if table.num_rows == 0:
        raise DataError("an export needs real rows to be compared on", why="the table is empty")
    index = np.linspace(0, table.num_rows - 1, rows).astype(np.int64)
    real = Inputs(*model.space.encode(table.take(pa.array(index))))
    return {"random": random_inputs(model.spec.encoder, model.space.multi_width, rows, 0), "real": real}


def write_exports(model: ServedModel, formats: Sequence[str], table: pa.Table) -> dict[str, Any]:
    """Exports a model beside itself; programs of an earlier export are removed first.

    Args:
      model: lies in ``model.directory``.
      formats: keys of ``interface.PROGRAMS``; none only removes what is there.
      table: canonical rows (those of the run's population), for the gate.

    Returns:
      the record written as ``interface.json``.

    Raises:
      DataError: a program does not agree with the model; nothing is written then.
      ConfigError: a package that the format needs is not installed.
    """
    for name in (interface.FILE, *interface.PROGRAMS.values()):
        (model.directory / name).unlink(missing_ok=True)
    if not formats:
        return {}
    rows = samples(model, table)
    outputs = {name: value.shape[1:] for name, value in flax_outputs(model, rows["random"])[0].items()}
    record = interface.describe(
        model.space,
        outputs,
        schema=read_json(model.directory / "schema.json")["schema"],
        model={"fingerprint": model.fingerprint, "versions": dict(model.record["versions"])},
    )
    programs, errors = {}, {}
    for name in formats:
        programs[name], call = _made(name, model, record)
        errors[name] = gate(name, model, call, rows)
    for name, program in programs.items():
        write_bytes(model.directory / interface.PROGRAMS[name], program)
    record["files"] = {
        interface.PROGRAMS[name]: hashlib.sha256(program).hexdigest() for name, program in programs.items()
    }
    record["parity"] = {"tolerance": TOLERANCE, "rows": GATE_ROWS, "errors": errors}
    write_json(model.directory / interface.FILE, record)
    return record


def _made(name: str, model: ServedModel, record: dict[str, Any]) -> tuple[bytes, Callable[[Inputs], Outputs]]:
    """A program, and the same program read back from its bytes."""
    try:
        if name == "jax":
            from scaletot_jax.export.jax_format import load_jax, to_jax

            program = to_jax(model)
            return program, load_jax(program)
        from scaletot_jax.export.onnx_format import load_onnx, to_onnx

        program = to_onnx(model, record)
        return program, load_onnx(program)
    except ImportError as error:
        raise ConfigError(
            f"the export format '{name}' needs a package",
            where="--format",
            why=str(error),
            do="pip install '.[export]'",
        ) from error
