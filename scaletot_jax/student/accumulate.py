"""Gradients of a large batch from micro-batches, one after another: sums and counts, divided once.

A mean of micro-batch means weighs tokens unequally where lengths differ. So a micro-batch contributes a part of the
whole batch's loss: its sum over the *whole* batch's count, which is known before any model runs. Losses and gradients of
the parts then add up to those of the whole, L = Σ_m S_m / C, ∇L = Σ_m ∇S_m / C, whatever the lengths.

Only one micro-batch's activations exist at a time. Rows of a batch must be independent but for what is already in their
arrays (advantages, outcomes); a prompt's chains share a row and are never torn apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split(tree: Any, parts: int) -> Any:
    """Leaves [B, ...] as micro-batches [parts, B / parts, ...].

    A micro-batch takes every ``parts``-th row and not a block of neighbours, so that rows sharded over devices leave each
    micro-batch sharded in the same way.

    Raises:
      ValueError: B is not divisible by ``parts``.
    """

    def leaf(array: jax.Array) -> jax.Array:
        rows = array.shape[0]
        if rows % parts:
            raise ValueError(f"{rows} rows cannot be split into {parts} micro-batches of equal size")
        return jnp.moveaxis(array.reshape(rows // parts, parts, *array.shape[1:]), 1, 0)

    return jax.tree.map(leaf, tree)


def join(tree: Any) -> Any:
    """The inverse of :func:`split`."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[0] * a.shape[1], *a.shape[2:]), tree)


def over_rows(function: Callable[..., Any], parts: int, *batch: Any) -> Any:
    """``function(*batch)`` by micro-batches: leaves [B, ...] in, leaves [B, ...] out, row by row."""
    if parts == 1:
        return function(*batch)
    return join(jax.lax.map(lambda micro: function(*micro), tuple(split(tree, parts) for tree in batch)))


def value_and_grad(
    function: Callable[..., tuple[jax.Array, tuple[Any, Any]]], weights: Any, parts: int, *batch: Any
) -> tuple[jax.Array, Any, Any, Any]:
    """Loss and gradient of a whole batch by micro-batches.

    Args:
      function: ``(weights, *micro) -> (part, (sums, rows))`` with ``part`` this micro-batch's part of the whole batch's
        loss (its sum divided by the whole batch's count), ``sums`` a pytree to be added up over micro-batches, and
        ``rows`` a pytree of leaves [micro rows, ...] to be put back into the batch's order.
      weights: what is differentiated; the gradient is accumulated in its dtype.
      parts: micro-batches; 1 calls the function once and is no different from ``jax.value_and_grad``.
      batch: pytrees of leaves [B, ...].

    Returns:
      The loss, the gradient, the added ``sums`` and the whole ``rows``.

    Raises:
      ValueError: B is not divisible by ``parts``.
    """
    differentiate = jax.value_and_grad(function, has_aux=True)
    if parts == 1:
        (loss, (sums, rows)), gradient = differentiate(weights, *batch)
        return loss, gradient, sums, rows

    def add(total: Any, micro: Any) -> tuple[Any, Any]:
        (loss, (sums, rows)), gradient = differentiate(weights, *micro)
        return jax.tree.map(jnp.add, total, (loss, gradient, sums)), rows

    micros = tuple(split(tree, parts) for tree in batch)
    first = jax.tree.map(lambda leaf: leaf[0], micros)
    (loss, (sums, _)), gradient = jax.eval_shape(differentiate, weights, *first)
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (loss, gradient, sums))
    (loss, gradient, sums), rows = jax.lax.scan(add, start, micros)
    return loss, gradient, sums, join(rows)


def in_turn(function: Callable[..., Any], done: Any, *arguments: Any) -> Any:
    """``function(*arguments)``, begun when ``done`` has been computed: two passes never hold their activations at once.

    An ``optimization_barrier`` alone states the order, and XLA for CPU drops it before it chooses one. So the pass is
    also the branch of a conditional, which runs as a whole; that its condition is always true stays hidden from XLA by
    the barrier.
    """
    arguments, _ = jax.lax.optimization_barrier((arguments, done))
    always = jax.lax.optimization_barrier((jnp.bool_(True), done))[0]

    def never(*arguments: Any) -> Any:
        out = jax.eval_shape(function, *arguments)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out)

    return jax.lax.cond(always, function, never, *arguments)
