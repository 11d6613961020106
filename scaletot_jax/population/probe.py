"""The probe of a served model: made-up encoded rows and what the Flax forward pass said of them when the model was exported.

Whoever serves the model computes them again before the first user: a library, a processor or a file that changes the
numbers is found then. The rows are drawn, no user is in them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import DataError
from scaletot_jax.export.parity import TOLERANCE, flax_outputs, quantile_measures, random_inputs, worst_error
from scaletot_jax.export.write import GATE_ROWS
from scaletot_jax.files import read_arrays, write_arrays
from scaletot_jax.population.model import ServedModel

FILE = "probe.safetensors"


def write_probe(model: ServedModel) -> None:
    """Writes ``probe.safetensors`` beside the model: inputs, outputs by name, and the heads' logits of each label."""
    inputs = random_inputs(model.spec.encoder, model.space.multi_width, GATE_ROWS, 0)
    outputs, logits = flax_outputs(model, inputs)
    arrays = {f"inputs/{name}": np.asarray(value) for name, value in inputs._asdict().items()}
    arrays |= {f"outputs/{name}": value for name, value in outputs.items()}
    write_arrays(model.directory / FILE, arrays | {f"logits/{i}": value for i, value in enumerate(logits)})


def check_probe(model: ServedModel, computes: dict[str, Callable[[Inputs], dict[str, np.ndarray]]]) -> float:
    """Computes the probe with each program and compares.

    Args:
      model: its file was checked by :func:`scaletot_jax.population.model.load_model`.
      computes: name for the message → inputs of any number of rows → outputs by name, float32.

    Returns:
      the largest error, at most TOLERANCE: |got − recorded| / max(1, |recorded|), of a quantile that or its error in
      probability, the smaller.

    Raises:
      DataError: the model has no probe, or an output is not finite or another one.
    """
    path = model.directory / FILE
    if FILE not in model.record["files"]:
        raise DataError(
            "the model has no recorded probe to be checked against",
            where=str(path),
            why="it was exported by an earlier version",
            do="run 'scaletot export' again",
        )
    arrays = read_arrays(path)
    inputs = Inputs(*(arrays[f"inputs/{name}"] for name in Inputs._fields))
    recorded = {name[8:]: value for name, value in arrays.items() if name.startswith("outputs/")}
    measures = quantile_measures(model.spec, [arrays[f"logits/{i}"] for i in range(len(model.spec.targets))])
    worst = 0.0
    for program, compute in computes.items():
        found = compute(inputs)
        errors = worst_error(recorded, {name: found[name] for name in recorded if name in found}, measures)
        output, error = max(errors.items(), key=lambda item: item[1])
        if not error <= TOLERANCE:
            raise DataError(
                "the model does not say what it said when it was exported",
                where=f"{path}, output '{output}', {program}",
                why=f"error {error:.3g}, more than {TOLERANCE:g} of max(1, |value|)",
                do="export it again here, or serve it with the versions that model.json names",
            )
        worst = max(worst, error)
    return worst
