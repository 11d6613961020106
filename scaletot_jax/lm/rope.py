"""Where tokens stand and what each layer sees of them: rotary angles, their scaling, sliding windows.

Models whose layers differ (Gemma 3: five local layers with a window and angles of their own, then one global) have a few
*kinds* of layer. Angles and masks are made once a kind (:func:`views`); a layer picks its own (:func:`view_at`), by a
plain index where layers are a loop, by an array where they are a scan (:func:`scan_kinds`). Where all layers are alike
nothing is picked and the program is that of a model without kinds.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.lm.config import LayerKind, LMConfig, RopeScaling

Rotation = tuple[jax.Array, jax.Array]


class View(NamedTuple):
    """What the layers of one kind need to know.

    Attributes:
      mask: [B, T, S] bool, True where a query may look.
      rotation: cosine and sine of the queries' rotary angles, each [B, T, hd/2] float32.
    """

    mask: jax.Array
    rotation: Rotation


def views(config: LMConfig, mask: jax.Array, positions: jax.Array, slots: jax.Array | None = None) -> tuple[View, ...]:
    """One view for each kind of layer.

    A layer with window w sees the tokens at most w − 1 positions back: mask ∧ (position − slot position < w).

    Args:
      mask: [B or 1, T, S] bool, what a layer without a window may see.
      positions: [B, T] int32, of the queries.
      slots: [B, S] int32, positions of the S keys; default those of the queries, T = S.
    """
    keys = positions if slots is None else slots
    made = []
    for kind in _distinct(config):
        seen = mask
        if kind.window:
            seen = mask & (positions[:, :, None] - keys[:, None, :] < kind.window)
        made.append(View(seen, _angles(positions, _frequencies(kind, config.head_dim))))
    return tuple(made)


def view_at(made: tuple[View, ...], kind: int | jax.Array | None) -> View:
    """The view of a layer: ``kind`` is ``kind_of(config)[layer]``, or an element of ``scan_kinds(config)``."""
    if kind is None or len(made) == 1:
        return made[0]
    if isinstance(kind, int):
        return made[kind]
    shapes = [np.broadcast_shapes(*(leaf.shape for leaf in leaves)) for leaves in zip(*map(jax.tree.leaves, made))]
    flat = [
        jax.lax.select_n(kind, *(jnp.broadcast_to(leaf, shape) for leaf in leaves))
        for shape, leaves in zip(shapes, zip(*map(jax.tree.leaves, made)))
    ]
    return jax.tree.unflatten(jax.tree.structure(made[0]), flat)


def kind_of(config: LMConfig) -> tuple[int, ...]:
    """For each of the L layers, the index of its view."""
    distinct = _distinct(config)
    return tuple(distinct.index(kind) for kind in config.layer_kinds)


def scan_kinds(config: LMConfig) -> jax.Array | None:
    """:func:`kind_of` as [L] int32 to scan over with the layers; None where all layers are alike."""
    return jnp.asarray(kind_of(config), jnp.int32) if len(_distinct(config)) > 1 else None


def rotary(positions: jax.Array, config: LMConfig) -> Rotation:
    """Cosine and sine of the rotary angles (arXiv 2104.09864), each [B, T, hd/2] float32, for models of one kind.

    Raises:
      ValueError: the model has layers with windows, whose masks and angles come from :func:`views`.
    """
    if config.windows:
        raise ValueError("the layers of this model have windows: use rope.views, not rotary")
    return _angles(positions, _frequencies(config.layer_kinds[0], config.head_dim))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns the pairs (i, i + hd/2) of x [B, T, heads, hd] by their angles."""
    cos, sin = (part[:, :, None, :] for part in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def scaling_factors(scaling: RopeScaling | None, theta: float, head_dim: int) -> np.ndarray:
    """What each of the hd/2 rotary frequencies θ^(−2i/hd) is divided by, float64."""
    if scaling is None:
        return np.ones(head_dim // 2)
    if scaling.kind == "factors":
        return np.asarray(scaling.factors, np.float64)
    if scaling.kind == "linear":
        return np.full(head_dim // 2, scaling.factor)
    waves = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_positions / waves
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return 1.0 / (keep + (1 - keep) / scaling.factor)


def _distinct(config: LMConfig) -> list[LayerKind]:
    return list(dict.fromkeys(config.layer_kinds))


def _frequencies(kind: LayerKind, head_dim: int) -> np.ndarray:
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = kind.rope_theta**-exponents
    if kind.rope_scaling is not None:
        frequencies = frequencies / scaling_factors(kind.rope_scaling, kind.rope_theta, head_dim)
    return frequencies


def _angles(positions: jax.Array, frequencies: np.ndarray) -> Rotation:
    angles = positions.astype(jnp.float32)[..., None] * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)
