"""Which program computes attention over whole sequences; all give the same numbers to rounding.

| ``LMConfig.attention`` | what | where |
|---|---|---|
| ``einsum`` | two products and a softmax, query heads of a group beside each other (:func:`~scaletot_jax.lm.model.attention`) | fastest gradients on a CPU |
| ``dot_product`` | ``jax.nn.dot_product_attention``, portable | a quarter to a third fewer cycles than ``einsum`` by the TPU compiler's estimate |
| ``splash`` | a Pallas kernel that keeps no scores (:mod:`scaletot_jax.lm.splash`) | TPU |

``benchmarks/RESULTS.md`` has the numbers. Decoding with a cache always uses ``einsum``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.splash import Tree, splash
from scaletot_jax.parallel.sharding import ShardingRules


def choose(name: str) -> str:
    """``auto`` by the backend that runs: ``dot_product`` on TPU and GPU, ``einsum`` on CPU. Other names stay."""
    if name != "auto":
        return name
    return "einsum" if jax.default_backend() == "cpu" else "dot_product"


def dot_product(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """``jax.nn.dot_product_attention`` with the arguments and the result of :func:`scaletot_jax.lm.model.attention`."""
    batch, kv, grouped, width = q.shape
    tokens = mask.shape[1]
    group = grouped // tokens
    heads = q.reshape(batch, kv, group, tokens, width).transpose(0, 3, 1, 2, 4).reshape(batch, tokens, -1, width)
    # The general implementation: the one of cuDNN takes no mask of this kind, and nothing else is portable.
    mixed = jax.nn.dot_product_attention(
        heads.astype(k.dtype),
        k.transpose(0, 2, 1, 3),
        v.transpose(0, 2, 1, 3),
        mask=jnp.broadcast_to(mask, (batch, *mask.shape[1:]))[:, None],
        implementation="xla",
    )
    mixed = mixed.reshape(batch, tokens, kv, group, width).transpose(0, 2, 3, 1, 4)
    return mixed.reshape(q.shape).astype(jnp.float32)


def by_kernel(
    config: LMConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    tree: Tree | None,
    rules: ShardingRules | None,
) -> jax.Array:
    """Splash attention of a model's layer.

    Raises:
      DataError: the model has windows, or nobody said which tree of tokens the mask is.
    """
    if config.windows or tree is None:
        raise DataError(
            "splash attention cannot compute this",
            where="student.attention=splash",
            why="the model has sliding windows"
            if config.windows
            else "the mask is neither causal nor a tree of chains",
            do="use student.attention=dot_product",
        )
    return splash(q, k, v, valid, tree, rules=rules)
