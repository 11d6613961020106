"""The forward pass of a decoder-only language model as pure functions over a pytree of parameters.

Parameters: ``embed`` [V, D], ``final_norm`` [D], ``head`` [D, V] where it is not the embedding, ``exit`` {``weight``
[D, D], ``bias`` [D]} in a truncated model (``lm.exit``), and ``layers``: ``attn_norm``, ``mlp_norm`` [L, D], ``q``
[L, D, H·hd], ``k``, ``v`` [L, D, KV·hd], ``o`` [L, H·hd, D], ``gate``, ``up`` [L, D, F], ``down`` [L, F, D].

One layer, for the residual stream x [B, T, D]:

    h = x + W_o · Attention(rope(W_q n), rope(W_k n), W_v n),   n = RMSNorm(x)
    y = h + W_down (silu(W_gate m) ⊙ W_up m),                   m = RMSNorm(h)

Where the configuration says so, and at no cost where it does not (``lm.config``, ``lm.families``): W_q, W_k and W_v add
``q_bias`` [L, H·hd], ``k_bias``, ``v_bias`` [L, KV·hd] (Qwen2); ``q_norm``, ``k_norm`` [L, hd] normalise each head before
the rotary turn (Qwen3, Gemma 3); ``post_attn_norm``, ``post_mlp_norm`` [L, D] normalise the two terms before they are
added, silu is gelu, embeddings are scaled, and a layer may see a window only (Gemma 3; ``lm.rope``).

Matrix products run in the weights' dtype and accumulate in float32; the residual stream, norms, rotary angles and
softmax are float32.

Shape letters: B batch, T tokens, S key slots, V vocabulary, D width, L layers, H heads, KV key-value heads,
G = H / KV, hd head width, F feed-forward width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from scaletot_jax.lm.attend import by_kernel, dot_product
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.remat import PROJECTION, checkpointed
from scaletot_jax.lm.rope import Rotation, kind_of, rotary, rotate, scan_kinds, view_at, views
from scaletot_jax.lm.splash import Tree
from scaletot_jax.parallel.sharding import ShardingRules, constrain

__all__ = ["attention", "block", "embed", "finish", "forward", "init_params", "rotary", "rotate", "unstack_layers"]

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
    """Random parameters: matrices N(0, 1/inputs), embedding N(0, 1/D), norms one, biases zero."""
    names = list(config.projections)
    keys = jax.random.split(key, len(names) + 2)
    layers: dict[str, jax.Array] = {}
    for name, name_key in zip(names, keys):
        inputs, outputs = config.projections[name]
        values = jax.random.normal(name_key, (config.num_layers, inputs, outputs))
        layers[name] = (values * inputs**-0.5).astype(dtype)
    for name, size in config.vectors.items():
        start = 0.0 if name.endswith("_bias") else 1.0 - config.norm_offset
        layers[name] = jnp.full((config.num_layers, size), start, dtype)
    scale = config.hidden_size**-0.5
    shape = (config.vocab_size, config.hidden_size)
    params: dict[str, Any] = {
        "embed": (jax.random.normal(keys[-2], shape) * scale).astype(dtype),
        "layers": layers,
        "final_norm": jnp.full((config.hidden_size,), 1.0 - config.norm_offset, dtype),
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
    tree: Tree | None = None,
    lora: Mapping[str, jax.Array] | None = None,
    lora_scale: float = 1.0,
    collect_layers: tuple[int, ...] = (),
    remat: bool | str = False,
    rules: ShardingRules | None = None,
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
      tree: what ``mask`` is, where it is that of a prompt with its chains, for ``config.attention == "splash"``, which
        does not look at ``mask``; static under jit.
      lora: adapter of ``lm.lora.init``, added to the weights with ``lora_scale``.
      collect_layers: layers 1..L whose outputs are wanted; static under jit.
      remat: what the backward pass of a layer computes again (``lm.remat``): none, full or dots; static under jit.
      rules: with rules, the residual stream is split over the active mesh as ``batch``, ``tokens`` and ``activation``.
        Without, XLA takes the split of the embedding's width over to the whole stream, and adds up partial products of
        activations where it should gather weights.

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
        mask, tree = jnp.tril(jnp.ones((1, length, length), bool)), Tree(length)
    mask = mask & valid[:, None, :]
    seen = views(config, mask, positions)

    def placed(x: jax.Array) -> jax.Array:
        return x if rules is None else constrain(x, "batch", "tokens", "activation", rules=rules)

    def step(x: jax.Array, layer: Params, adapter: Params | None, kind: int | jax.Array | None) -> jax.Array:
        def run(x: jax.Array, layer: Params, adapter: Params | None) -> jax.Array:
            view = view_at(seen, kind)  # inside the checkpoint: a picked mask is made again, not kept for every layer

            def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
                if config.attention == "splash":
                    return by_kernel(config, q, k, v, valid, tree, rules), None
                mix = attention if config.attention == "einsum" else dot_product
                return mix(q, k, v, view.mask), None

            return placed(block(layer, config, x, view.rotation, attend, adapter, lora_scale)[0])

        return checkpointed(run, remat)(x, layer, adapter)

    x = placed(embed(params, tokens, config))
    states: dict[int, jax.Array] = {}
    if isinstance(params["layers"], Mapping):
        wanted = sorted(set(collect_layers))
        slots = np.full(config.num_layers, len(wanted), np.int32)  # one past the end: written nowhere
        slots[[layer - 1 for layer in wanted]] = np.arange(len(wanted))

        def body(carry, inputs):
            x, collected = carry
            layer, adapter, slot, kind = inputs
            x = step(x, layer, adapter, kind)
            return (x, collected.at[slot].set(x, mode="drop") if wanted else collected), None

        collected = jnp.zeros((len(wanted), *x.shape), x.dtype)
        inputs = (params["layers"], lora, jnp.asarray(slots), scan_kinds(config))
        (x, collected), _ = jax.lax.scan(body, (x, collected), inputs)
        states = {layer: collected[slot] for slot, layer in enumerate(wanted)}
    else:
        for index, kind in enumerate(kind_of(config)):
            x = step(x, layer_at(params["layers"], index), layer_at(lora, index), kind)
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


def embed(params: Params, tokens: jax.Array, config: LMConfig) -> jax.Array:
    """Token embeddings [B, T, D] in float32, times the model's scale (in the weights' dtype, as it was trained)."""
    x = params["embed"][tokens].astype(jnp.float32)
    if config.embed_scale != 1.0:
        x = x * jnp.asarray(config.embed_scale, params["embed"].dtype).astype(jnp.float32)
    return x


def finish(params: Params, config: LMConfig, x: jax.Array) -> jax.Array:
    """The exit map of a truncated model, if there is one, then the final norm: [B, T, D] to what the head reads."""
    if "exit" in params:
        x = matmul(x, params["exit"]["weight"]) + params["exit"]["bias"]
    return rms_norm(x, params["final_norm"], config.rms_norm_eps, config.norm_offset)


def default_positions(valid: jax.Array) -> jax.Array:
    """[B, T] int32: how many valid tokens stand before each."""
    return jnp.maximum(jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1, 0)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """x / √(mean(x²) + ε) ⊙ (offset + weight), in float32 (arXiv 1910.07467)."""
    x, weight = x.astype(jnp.float32), weight.astype(jnp.float32)
    if offset:
        weight = weight + offset
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * weight


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
    rotation: Rotation,
    attend: Attend,
    adapter: Mapping[str, jax.Array] | None,
    adapter_scale: float,
) -> tuple[jax.Array, Any]:
    """One layer (the equations at the top); ``layer`` and ``adapter`` hold that layer's leaves, without the L axis.

    ``rotation``, and whatever mask ``attend`` applies, are those of this layer (``lm.rope.views``).
    """
    batch, length, _ = x.shape
    kv, group, width = config.num_kv_heads, config.group_size, config.head_dim
    norm = functools.partial(rms_norm, eps=config.rms_norm_eps, offset=config.norm_offset)

    def project(inputs: jax.Array, name: str) -> jax.Array:
        out = matmul(inputs, layer[name])
        if adapter is not None:
            out = out + adapter_scale * matmul(matmul(inputs, adapter[f"{name}_a"]), adapter[f"{name}_b"])
        return checkpoint_name(out, PROJECTION)

    def heads(inputs: jax.Array, name: str, count: int) -> jax.Array:
        out = project(inputs, name)
        if config.qkv_bias:
            out = out + layer[f"{name}_bias"].astype(jnp.float32)
        out = out.reshape(batch, length, count, width)
        return norm(out, layer[f"{name}_norm"]) if config.qk_norm and name != "v" else out

    def add(x: jax.Array, term: jax.Array, name: str) -> jax.Array:
        return x + (norm(term, layer[name]) if config.post_norms else term)

    normed = norm(x, layer["attn_norm"])
    q = rotate(heads(normed, "q", kv * group), rotation)
    if config.query_scale is not None:
        q = q * (config.query_scale * width**0.5)  # the scores are divided by √hd again
    q = q.reshape(batch, length, kv, group, width).transpose(0, 2, 3, 1, 4).reshape(batch, kv, group * length, width)
    k = rotate(heads(normed, "k", kv), rotation).transpose(0, 2, 1, 3)
    v = heads(normed, "v", kv).transpose(0, 2, 1, 3)
    dtype = layer["k"].dtype
    mixed, kept = attend(q, k.astype(dtype), v.astype(dtype))
    mixed = mixed.reshape(batch, kv, group, length, width).transpose(0, 3, 1, 2, 4).reshape(batch, length, -1)
    x = add(x, project(mixed, "o"), "post_attn_norm")

    normed = norm(x, layer["mlp_norm"])
    gate = project(normed, "gate")
    gate = jax.nn.silu(gate) if config.activation == "silu" else jax.nn.gelu(gate, approximate=True)
    return add(x, project(gate * project(normed, "up"), "down"), "post_mlp_norm"), kept
