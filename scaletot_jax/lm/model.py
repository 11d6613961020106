"""The Llama forward pass as pure functions over a pytree of parameters.

Parameters: ``embed`` [V, D], ``final_norm`` [D], ``head`` [D, V] where it is not the embedding, ``exit`` {``weight``
[D, D], ``bias`` [D]} in a truncated model (``lm.exit``), and ``layers``: ``attn_norm``, ``mlp_norm`` [L, D], ``q``
[L, D, H·hd], ``k``, ``v`` [L, D, KV·hd], ``o`` [L, H·hd, D], ``gate``, ``up`` [L, D, F], ``down`` [L, F, D].

One layer, for the residual stream x [B, T, D]:

    h = x + W_o · Attention(rope(W_q n), rope(W_k n), W_v n),   n = RMSNorm(x)
    y = h + W_down (silu(W_gate m) ⊙ W_up m),                   m = RMSNorm(h)

Matrix products run in the weights' dtype and accumulate in float32; the residual stream, norms, rotary angles and
softmax are float32.

Shape letters: B batch, T tokens, S key slots, V vocabulary, D width, L layers, H heads, KV key-value heads,
G = H / KV, hd head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.lm.config import LMConfig

Params = Mapping[str, Any]
# (q [B, KV, G·T, hd], k [B, KV, T, hd], v [B, KV, T, hd]) -> (mixed values like q, whatever the caller keeps)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class LMOutput(NamedTuple):
    """What :func:`forward` returns.

    Attributes:
      hidden: [B, T, D] float32, after the final norm: what the head multiplies.
      layers: for each of ``collect_layers``, the raw residual stream [B, T, D] after that layer.
    """

    hidden: jax.Array
    layers: tuple[jax.Array, ...]


def init_params(config: LMConfig, key: jax.Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Random parameters: matrices N(0, 1/inputs), embedding N(0, 1/D), norms one."""
    names = list(config.projections)
    keys = jax.random.split(key, len(names) + 2)
    layers: dict[str, jax.Array] = {}
    for name, name_key in zip(names, keys):
        inputs, outputs = config.projections[name]
        values = jax.random.normal(name_key, (config.num_layers, inputs, outputs))
        layers[name] = (values * inputs**-0.5).astype(dtype)
    for name in ("attn_norm", "mlp_norm"):
        layers[name] = jnp.ones((config.num_layers, config.hidden_size), dtype)
    scale = config.hidden_size**-0.5
    shape = (config.vocab_size, config.hidden_size)
    params: dict[str, Any] = {
        "embed": (jax.random.normal(keys[-2], shape) * scale).astype(dtype),
        "layers": layers,
        "final_norm": jnp.ones((config.hidden_size,), dtype),
    }
    if not config.tie_embeddings:
        params["head"] = (jax.random.normal(keys[-1], shape[::-1]) * scale).astype(dtype)
    return params


def forward(
    params: Params,
    config: LMConfig,
    tokens: jax.Array,
    *,
    valid: jax.Array | None = None,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
    lora: Mapping[str, jax.Array] | None = None,
    lora_scale: float = 1.0,
    collect_layers: tuple[int, ...] = (),
    remat: bool = False,
) -> LMOutput:
    """Runs the model over whole sequences, without a cache.

    Args:
      params: see :func:`init_params`; an ``"exit"`` entry is applied before the final norm.
      config: static under jit.
      tokens: [B, T] int32.
      valid: [B, T] bool, False at padding; default all True. Nothing attends to padding, so outputs at valid tokens do
        not depend on it. Outputs at padding are finite and meaningless.
      positions: [B, T] int32; default the count of valid tokens before each.
      mask: [B, T, T] bool, row attends to column; replaces the causal mask. Padding stays excluded.
      lora: adapter of ``lm.lora.init``, added to the weights with ``lora_scale``.
      collect_layers: layers 1..L whose outputs are wanted; static under jit.
      remat: recompute each layer in the backward pass, which keeps one [B, T, D] array a layer.

    Returns:
      LMOutput.

    Raises:
      ValueError: a collected layer does not exist.
    """
    if any(not 1 <= layer <= config.num_layers for layer in collect_layers):
        raise ValueError(f"collect_layers {collect_layers} must lie in 1..{config.num_layers}")
    batch, length = tokens.shape
    if valid is None:
        valid = jnp.ones((batch, length), bool)
    if positions is None:
        positions = default_positions(valid)
    if mask is None:
        mask = jnp.tril(jnp.ones((1, length, length), bool))
    mask = mask & valid[:, None, :]
    rotation = rotary(positions, config)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return attention(q, k, v, mask), None

    def step(x: jax.Array, layer: Params, adapter: Params | None) -> jax.Array:
        return block(layer, config, x, rotation, attend, adapter, lora_scale)[0]

    if remat:
        step = jax.checkpoint(step)
    x = embed(params, tokens)
    states: dict[int, jax.Array] = {}
    if isinstance(params["layers"], Mapping):
        wanted = sorted(set(collect_layers))
        slots = np.full(config.num_layers, len(wanted), np.int32)  # one past the end: written nowhere
        slots[[layer - 1 for layer in wanted]] = np.arange(len(wanted))

        def body(carry, inputs):
            x, collected = carry
            layer, adapter, slot = inputs
            x = step(x, layer, adapter)
            return (x, collected.at[slot].set(x, mode="drop") if wanted else collected), None

        collected = jnp.zeros((len(wanted), *x.shape), x.dtype)
        (x, collected), _ = jax.lax.scan(body, (x, collected), (params["layers"], lora, jnp.asarray(slots)))
        states = {layer: collected[slot] for slot, layer in enumerate(wanted)}
    else:
        for index in range(config.num_layers):
            x = step(x, layer_at(params["layers"], index), layer_at(lora, index))
            states[index + 1] = x
    return LMOutput(finish(params, config, x), tuple(states[layer] for layer in collect_layers))


def unstack_layers(params: Params) -> dict[str, Any]:
    """The same model with ``layers`` as a tuple of L dicts of separate arrays, for decoding.

    XLA on CPU copies a layer's slice out of a stacked array before it multiplies, which costs more than a decode step
    itself; separate arrays are read where they lie. ``forward``, ``prefill`` and ``extend`` take either form; training
    wants the stacked one (few leaves, one compiled layer). Both forms alive at once need twice the memory.
    """
    if not isinstance(params["layers"], Mapping):
        return dict(params)
    count = len(params["layers"]["attn_norm"])
    return {**params, "layers": tuple(layer_at(params["layers"], index) for index in range(count))}


def layer_at(layers: Any, index: int) -> Any:
    """Layer ``index`` of stacked leaves [L, ...] or of a tuple of layers; None for no adapter."""
    if isinstance(layers, (tuple, list)):
        return layers[index]
    return jax.tree.map(lambda leaf: leaf[index], layers)


# -- the parts, shared with the cached pass -----------------------------------------------------------------------------


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """Token embeddings [B, T, D] in float32."""
    return params["embed"][tokens].astype(jnp.float32)


def finish(params: Params, config: LMConfig, x: jax.Array) -> jax.Array:
    """The exit map of a truncated model, if there is one, then the final norm: [B, T, D] to what the head reads."""
    if "exit" in params:
        x = matmul(x, params["exit"]["weight"]) + params["exit"]["bias"]
    return rms_norm(x, params["final_norm"], config.rms_norm_eps)


def default_positions(valid: jax.Array) -> jax.Array:
    """[B, T] int32: how many valid tokens stand before each."""
    return jnp.maximum(jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1, 0)


def rotary(positions: jax.Array, config: LMConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles (arXiv 2104.09864), each [B, T, hd/2] float32."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = jnp.asarray(config.rope_theta**-exponents, jnp.float32)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (i, i + hd/2) of x [B, T, heads, hd] by their angles."""
    cos, sin = (part[:, :, None, :] for part in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / √(mean(x²) + ε) ⊙ weight, in float32 (arXiv 1910.07467)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * weight.astype(jnp.float32)


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., n] · weight [n, m] in the weight's dtype, accumulated and returned in float32."""
    return jnp.matmul(x.astype(weight.dtype), weight, preferred_element_type=jnp.float32)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √hd) v, the G query heads of a group reading one shared key-value head, which is never copied.

    Args:
      q: [B, KV, G·T, hd] grouped queries.
      k: [B, KV, S, hd] keys; v: the same shape.
      mask: [B, T, S] bool, True where the query may look.

    Returns:
      [B, KV, G·T, hd] float32. A query that may look nowhere gets the mean of all values, never NaN.
    """
    weights = jax.nn.softmax(attention_scores(q, k, mask), axis=-1)
    return attention_values(weights, v).reshape(q.shape)


def attention_scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """Masked scaled scores [B, KV, G, T, S] float32."""
    batch, kv, rows, width = q.shape
    tokens, slots = mask.shape[1], k.shape[2]
    scores = jnp.einsum("bknd,bksd->bkns", q.astype(k.dtype), k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv, rows // tokens, tokens, slots) * width**-0.5
    return jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)


def attention_values(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Weights [B, KV, G, T, S] applied to values [B, KV, S, hd]: [B, KV, G·T, hd] float32."""
    batch, kv, group, tokens, slots = weights.shape
    flat = weights.reshape(batch, kv, group * tokens, slots).astype(v.dtype)
    return jnp.einsum("bkns,bksd->bknd", flat, v, preferred_element_type=jnp.float32)


def block(
    layer: Mapping[str, jax.Array],
    config: LMConfig,
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    attend: Attend,
    adapter: Mapping[str, jax.Array] | None,
    adapter_scale: float,
) -> tuple[jax.Array, Any]:
    """One layer (the equations at the top); ``layer`` and ``adapter`` hold that layer's leaves, without the L axis."""
    batch, length, _ = x.shape
    kv, group, width = config.num_kv_heads, config.group_size, config.head_dim

    def project(inputs: jax.Array, name: str) -> jax.Array:
        out = matmul(inputs, layer[name])
        if adapter is not None:
            out = out + adapter_scale * matmul(matmul(inputs, adapter[f"{name}_a"]), adapter[f"{name}_b"])
        return out

    normed = rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
    q = rotate(project(normed, "q").reshape(batch, length, kv * group, width), rotation)
    q = q.reshape(batch, length, kv, group, width).transpose(0, 2, 3, 1, 4).reshape(batch, kv, group * length, width)
    k = rotate(project(normed, "k").reshape(batch, length, kv, width), rotation).transpose(0, 2, 1, 3)
    v = project(normed, "v").reshape(batch, length, kv, width).transpose(0, 2, 1, 3)
    dtype = layer["k"].dtype
    mixed, kept = attend(q, k.astype(dtype), v.astype(dtype))
    mixed = mixed.reshape(batch, kv, group, length, width).transpose(0, 3, 1, 2, 4).reshape(batch, length, -1)
    x = x + project(mixed, "o")

    normed = rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)
    return x + project(jax.nn.silu(project(normed, "gate")) * project(normed, "up"), "down"), kept
