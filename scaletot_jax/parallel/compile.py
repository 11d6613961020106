"""Jits a training step for a mesh: shardings in and out stated, the old state's memory reused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings, parameter_shardings, replicated


@dataclasses.dataclass(frozen=True)
class ShardedStep:
    """A jitted step and the placement of each of its arguments; call it like the step."""

    jitted: Any
    shardings: tuple[Any, ...]

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        return self.jitted(*arguments)


def shard_step(
    step: Callable[..., tuple[Any, ...]],
    arguments: Sequence[Any],
    kinds: Sequence[str],
    *,
    mesh: Mesh,
    rules: ShardingRules,
    kept: Sequence[Any] = (),
) -> ShardedStep:
    """Jits ``step(state, *others) -> (state, *kept, metrics)`` under ``mesh``.

    Args:
      step: pure; its first argument is the training state, whose buffers are donated.
      arguments: arrays or shape structs of every argument, to read shapes from.
      kinds: for each argument ``"parameters"`` (split by leaf name), ``"batch"`` (split along the first dimension) or
        ``"replicated"``.
      kept: shardings of what the step returns between its state and its metrics.

    Returns:
      The step, compiled at its first call; trace it under ``jax.set_mesh(mesh)``.
    """
    by_kind = {
        "parameters": lambda tree: parameter_shardings(tree, mesh, rules),
        "batch": lambda tree: batch_shardings(tree, mesh, rules),
        "replicated": lambda tree: jax.tree.map(lambda _: replicated(mesh), tree),
    }
    shardings = tuple(by_kind[kind](tree) for kind, tree in zip(kinds, arguments, strict=True))
    out = (shardings[0], *kept, replicated(mesh))
    return ShardedStep(jax.jit(step, in_shardings=shardings, out_shardings=out, donate_argnums=(0,)), shardings)
