"""From tensors in files to parameters on devices, one tensor at a time.

A stacked leaf [L, …] is made on its devices first; each layer's tensor is then read, cut into the shards that this
process holds, sent, and written into its place in the donated buffer. So the host holds the model's own arrays (where the
devices are the host), one tensor as it came from the file and one shard of it: never a second copy of the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.parallel.sharding import ShardingRules, parameter_shardings

SMALL = 1 << 22  # bytes; a stack up to this is gathered on the host


class Tensors(Protocol):
    """Named tensors in files."""

    @property
    def place(self) -> str:
        """The file or directory, for messages."""
        ...

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, slowest axis first, or DataError where it is missing."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor in any float type; may be a view into the file."""
        ...

    def release(self, name: str) -> None:
        """The tensor is no longer needed: its pages may leave memory."""
        ...


class Item:
    """One tensor of a file, and how it becomes one of ours: a matrix is transposed (files store [outputs, inputs])."""

    def __init__(
        self, name: str, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray] | None = None, *, flip=True
    ):
        self.name, self.shape = name, shape
        self.flip = flip and len(shape) == 2
        self.stored = shape[::-1] if self.flip else shape
        self.change = change

    def read(self, tensors: Tensors) -> np.ndarray:
        tensor = tensors.read(self.name)
        if self.change is not None:
            tensor = self.change(tensor)
        return tensor.T if self.flip else tensor


def place(
    tensors: Tensors,
    config: LMConfig,
    plan: Mapping[str, Any],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    dtype: Any = jnp.float32,
    vectors: Any = None,
) -> dict[str, Any]:
    """Reads a model.

    Args:
      plan: the layout of ``lm.model.init_params`` with an :class:`Item` for each array, and a list of L of them for each
        leaf of ``layers``.
      ignored: names that may be in the file although no item asks for them.
      mesh, rules: where the parameters go (``parallel.sharding``; default rules where only a mesh is given); None: the
        default device.
      dtype: of the matrices.
      vectors: dtype of norms and biases; None: as ``dtype``.

    Raises:
      DataError: a tensor is missing, surplus or of another shape; nothing has been allocated then.
    """
    items = jax.tree.leaves(plan, is_leaf=lambda node: isinstance(node, Item))
    for item in items:  # before anything is allocated: a damaged header can ask for terabytes
        found = tensors.shape(item.name)
        if found != item.stored:
            raise DataError(
                "a tensor has an unexpected shape",
                where=f"{tensors.place}, tensor '{item.name}'",
                why=f"{list(found)} instead of {list(item.stored)}",
            )
    surplus = sorted(set(tensors.names()) - {item.name for item in items})
    surplus = [name for name in surplus if not ignored(name)]
    if surplus:
        raise DataError(
            f"the weights hold tensors that a model of the {config.family} family does not have",
            where=f"{tensors.place}, tensor '{surplus[0]}'",
            why=f"{len(surplus)} unknown: {', '.join(surplus[:5])}",
        )
    stacks = {leaf: (len(parts), *parts[0].shape) for leaf, parts in plan["layers"].items()}
    shapes = {name: item.shape for name, item in plan.items() if name != "layers"} | {"layers": stacks}
    where = _shardings(shapes, mesh, rules)

    def dtype_of(item: Item) -> Any:
        return dtype if vectors is None or len(item.shape) > 1 else vectors

    params: dict[str, Any] = {}
    for name, item in plan.items():
        if name == "layers":
            params["layers"] = {
                leaf: _stack(tensors, parts, where["layers"][leaf], dtype_of(parts[0])) for leaf, parts in item.items()
            }
        else:
            params[name] = _single(tensors, item, where[name], dtype_of(item))
    return params


def _shardings(shapes: Any, mesh: Mesh | None, rules: ShardingRules | None) -> Any:
    """A NamedSharding for each shape; None everywhere without a mesh, which leaves the arrays free to move."""

    def is_shape(node: Any) -> bool:
        return isinstance(node, tuple)

    if mesh is None:
        return jax.tree.map(lambda _: None, shapes, is_leaf=is_shape)
    abstract = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=is_shape)
    return parameter_shardings(abstract, mesh, rules or ShardingRules())


def _put(array: np.ndarray, sharding: NamedSharding | None, dtype: Any) -> jax.Array:
    """A host array on its devices; devices that hold the same shard share one conversion."""
    if sharding is None:
        # A copy in any case: JAX on CPU may keep using the memory it is given, and the file's is not ours to keep.
        return jax.block_until_ready(jnp.asarray(np.array(array, dtype, order="C")))
    parts, shard, held = [], None, ""
    by_device = sharding.addressable_devices_indices_map(array.shape)
    for device, index in sorted(by_device.items(), key=lambda pair: repr(pair[1])):
        if shard is None or repr(index) != held:
            shard, held = np.array(array[index], dtype, order="C"), repr(index)
        parts.append(jax.device_put(shard, device))
    return jax.block_until_ready(jax.make_array_from_single_device_arrays(array.shape, sharding, parts))


def _single(tensors: Tensors, item: Item, sharding: NamedSharding | None, dtype: Any) -> jax.Array:
    placed = _put(item.read(tensors), sharding, dtype)
    tensors.release(item.name)
    return placed


def _stack(tensors: Tensors, parts: list[Item], sharding: NamedSharding | None, dtype: Any) -> jax.Array:
    shape = (len(parts), *parts[0].shape)
    if math.prod(shape) * np.dtype(dtype).itemsize <= SMALL:  # not worth compiling anything
        gathered = np.empty(shape, dtype)
        for index, item in enumerate(parts):
            gathered[index] = item.read(tensors)
            tensors.release(item.name)
        return _put(gathered, sharding, dtype)
    one = sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    buffer = jnp.zeros(shape, dtype, device=sharding)
    for index, item in enumerate(parts):
        buffer = _writer(sharding)(buffer, _single(tensors, item, one, dtype), index)
        jax.block_until_ready(buffer)  # otherwise the tensors of all layers wait in line, in memory
    return buffer


@functools.lru_cache(maxsize=64)
def _writer(sharding: NamedSharding | None) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    def write(buffer: jax.Array, tensor: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(buffer, tensor, index, axis=0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
