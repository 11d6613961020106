"""Supervised fine-tuning of all parameters, beside the adapter of :mod:`scaletot_jax.student.sft_step`.

The loss is the same. What differs is the state: a float32 master copy of every parameter with its two Adam moments, 12
bytes a parameter, split over the mesh by the same rules as the parameters themselves and donated to the next step. Matrices
are multiplied in ``compute_dtype``; norms, biases and the exit map of a shortened model stay float32, as do all sums.

A student trained in this way is a file of parameters, ``sft/student.safetensors``, named by their place in the pytree
(``layers.q``, ``exit.weight``). OSIPO then trains adapters on it, and the fresh adapter, which changes nothing, is its
reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from scaletot_jax.errors import DataError
from scaletot_jax.files import open_arrays, write_arrays
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.parallel.distributed import gather
from scaletot_jax.parallel.sharding import ShardingRules
from scaletot_jax.student.accumulate import value_and_grad
from scaletot_jax.student.constrained import GrammarArrays
from scaletot_jax.student.sft_step import SFTBatch, loss_weight, sft_metrics, sft_part

Params = dict[str, Any]


class FullState(NamedTuple):
    """A whole model under training.

    Attributes:
      params: as :func:`scaletot_jax.lm.model.init_params` lays them out, float32.
      opt_state: the optimiser's state for them.
      step: int32 scalar, updates done.
    """

    params: Params
    opt_state: Any
    step: jax.Array


def start_full(params: Mapping[str, Any], optimizer: optax.GradientTransformation) -> FullState:
    """A fresh training state. Float32 parameters are taken as they are: a step that donates the state consumes them."""
    master = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), dict(params))
    return FullState(master, optimizer.init(master), jnp.int32(0))


def decayed(params: Mapping[str, Any], config: LMConfig) -> Params:
    """Which parameters weight decay pulls to 0, a tree of bools: the matrices, but no norm, bias or exit map."""
    return _by_name(lambda leaf, matrix: matrix, params, config)


def compute_copy(params: Mapping[str, Any], config: LMConfig, dtype: Any) -> Params:
    """The parameters as they are multiplied: matrices in ``dtype``, everything else as it is."""
    return _by_name(lambda leaf, matrix: leaf.astype(dtype) if matrix and leaf.dtype != dtype else leaf, params, config)


def full_sft_step(
    state: FullState,
    grammar: GrammarArrays,
    batch: SFTBatch,
    *,
    config: LMConfig,
    optimizer: optax.GradientTransformation,
    answer_weight: float = 1.0,
    accumulate: int = 1,
    compute_dtype: Any = jnp.float32,
    rules: ShardingRules | None = None,
    remat: bool | str = False,
) -> tuple[FullState, dict[str, jax.Array]]:
    """One update of all parameters; arguments and metrics as those of :func:`scaletot_jax.student.sft_step.sft_step`."""
    weight = loss_weight(grammar, batch, answer_weight)

    def part(params: Params, micro: SFTBatch) -> tuple[jax.Array, tuple[dict[str, jax.Array], None]]:
        loss, sums = sft_part(
            None, compute_copy(params, config, compute_dtype), grammar, micro, weight, config=config,
            answer_weight=answer_weight, rules=rules, remat=remat,
        )  # fmt: skip
        return loss, (sums, None)

    loss, gradients, sums, _ = value_and_grad(part, state.params, accumulate, batch)
    metrics = sft_metrics(loss, sums, weight, gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params: Params = optax.apply_updates(state.params, updates)  # type: ignore[assignment]
    return FullState(params, opt_state, state.step + 1), metrics


def save_parameters(path: str | Path, params: Mapping[str, Any]) -> None:
    """Writes a model's parameters as safetensors. Of several processes every one must call it; the first writes."""
    write_arrays(path, {_name(key): gather(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(params)})


def load_parameters(path: str | Path, like: Mapping[str, Any]) -> Params:
    """Reads parameters written by :func:`save_parameters`, on a mesh a shard at a time.

    Args:
      like: parameters whose shapes are checked, and whose dtypes and places on the devices the result takes.

    Raises:
      DataError: the file is missing or damaged, or belongs to another model.
    """

    def leaf(key: Any, wanted: Any) -> jax.Array:
        name = _name(key)
        shape = shapes.get(name)
        if shape is None or shape != np.shape(wanted):
            found = f"it is {list(shape)}" if shape is not None else "it is not there"
            raise DataError(
                "the parameters of the student do not fit its model",
                where=f"{path}, {name}",
                why=f"{list(np.shape(wanted))} is expected, {found}",
                do="use the lm.weights and student.num_layers that they were trained with",
            )
        if isinstance(getattr(wanted, "sharding", None), NamedSharding):
            stored = file.get_slice(name)
            return jax.make_array_from_callback(
                shape, wanted.sharding, lambda piece: np.asarray(stored[piece], wanted.dtype)
            )
        return jnp.asarray(file.get_tensor(name), wanted.dtype)

    with open_arrays(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return jax.tree_util.tree_map_with_path(leaf, dict(like))


def _name(path: Any) -> str:
    return ".".join(str(key.key) for key in path)


def _by_name(change: Any, params: Mapping[str, Any], config: LMConfig) -> Params:
    matrices = {*config.projections, "embed", "head"}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(leaf, path[-1].key in matrices), dict(params))
