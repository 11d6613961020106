"""The served model as a ``jax.export`` artifact: StableHLO for cpu, cuda and tpu, weights inside, symbolic batch.

The artifact is read by ``jax.export.deserialize`` alone, with any jax whose calling convention covers the recorded one
(jax keeps artifacts readable for six months at least, and states it in its documentation).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.export.interface import input_arrays
from scaletot_jax.export.parity import named
from scaletot_jax.population.forward import apply
from scaletot_jax.population.model import ServedModel

PLATFORMS = ("cpu", "cuda", "tpu")


def to_jax(model: ServedModel) -> bytes:
    """The program: ``call(cat, num, missing, multi) -> dict``; the batch is a symbol ``b`` of at least one row."""
    from jax import export

    def program(cat, num, missing, multi):
        return named(model.spec, apply(model.params, model.spec, Inputs(cat, num, missing, multi)))

    (batch,) = export.symbolic_shape("b", constraints=["b >= 1"])
    arguments = [jax.ShapeDtypeStruct((batch, *shape), kind) for kind, shape in input_arrays(model.space).values()]
    return bytes(export.export(jax.jit(program), platforms=PLATFORMS)(*arguments).serialize())


def load_jax(program: bytes) -> Callable[[Inputs], dict[str, np.ndarray]]:
    """The program on the default device: encoded rows → outputs by name. Each batch size is compiled once."""
    from jax import export

    call = jax.jit(export.deserialize(bytearray(program)).call)
    return lambda inputs: {name: np.asarray(value) for name, value in call(*inputs).items()}
