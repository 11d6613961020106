"""A served model whose weights are drawn and not learnt: the size and speed of a real one, for tests, benchmarks and plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from scaletot_jax.encoder.artifact import save_encoder, sha256_json
from scaletot_jax.encoder.model import Inputs, describe, init_params
from scaletot_jax.encoder.whiten import fit_whitening
from scaletot_jax.evaluation.heads import Scaler, free_mixing, hurdle_mixing
from scaletot_jax.evaluation.kept_heads import KeptHead, write_heads
from scaletot_jax.files import write_json
from scaletot_jax.population.model import ServedModel, copy_parts, seal_model
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.schema import Schema


def write_untrained_model(
    directory: str | Path,
    table: pa.Table,
    schema: Schema,
    *,
    seed: int = 0,
    dim: int = 64,
    width: int = 256,
    seeds: int = 5,
    head_width: int = 64,
    segments: Sequence[str] = ("context", "outlook"),
    target_dim: int = 16,
) -> ServedModel:
    """Fits the features on ``table`` (canonical, with labels) and draws all weights.

    Args:
      directory: of the model.
      table: sample of the population that vocabularies, scales and label ranges come from.
      schema: of the table.
      seed: of the weights.
      dim, width: of the encoder; seeds, head_width: of the heads; segments, target_dim: of the distilled states.
    """
    directory = Path(directory)
    copy_parts({}, directory)
    fields = schema.profile_fields()
    space = FeatureSpace.fit(table, schema, fields)
    inputs = Inputs(*space.encode(table))
    spec = describe(
        space, inputs, segments=segments, target_dims=[target_dim] * len(segments), dim=dim, width=width
    )  # fmt: skip
    features = space.to_dict()
    write_json(directory / "features.json", features)
    write_json(directory / "schema.json", {"schema": schema.to_dict(), "profile_fields": "static+early"})
    rng = np.random.default_rng(seed)
    whitening = [fit_whitening(rng.normal(size=(4 * target_dim, target_dim)), target_dim) for _ in segments]
    save_encoder(directory, spec, init_params(spec, seed), whitening, features_sha256=sha256_json(features))
    dense = space.dense(space.encode(table))
    x = np.concatenate([dense, rng.normal(size=(len(dense), dim)).astype(np.float32)], axis=1)
    labels = schema.labels
    heads = [_head(rng, table, labels.days.column, labels.days.horizon, x.shape[1], head_width, seeds)]
    if labels.value is not None:
        heads.append(_head(rng, table, labels.value.column, 0, x.shape[1], head_width, seeds))
    more = [(label.column, label.horizon) for label in labels.horizons] + [(label.column, 1) for label in labels.binary]
    heads += [_head(rng, table, column, horizon, x.shape[1], head_width, seeds) for column, horizon in more]
    write_heads(
        directory, heads, Scaler.fit(x), profile_fields="static+early", columns=space.dense_columns(), dim=dim
    )  # fmt: skip
    return seal_model(directory, run="none: the weights were drawn")


def _head(
    rng: np.random.Generator, table: pa.Table, column: str, horizon: int, inputs: int, width: int, seeds: int
) -> KeptHead:
    mixing = hurdle_mixing(horizon) if horizon else free_mixing(3)
    scores, outputs = len(mixing), len(mixing[0])

    def draw(*shape: int, scale: float) -> np.ndarray:
        return (scale * rng.normal(size=(seeds, *shape))).astype(np.float32)

    params = {
        "bias": draw(outputs, scale=0.1) - (1.0 if horizon else 0.0),
        "hidden": {"kernel": draw(inputs, width, scale=inputs**-0.5), "bias": draw(width, scale=0.1)},
        "linear": {"kernel": draw(inputs, scores, scale=inputs**-0.5)},
        "scores": {"kernel": draw(width, scores, scale=0.5 * width**-0.5)},
    }
    cap = float(table[column].cast(pa.float64()).to_numpy().max())
    return KeptHead(column, "days" if horizon else "value", horizon, cap, width, mixing, params)
