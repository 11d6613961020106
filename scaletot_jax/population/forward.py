"""What is computed for every user: the embedding, and of each label its expectation, P(y > 0) and quantiles. Pure.

    inputs ─► encoder ─► ẑ [B, E] ─┐
       └────► dense features ──────┴► scaler ─► heads of S seeds ─► distributions, averaged ─► mean, P(y > 0), quantiles

Distributions of labels that nest (active days of several horizons) are made to agree before they are read, see nested.py. One jitted call of fixed shape. The heads learnt on ẑ rounded to float16 and read it unrounded here: a difference within
2⁻¹¹ of an input, so that an export needs no rounding of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.model import EncoderSpec, Inputs
from scaletot_jax.encoder.model import apply as apply_encoder
from scaletot_jax.losses.ltv import ziln_mean
from scaletot_jax.population.nested import ordered
from scaletot_jax.population.quantiles import hurdle_quantiles, hurdle_survival, ziln_quantiles
from scaletot_jax.profiles.features import PADDING

LEVELS = (0.1, 0.5, 0.9)


class ServedLabel(NamedTuple):
    """Of one label and B rows."""

    mean: jax.Array  # [B] float32 expected label, days or units of the value
    positive: jax.Array  # [B] float32 P(y > 0)
    quantiles: jax.Array  # [B, 3] float32 at LEVELS


class Served(NamedTuple):
    """Of B rows."""

    embedding: jax.Array  # [B, E] float32 ẑ
    labels: tuple[ServedLabel, ...]  # in the order of ``ServedSpec.targets``


@dataclass(frozen=True)
class TargetSpec:
    """One label's heads; fields as in :class:`scaletot_jax.evaluation.kept_heads.KeptHead`."""

    column: str
    kind: str
    horizon: int
    cap: float
    mixing: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ServedSpec:
    """Everything that fixes the program; hashable.

    Attributes:
      encoder: of the encoder.
      numbers, ordered: how many number and ordered fields there are; they fix which missing bits the dense features show.
      cat_active, multi_active: for each cat and multi field the ids that the dense features show.
      targets: the labels.
      nested: places in ``targets`` of those whose days include one another's, horizons ascending.
    """

    encoder: EncoderSpec
    numbers: int
    ordered: int
    cat_active: tuple[tuple[int, ...], ...]
    multi_active: tuple[tuple[int, ...], ...]
    targets: tuple[TargetSpec, ...]
    nested: tuple[int, ...] = ()


def dense(spec: ServedSpec, inputs: Inputs) -> jax.Array:
    """The dense features [B, P] float32; the same columns as ``profiles.features.FeatureSpace.dense``."""
    bits = [2 * i for i in range(spec.numbers)] + [2 * spec.numbers + i for i in range(spec.ordered)]
    num, missing, cat, multi = (jnp.asarray(part) for part in (inputs.num, inputs.missing, inputs.cat, inputs.multi))
    parts = [num, missing[:, np.asarray(bits, np.int32)].astype(jnp.float32)]
    for index, active in enumerate(spec.cat_active):
        parts.append((cat[:, index, None] == np.asarray(active, np.int32)).astype(jnp.float32))
    for index, active in enumerate(spec.multi_active):
        ids = multi[:, index]  # [B, M]
        counts = jnp.maximum(1, jnp.sum(ids != PADDING, axis=1, keepdims=True))
        hits = jnp.sum(ids[:, :, None] == np.asarray(active, np.int32), axis=1)
        parts.append(hits.astype(jnp.float32) / counts)
    return jnp.concatenate(parts, axis=1)


def head_logits(params: Mapping[str, Any], mixing: tuple[tuple[float, ...], ...], x: jax.Array) -> jax.Array:
    """Raw outputs of the heads of all seeds, [B, S, O]: :class:`scaletot_jax.evaluation.heads.Head` with the seeds side by
    side, so that they are one product of matrices. x: [B, P + E] standardised."""
    hidden = jax.nn.gelu(jnp.einsum("bp,spw->bsw", x, params["hidden"]["kernel"]) + params["hidden"]["bias"])
    scores = jnp.einsum("bp,spk->bsk", x, params["linear"]["kernel"])
    scores += jnp.einsum("bsw,swk->bsk", hidden, params["scores"]["kernel"])
    return params["bias"] + scores @ jnp.asarray(mixing, jnp.float32)


def read_label(target: TargetSpec, logits: jax.Array) -> ServedLabel:
    """Distributions of S seeds, averaged: logits [B, S, O] → :class:`ServedLabel`.

    No expected value and no quantile of money lies above ``target.cap``: they are those of min(y, cap), seed by seed.
    """
    if target.kind == "days":
        return _read_days(hurdle_survival(logits))
    mean = jnp.mean(jnp.minimum(ziln_mean(logits), target.cap), axis=1)
    positive = jnp.mean(jax.nn.sigmoid(logits[..., 0]), axis=1)
    return ServedLabel(mean, positive, jnp.minimum(ziln_quantiles(logits, LEVELS), target.cap))


def _read_days(survival: jax.Array) -> ServedLabel:
    return ServedLabel(jnp.sum(survival, axis=1), survival[:, 0], hurdle_quantiles(survival, LEVELS))


def nested_survivals(spec: ServedSpec, logits: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """Place of each label that nests → P(y > j), [B, horizon], made to agree. ``logits``: [B, S, O] of every label."""
    if not spec.nested:
        return {}
    return dict(zip(spec.nested, ordered([hurdle_survival(logits[place]) for place in spec.nested])))


def apply(params: Mapping[str, Any], spec: ServedSpec, inputs: Inputs) -> Served:
    """Everything that is served of B rows.

    Args:
      params: ``{"encoder": …, "scaler": {"mean": [P + E], "std": [P + E]}, "heads": one pytree a target, [S, …]}``.
      spec: of the model.
      inputs: B encoded profiles.

    Returns:
      :class:`Served`. Inside a jitted function of your own call it as it is; else use :data:`serve`.
    """
    inputs = Inputs(*inputs)
    embedding = apply_encoder(params["encoder"], spec.encoder, inputs).embedding
    if not spec.targets:
        return Served(embedding, ())
    x = jnp.concatenate([dense(spec, inputs), embedding], axis=1)
    x = jnp.clip((x - params["scaler"]["mean"]) / params["scaler"]["std"], -8, 8)
    logits = [head_logits(head, target.mixing, x) for target, head in zip(spec.targets, params["heads"])]
    agreed = nested_survivals(spec, logits)
    labels = [
        _read_days(agreed[place]) if place in agreed else read_label(target, one)
        for place, (target, one) in enumerate(zip(spec.targets, logits))
    ]
    return Served(embedding, tuple(labels))


serve = partial(jax.jit, static_argnames="spec")(apply)  # serve(params, spec=spec, inputs=inputs) -> Served
