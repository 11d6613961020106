"""Profiles to embeddings with an encoder as it is: in batches of one fixed shape, one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.artifact import Encoder
from scaletot_jax.encoder.model import EncoderSpec, Inputs, apply, redact

_BATCH = 8192


def embed(encoder: Encoder, features: Any, *, withheld: np.ndarray | None = None) -> np.ndarray:
    """Embeddings [U, E] float32, rounded to float16 as the population's are.

    Args:
      encoder: the distilled one or a placebo.
      features: of U rows, ``profiles.features.Features``.
      withheld: bool [F], fields (in the order of ``encoder.spec.fields``) that are withheld from every row.
    """
    inputs = Inputs(*features)
    if withheld is not None:
        hidden = jax.jit(redact, static_argnames="spec")(inputs, jnp.asarray(withheld), spec=encoder.spec)
        inputs = Inputs(*(np.asarray(column) for column in hidden))
    rows = embed_rows(compile_embedding(encoder.spec, encoder.params), inputs, min(_BATCH, len(inputs.cat)))
    return rows.astype(np.float16).astype(np.float32)


def embed_rows(encode: Callable[[Inputs], Any], inputs: Inputs, batch_size: int) -> np.ndarray:
    """Embeddings [U, E] float32 by batches of one fixed shape; the last batch is filled up with copies of its last row."""
    rows = inputs.cat.shape[0]
    out = []
    for begin in range(0, rows, batch_size):
        index = np.minimum(np.arange(begin, begin + batch_size), rows - 1)
        batch = Inputs(*(column[index] for column in inputs))
        out.append(np.asarray(encode(batch))[: min(batch_size, rows - begin)])
    return np.concatenate(out)


def compile_embedding(spec: EncoderSpec, params: Any) -> Callable[[Inputs], jax.Array]:
    """The jitted forward pass inputs → embedding [B, E], with the weights on the device."""
    params = jax.device_put(params)
    return partial(_embedding, params, spec=spec)


@partial(jax.jit, static_argnames="spec")
def _embedding(params: Any, inputs: Inputs, *, spec: EncoderSpec) -> jax.Array:
    return apply(params, spec, inputs).embedding
