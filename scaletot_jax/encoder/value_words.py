"""What the words of a field's values say of them: a start for values that few distilled profiles have. Pure NumPy.

The student reads "Wales" or "frozen pizza" with the embeddings of its tokens. Their mean, centred over the field's values, is a
vector of the value, and two values are as alike as exp((cos − 1) / τ). With ``distill.value_init = words`` the regression of
:mod:`scaletot_jax.encoder.kernel` compares values so, and the encoder's embedding tables start from these vectors, projected on
their leading directions and scaled like a random start. A value outside the vocabulary has no words here: it stays UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scaletot_jax.profiles.features import FIRST_VALUE, FeatureSpace

TEMPERATURE = 0.3


def value_vectors(
    space: FeatureSpace, embedding: np.ndarray, encode: Callable[[str], Sequence[int]]
) -> list[np.ndarray | None]:
    """For each single-valued, then each multi-valued column the centred vectors of its values [V, D]; None for fewer than two.

    Args:
      space: names the fields, their vocabularies, and what the prompt says for a value.
      embedding: [tokens, D] of the student.
      encode: text → token ids.
    """
    by_name = {field.name: field for field in space.fields}
    out: list[np.ndarray | None] = []
    for name in [*space.cat_fields, *space.multi_fields]:
        values = space.vocabulary[name]
        if len(values) < 2:
            out.append(None)
            continue
        texts = [" " + (by_name[name].words.get(value) or value) for value in values]
        found = np.stack([np.asarray(embedding)[list(encode(text))].mean(0) for text in texts]).astype(np.float64)
        out.append(found - found.mean(0))
    return out


def likeness(vectors: np.ndarray | None) -> np.ndarray | None:
    """How alike the ids of a column are, [size, size]: special ids like themselves only; None for None."""
    if vectors is None:
        return None
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    out = np.eye(FIRST_VALUE + len(vectors))
    out[FIRST_VALUE:, FIRST_VALUE:] = np.exp((np.clip(unit @ unit.T, -1, 1) - 1) / TEMPERATURE)
    return out


def start_tables(params: Mapping[str, Any], vectors: Sequence[np.ndarray | None], columns: int) -> dict[str, Any]:
    """The encoder's weights with embedding tables that start from the values' words.

    Args:
      params: of ``encoder.model.init_params``; not changed.
      vectors: of :func:`value_vectors`.
      columns: how many of them are single-valued.
    """
    out = dict(params)
    for j, found in enumerate(vectors):
        if found is None:
            continue
        name = f"cat_{j}" if j < columns else f"multi_{j - columns}"
        table = np.array(out[name]["embedding"])
        left, singular, _ = np.linalg.svd(found, full_matrices=False)
        width = min(table.shape[1], len(singular))
        drawn = np.zeros((len(found), table.shape[1]))
        drawn[:, :width] = left[:, :width] * singular[:width]
        size = np.sqrt((drawn**2).mean())
        if size > 0:
            table[FIRST_VALUE:] = drawn * np.sqrt((table[FIRST_VALUE:] ** 2).mean()) / size
        out[name] = {"embedding": table}
    return out
