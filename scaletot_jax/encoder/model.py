"""The profile encoder: a small network that gives every profile the embedding an LLM's reasoning would have given it.

    fields ─ embeddings, numbers, piecewise-linear bins ─► DCN-v2 cross layers ─► residual MLP ─► embedding [B, E]
                                                                                       └► one linear head a segment [B, d_k]

The segment heads read nothing but the embedding, so whatever the loss teaches them must be carried by the embedding.
The module is stateless: no dropout collection, no batch statistics. Field dropout is :func:`redact` on the *input*, the
same operation that later withholds fields on purpose (e.g. all early ones).
Sources: cross layers, DCN-v2 (arXiv:2008.13535); piecewise-linear encoding of numbers (arXiv:2203.05556).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.errors import DataError
from scaletot_jax.profiles.features import PADDING, REDACTED_ID, UNKNOWN, FeatureSpace

Array = jax.Array | np.ndarray


class Inputs(NamedTuple):
    """Encoded profiles; the same fields, in the same order, as ``profiles.features.Features``."""

    cat: Array  # [B, Fc] int32 ids of single-valued fields
    num: Array  # [B, Fn] float32 number columns, 0 where missing
    missing: Array  # [B, Fn] bool
    multi: Array  # [B, Fm, M] int32 ids of multi-valued fields, padded with 0


class Encoded(NamedTuple):
    """What the encoder says of B profiles."""

    embedding: jax.Array  # [B, E] float32, the ẑ that is stored for everyone
    segments: tuple[jax.Array, ...]  # K arrays [B, d_k] float32: predicted whitened reasoning states

    def rows(self, chosen: np.ndarray) -> Encoded:
        """Those of the profiles in ``chosen``, bool [B]."""
        return Encoded(self.embedding[chosen], tuple(segment[chosen] for segment in self.segments))


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that fixes the network's shape; saved as JSON beside the weights.

    Attributes:
      fields: names of the F profile fields.
      cat_sizes: number of ids of each single-valued column (specials included).
      multi_sizes: number of ids of each multi-valued column.
      cat_fields, num_fields, multi_fields: for each column the index of its field in ``fields``: columns of one field
        are withheld together.
      knots: for each number column its ascending bin edges, from training rows.
      segments: names of the chain's segments.
      target_dims: d_k of each segment.
      dim: E, width of the embedding.
      width: width of the trunk.
      cross_layers, mlp_layers: depth.
    """

    fields: tuple[str, ...]
    cat_sizes: tuple[int, ...]
    multi_sizes: tuple[int, ...]
    cat_fields: tuple[int, ...]
    num_fields: tuple[int, ...]
    multi_fields: tuple[int, ...]
    knots: tuple[tuple[float, ...], ...]
    segments: tuple[str, ...]
    target_dims: tuple[int, ...]
    dim: int = 64
    width: int = 256
    cross_layers: int = 2
    mlp_layers: int = 2

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EncoderSpec:
        def tuples(item: Any) -> Any:
            return tuple(tuples(part) for part in item) if isinstance(item, list | tuple) else item

        return cls(**{key: tuples(item) for key, item in value.items()})


def field_width(size: int) -> int:
    """Width of a field's embedding: 4 to 24, growing with the fourth root of its vocabulary."""
    return int(min(24, max(4, round(4 * size**0.25))))


def fit_knots(columns: np.ndarray, missing: np.ndarray, bins: int = 8) -> tuple[tuple[float, ...], ...]:
    """Bin edges of each number column at its quantiles over the rows that have it, duplicates removed.

    Args:
      columns: [U, Fn] number columns of training rows.
      missing: [U, Fn] bool.
      bins: most bins a column gets.

    Returns:
      one ascending tuple a column with at least two edges (0 and 1 where nothing is known).
    """
    out = []
    for j in range(columns.shape[1]):
        known = columns[~missing[:, j], j].astype(np.float64)
        edges = (
            np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)).astype(np.float32)) if len(known) else np.zeros(0)
        )
        if len(edges) == 1:
            edges = np.r_[edges, edges + 1]
        out.append(tuple(float(edge) for edge in edges) if len(edges) else (0.0, 1.0))
    return tuple(out)


def piecewise_linear(column: Array, edges: tuple[float, ...]) -> jax.Array:
    """Bins of one number column [B] → [B, len(edges) − 1]: 0 before a bin, 1 after it, linear inside.

    Outside the outer edges nothing is extrapolated; the plain column carries what lies there.
    """
    low, high = jnp.asarray(edges[:-1], jnp.float32), jnp.asarray(edges[1:], jnp.float32)
    return jnp.clip((column[:, None] - low) / (high - low), 0.0, 1.0)


def redact(inputs: Inputs, withheld: jax.Array, spec: EncoderSpec, *, unknown: jax.Array | None = None) -> Inputs:
    """Withholds fields: their ids become REDACTED_ID, their numbers 0 and missing.

    Args:
      inputs: B encoded profiles.
      withheld: bool [B, F] or [F], in the order of ``spec.fields``.
      spec: says which columns belong to which field.
      unknown: bool [B], rows whose withheld ids become UNKNOWN instead. Training draws it, so that a value never seen
        before meets an embedding that was trained, not the initial noise.
    """
    blank_id = jnp.asarray(REDACTED_ID) if unknown is None else jnp.where(unknown, UNKNOWN, REDACTED_ID)[:, None]
    withheld = jnp.broadcast_to(withheld, (inputs.cat.shape[0], len(spec.fields)))
    of_cat, of_num, of_multi = (
        withheld[:, np.asarray(index, np.int32)] for index in (spec.cat_fields, spec.num_fields, spec.multi_fields)
    )
    first = jnp.arange(inputs.multi.shape[2]) == 0
    blank = jnp.where(first, blank_id[..., None], PADDING).astype(inputs.multi.dtype)
    return Inputs(
        cat=jnp.where(of_cat, blank_id, inputs.cat).astype(inputs.cat.dtype),
        num=jnp.where(of_num, 0.0, inputs.num),
        missing=inputs.missing | of_num,
        multi=jnp.where(of_multi[:, :, None], blank, inputs.multi),
    )


def describe(
    space: FeatureSpace, inputs: Inputs, *, segments: Sequence[str], target_dims: Sequence[int], **sizes: int
) -> EncoderSpec:
    """The specification for a feature space.

    Args:
      space: fitted ``profiles.features.FeatureSpace``.
      inputs: encoded training rows; the bin edges come from them.
      segments, target_dims: names and widths of the distilled segments.
      **sizes: ``dim``, ``width`` and depths, as in :class:`EncoderSpec`.
    """
    names = [field.name for field in space.fields]
    return EncoderSpec(
        fields=tuple(names),
        cat_sizes=tuple(space.sizes[name] for name in space.cat_fields),
        multi_sizes=tuple(space.sizes[name] for name in space.multi_fields),
        cat_fields=tuple(names.index(name) for name in space.cat_fields),
        num_fields=tuple(names.index(column.rpartition(":")[0]) for column in space.num_columns),
        multi_fields=tuple(names.index(name) for name in space.multi_fields),
        knots=fit_knots(np.asarray(inputs.num), np.asarray(inputs.missing)),
        segments=tuple(segments),
        target_dims=tuple(int(width) for width in target_dims),
        **sizes,
    )


class ProfileEncoder(nn.Module):
    """See the module. ``__call__(inputs) -> Encoded``."""

    spec: EncoderSpec

    @nn.compact
    def __call__(self, inputs: Inputs) -> Encoded:
        spec = self.spec
        x = nn.Dense(spec.width, name="inputs")(self._fields(inputs))
        base = x
        for layer in range(spec.cross_layers):  # x ← x₀ ⊙ (W x + b) + x
            x = (
                base
                * nn.Dense(
                    spec.width, kernel_init=nn.initializers.normal(0.5 / spec.width**0.5), name=f"cross_{layer}"
                )(x)
                + x
            )
        for layer in range(spec.mlp_layers):
            h = nn.Dense(spec.width, name=f"mlp_{layer}_in")(nn.LayerNorm(name=f"mlp_{layer}_norm")(x))
            x = x + nn.Dense(spec.width, name=f"mlp_{layer}_out")(nn.gelu(h))
        embedding = nn.Dense(spec.dim, name="embedding")(nn.LayerNorm(name="norm")(x))
        heads = tuple(nn.Dense(width, name=f"segment_{k}")(embedding) for k, width in enumerate(spec.target_dims))
        return Encoded(embedding, heads)

    def _fields(self, inputs: Inputs) -> jax.Array:
        """All fields side by side, [B, sum of their widths]."""
        parts = []
        for j, size in enumerate(self.spec.cat_sizes):
            parts.append(nn.Embed(size, field_width(size), name=f"cat_{j}")(inputs.cat[:, j]))
        for j, size in enumerate(self.spec.multi_sizes):
            ids = inputs.multi[:, j]
            present = (ids != PADDING)[:, :, None]
            embedded = nn.Embed(size, field_width(size), name=f"multi_{j}")(ids) * present
            values = jnp.sum((ids == UNKNOWN) | (ids > REDACTED_ID), axis=1, keepdims=True)
            parts += [embedded.sum(1) / jnp.maximum(present.sum(1), 1), jnp.log1p(values.astype(jnp.float32))]
        known = ~inputs.missing
        for j, edges in enumerate(self.spec.knots):
            parts.append(piecewise_linear(inputs.num[:, j], edges) * known[:, j : j + 1])
        parts += [inputs.num * known, inputs.missing.astype(jnp.float32)]
        return jnp.concatenate(parts, axis=1)


def init_params(spec: EncoderSpec, seed: int) -> dict[str, Any]:
    """Initial weights; the same specification and seed give the same bytes."""
    inputs = Inputs(
        jnp.zeros((1, len(spec.cat_sizes)), jnp.int32),
        jnp.zeros((1, len(spec.knots)), jnp.float32),
        jnp.zeros((1, len(spec.knots)), bool),
        jnp.zeros((1, len(spec.multi_sizes), 1), jnp.int32),
    )
    return _init(jax.random.key(seed), inputs, spec=spec)


@partial(jax.jit, static_argnames="spec")
def _init(key: jax.Array, inputs: Inputs, *, spec: EncoderSpec) -> dict[str, Any]:
    return ProfileEncoder(spec).init(key, inputs)["params"]


def apply(params: Mapping[str, Any], spec: EncoderSpec, inputs: Inputs) -> Encoded:
    """The encoder as a pure function. Inside a jitted function of your own call it as it is; else use :data:`encode`."""
    return ProfileEncoder(spec).apply({"params": params}, Inputs(*inputs))  # type: ignore[return-value]


encode = jax.jit(apply, static_argnames="spec")  # encode(params, spec=spec, inputs=inputs) -> Encoded


def check_inputs(spec: EncoderSpec, inputs: Inputs, *, where: str = "") -> None:
    """Raises DataError where shapes or ids are not those the encoder was built for (a device would clamp them silently)."""
    cat, num, multi = np.asarray(inputs.cat), np.asarray(inputs.num), np.asarray(inputs.multi)
    got = (cat.shape[1], num.shape[1], multi.shape[1])
    want = (len(spec.cat_sizes), len(spec.knots), len(spec.multi_sizes))
    if got != want:
        raise DataError(
            "the profile has other fields than the encoder",
            where=where,
            why=f"single-valued, numbers, multi-valued: {got}, not {want}",
        )
    for kind, ids, sizes in (
        ("single-valued", cat[:, :, None], spec.cat_sizes),
        ("multi-valued", multi, spec.multi_sizes),
    ):
        for j, size in enumerate(sizes):
            if ids[:, j].size and (ids[:, j].min() < 0 or ids[:, j].max() >= size):
                raise DataError(
                    "an id lies outside a field's vocabulary", where=where, why=f"{kind} field {j} has {size} ids"
                )
    if not np.isfinite(num).all():
        raise DataError("a number column is not finite", where=where)
