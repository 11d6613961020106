"""The one compiled call of the population pass: inputs of any number of rows → the columns that are written.

    embedding   float16 [E]; float32 [E], for a server; or int8 [E] with ``scale`` float32, ẑ ≈ scale · embedding, |error| ≤ scale / 2; or none
    expected_L, p_positive_L, q10_L, q50_L, q90_L   float32, of each label L

Batches have one shape, the last is filled up with copies of its last row; what a row gets does not depend on its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.population.forward import LEVELS, ServedSpec, apply
from scaletot_jax.profiles.features import Features

EMBEDDINGS = ("float16", "int8", "none")  # that a table of scores may have
FINITE = "finite"  # bool, whether all that is served of a row is a number; not written
Compute = Callable[[Inputs | Features], dict[str, np.ndarray]]


def column_names(spec: ServedSpec, embedding: str) -> list[str]:
    """Names of the written columns, in order."""
    names = {"float16": ["embedding"], "float32": ["embedding"], "int8": ["embedding", "scale"], "none": []}[embedding]
    for target in spec.targets:
        names += [f"{part}_{target.column}" for part in ("expected", "p_positive", *_LEVEL_NAMES)]
    return names


_LEVEL_NAMES = tuple(f"q{round(100 * level)}" for level in LEVELS)


def compile_columns(params: Any, spec: ServedSpec, *, embedding: str, batch_rows: int) -> Compute:
    """The weights on the device and the program; returns inputs of n rows → column → [n, ...]."""
    params = jax.device_put(params)

    def compute(inputs: Inputs | Features) -> dict[str, np.ndarray]:
        rows = inputs.cat.shape[0]
        out: dict[str, np.ndarray] = {}
        waiting: list[tuple[int, dict[str, jax.Array]]] = []

        def fetch() -> None:
            begin, found = waiting.pop(0)
            size = min(batch_rows, rows - begin)
            for name, value in found.items():
                if name not in out:
                    out[name] = np.empty((rows, *value.shape[1:]), value.dtype)
                out[name][begin : begin + size] = np.asarray(value)[:size]

        for begin in range(0, rows, batch_rows):
            waiting.append((begin, _columns(params, _batch(inputs, begin, batch_rows), spec=spec, embedding=embedding)))
            if len(waiting) > 2:  # the device works at the next batches while this one is copied
                fetch()
        while waiting:
            fetch()
        return out

    return compute


def quantise(embedding: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, E] float32 → int8 [B, E] and scale [B] float32 = max |ẑ| / 127 (0 for a row of zeros)."""
    scale = jnp.max(jnp.abs(embedding), axis=1) / 127
    safe = jnp.where(scale > 0, scale, 1)[:, None]
    return jnp.clip(jnp.round(embedding / safe), -127, 127).astype(jnp.int8), scale


@partial(jax.jit, static_argnames=("spec", "embedding"))
def _columns(params: Any, inputs: Inputs, *, spec: ServedSpec, embedding: str) -> dict[str, jax.Array]:
    served = apply(params, spec, inputs)
    out: dict[str, jax.Array] = {}
    finite = jnp.isfinite(served.embedding).all(axis=1)
    if embedding == "float16":
        out["embedding"] = served.embedding.astype(jnp.float16)
        finite = jnp.isfinite(out["embedding"]).all(axis=1)
    elif embedding == "float32":
        out["embedding"] = served.embedding
    elif embedding == "int8":
        out["embedding"], out["scale"] = quantise(served.embedding)
    for target, label in zip(spec.targets, served.labels):
        values = [label.mean, label.positive, *(label.quantiles[:, j] for j in range(len(LEVELS)))]
        for name, value in zip(("expected", "p_positive", *_LEVEL_NAMES), values):
            out[f"{name}_{target.column}"] = value
            finite &= jnp.isfinite(value)
    out[FINITE] = finite
    return out


def _batch(inputs: Inputs | Features, begin: int, batch_rows: int) -> Inputs:
    rows = inputs.cat.shape[0]
    if begin + batch_rows <= rows:
        return Inputs(*(column[begin : begin + batch_rows] for column in inputs))
    index = np.minimum(np.arange(begin, begin + batch_rows), rows - 1)
    return Inputs(*(column[index] for column in inputs))
