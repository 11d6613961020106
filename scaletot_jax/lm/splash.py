"""Attention by the Pallas "splash" kernel, which keeps no scores and skips what nobody may see (TPU; elsewhere interpreted).

The same function as :func:`scaletot_jax.lm.model.attention` where a token is valid,

    softmax(q kᵀ / √hd + log mask) v

computed block by block with running maxima (arXiv 2205.14135), forward and backward. Which token may look at which is
known when the program is built: causal, or the tree of a prompt with its chains side by side, whose chains never look at
one another; blocks between them are not visited. What is known only at run time, padding, is a segment of its own: padded
tokens see each other and nobody sees them, so that their outputs are finite and meaningless.

Kernels are no part of what XLA can split over devices; under a mesh the call is a ``shard_map`` over rows and heads.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from scaletot_jax.parallel.sharding import ShardingRules

_BLOCKS = (512, 384, 256, 128)  # tokens of a block: the largest that divides the padded length
_LANES = 128  # lengths are padded to a multiple of it


class Tree(NamedTuple):
    """Who sees whom in a row of T = ``prompt`` + ``chains`` · ``length`` tokens: earlier tokens of the prompt and of the own
    chain (:mod:`scaletot_jax.student.packing`). One prompt without chains is plain causal attention. Static under jit."""

    prompt: int
    chains: int = 0
    length: int = 0

    @property
    def tokens(self) -> int:
        """T."""
        return self.prompt + self.chains * self.length

    def seen(self) -> np.ndarray:
        """[T, T] bool, row sees column."""
        branch = np.repeat(np.arange(self.chains + 1), [self.prompt] + [self.length] * self.chains)
        earlier = np.tril(np.ones((self.tokens, self.tokens), bool))
        return earlier & ((branch[None, :] == 0) | (branch[None, :] == branch[:, None]))


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    tree: Tree,
    *,
    rules: ShardingRules | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """Attention of whole sequences.

    Args:
      q: [B, KV, G·T, hd] grouped queries, G query heads for each of the KV key-value heads.
      k, v: [B, KV, T, hd].
      valid: [B, T] bool, False at padding.
      tree: who sees whom, T tokens.
      rules: with rules, rows and heads are split over the active mesh as ``batch`` and ``heads``.
      interpret: run the kernel as plain array operations, slowly; default: unless the program is for a TPU mesh or device.

    Returns:
      [B, KV, G·T, hd] float32.

    Raises:
      ValueError: the tree has another number of tokens.
    """
    batch, kv, grouped, width = q.shape
    tokens = k.shape[2]
    if tree.tokens != tokens:
        raise ValueError(f"a tree of {tree.tokens} tokens does not describe {tokens}")
    group = grouped // tokens
    heads = (q * width**-0.5).astype(k.dtype).reshape(batch, kv * group, tokens, width)
    if interpret is None:
        interpret = not _for_tpu()
    run = functools.partial(_rows, tree=tree, group=group, interpret=interpret)
    if rules is not None:
        rows = rules.spec("batch", "heads", None, None)
        # Interpreted kernels do not know over which axes their values differ.
        run = jax.shard_map(
            run, in_specs=(rows, rows, rows, PartitionSpec(rules.batch)), out_specs=rows, check_vma=False
        )
    return run(heads, k, v, valid).reshape(q.shape).astype(jnp.float32)


def _rows(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, *, tree: Tree, group: int, interpret: bool
) -> jax.Array:
    """q [B, H, T, hd], k, v [B, KV, T, hd] of one device."""
    tokens = tree.tokens
    padded = -(-tokens // _LANES) * _LANES
    spare = ((0, 0), (0, 0), (0, padded - tokens), (0, 0))
    segments = jnp.pad(1 - valid.astype(jnp.int32), ((0, 0), (0, padded - tokens)), constant_values=1)
    kernel = _kernel(tree, q.shape[1], padded, interpret)

    def row(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        return kernel(q, k, v, segment_ids=kernels.SegmentIds(q=segments, kv=segments))

    q, k, v = (jnp.pad(array, spare) for array in (q, k, v))
    out = jax.vmap(row)(q, k, v, segments)
    return out[:, :, :tokens]


def _kernel(tree: Tree, heads: int, padded: int, interpret: bool):
    seen = np.eye(padded, dtype=bool)  # padding sees itself at least: no row of the kernel is empty
    seen[: tree.tokens, : tree.tokens] |= tree.seen()
    size = next(block for block in _BLOCKS if padded % block == 0)
    blocks = kernels.BlockSizes(
        block_q=size, block_kv=size, block_kv_compute=size, block_q_dkv=size, block_kv_dkv=size,
        block_kv_dkv_compute=size, block_q_dq=size, block_kv_dq=size,
    )  # fmt: skip
    mask = masks.MultiHeadMask([masks.NumpyMask(seen)] * heads)
    return kernels.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)


def _for_tpu() -> bool:
    """Whether the program that is being built is for a TPU: that of the active mesh, else the default backend."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return "TPU" in device.device_kind if device is not None else jax.default_backend() == "tpu"
