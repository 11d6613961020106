"""The gate of an export: the exported program says what the Flax forward pass says, or nothing is written.

    error = max |exported − flax| / max(1, |flax|)  ≤  1e-5        float32, every output, random rows and real rows

A quantile passes by that or by its error in probability (see levels.py), the smaller of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.model import EncoderSpec, Inputs
from scaletot_jax.errors import DataError
from scaletot_jax.export.levels import all_logits, level_error
from scaletot_jax.population.compute import column_names
from scaletot_jax.population.forward import LEVELS, Served, ServedSpec, apply, nested_survivals
from scaletot_jax.population.model import ServedModel
from scaletot_jax.profiles.features import FIRST_VALUE, MISSING, UNKNOWN

TOLERANCE = 1e-5
Outputs = Mapping[str, np.ndarray]


def named(spec: ServedSpec, served: Served) -> dict[str, Any]:
    """Outputs by name: ``embedding`` and, of each label, the columns that ``score`` writes (expected_L, p_positive_L, q10_L …)."""
    values = [served.embedding]
    for label in served.labels:
        values += [label.mean, label.positive, *(label.quantiles[:, i] for i in range(len(LEVELS)))]
    return dict(zip(output_names(spec), values))


def output_names(spec: ServedSpec) -> list[str]:
    return ["embedding", *column_names(spec, "none")]


def quantile_measures(spec: ServedSpec, logits: Sequence[np.ndarray]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Output name of each quantile → its error in probability, see :func:`scaletot_jax.export.levels.level_error`.

    ``logits``: [B, S, O] of each label.
    """
    found = nested_survivals(spec, [jnp.asarray(one) for one in logits])
    agreed = {place: np.asarray(survival) for place, survival in found.items()}
    measures = [
        partial(level_error, target, one, level, survival=agreed.get(place))
        for place, (target, one) in enumerate(zip(spec.targets, logits))
        for level in LEVELS
    ]
    names = [name for name in output_names(spec) if not name.startswith(("embedding", "expected_", "p_positive_"))]
    return dict(zip(names, measures))


def random_inputs(spec: EncoderSpec, width: int, rows: int, seed: int) -> Inputs:
    """Made-up encoded rows that meet every id, every bin and both sides of the outer edges.

    Args:
      spec: of the encoder. width: M, ids a multi field holds.
      rows: B, at least 1. seed: of the draw; equal arguments give equal rows.
    """
    rng = np.random.default_rng(seed)
    cat = [rng.integers(MISSING, size, rows) for size in spec.cat_sizes]
    missing = rng.random((rows, len(spec.knots))) < 0.2
    num = np.zeros((rows, len(spec.knots)))
    for j, edges in enumerate(spec.knots):
        span = edges[-1] - edges[0]
        num[:, j] = rng.uniform(edges[0] - 0.2 * span, edges[-1] + 0.2 * span, rows)
        num[:, j] = np.where(rng.random(rows) < 0.2, rng.choice(edges, rows), num[:, j])  # on an edge
    multi = np.zeros((rows, len(spec.multi_sizes), width), np.int32)
    for j, size in enumerate(spec.multi_sizes):
        filled = np.arange(width) < rng.integers(0, width + 1, rows)[:, None]
        multi[:, j] = np.where(filled, rng.integers(UNKNOWN, max(size, FIRST_VALUE), (rows, width)), 0)
        multi[rng.random(rows) < 0.2, j] = [MISSING] + [0] * (width - 1)
    return Inputs(
        np.stack(cat, 1).astype(np.int32) if cat else np.zeros((rows, 0), np.int32),
        np.where(missing, 0, num).astype(np.float32),
        missing,
        multi,
    )


def worst_error(
    reference: Outputs, exported: Outputs, instead: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None
) -> dict[str, float]:
    """max |exported − reference| / max(1, |reference|) of each output; infinite where shapes differ or a number is not finite.

    Args:
      reference, exported: outputs by name.
      instead: name → another measure, exported values → error of the same shape, of which the smaller counts.

    Raises:
      DataError: the outputs have other names.
    """
    if set(reference) != set(exported):
        raise DataError("an export has other outputs", why=f"{sorted(exported)}, not {sorted(reference)}")
    out = {}
    for name, want in reference.items():
        want, got = np.asarray(want, np.float64), np.asarray(exported[name], np.float64)
        if want.shape != got.shape or not (np.isfinite(want).all() and np.isfinite(got).all()):
            out[name] = np.inf
            continue
        error = np.abs(got - want) / np.maximum(1, np.abs(want))
        if instead and name in instead:
            error = np.minimum(error, instead[name](got))
        out[name] = float(np.max(error, initial=0.0))
    return out


def flax_outputs(model: ServedModel, inputs: Inputs) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
    """What the Flax forward pass says of B rows, by the names of the exports, and the heads' logits of each label."""
    outputs, logits = _reference(model.params, inputs, spec=model.spec)
    return {name: np.asarray(value) for name, value in outputs.items()}, tuple(np.asarray(one) for one in logits)


@partial(jax.jit, static_argnames="spec")
def _reference(params: Mapping[str, Any], inputs: Inputs, *, spec: ServedSpec) -> tuple[dict, tuple]:
    """One program for both, because compiling is what an export waits for."""
    inputs = Inputs(*inputs)
    logits = all_logits(params, spec, inputs) if spec.targets else ()
    return named(spec, apply(params, spec, inputs)), logits


def gate(
    what: str,
    model: ServedModel,
    exported: Callable[[Inputs], Outputs],
    samples: Mapping[str, Inputs],
) -> dict[str, dict[str, float]]:
    """Compares an exported program with the model on every sample.

    Args:
      what: name of the export, for the message.
      model: the reference.
      exported: inputs → outputs by name, float32.
      samples: name → encoded rows, e.g. ``random`` and ``real``; of one size, or the reference is compiled for each.

    Returns:
      sample → output → error, all at most TOLERANCE.

    Raises:
      DataError: an error is above TOLERANCE; names the output and the sample.
    """
    errors = {}
    for sample, inputs in samples.items():
        outputs, logits = flax_outputs(model, inputs)
        errors[sample] = worst_error(outputs, exported(inputs), quantile_measures(model.spec, logits))
        output, error = max(errors[sample].items(), key=lambda item: item[1])
        if not error <= TOLERANCE:
            raise DataError(
                "an export does not compute what the model computes; it was not written",
                where=f"{what}, output '{output}', {sample} rows",
                why=f"error {error:.3g}, more than {TOLERANCE:g} of max(1, |value|)",
                do="export with the versions of jax, onnx and onnxruntime that setup.py names",
            )
    return errors
