"""Which array dimension lies on which mesh axis, stated once and checked.

A dimension has a *logical* name (``batch``, ``embed``, ``heads`` …); :class:`ShardingRules` maps each to mesh axes. A
constraint that silently does nothing costs a factor of two and shows nowhere, so :func:`constrain` raises on a name it
does not know and where no mesh is active.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from scaletot_jax.errors import ConfigError

Axis = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axis → mesh axis (or axes, or None: not split)."""

    batch: Axis = ("data", "fsdp")
    tokens: Axis = None
    embed: Axis = "fsdp"  # model dimension of weights
    activation: Axis = None  # model dimension of activations
    heads: Axis = "tensor"
    mlp: Axis = "tensor"
    vocab: Axis = "tensor"
    layers: Axis = None
    rank: Axis = None  # rank of a low-rank adapter

    def spec(self, *names: str | None) -> PartitionSpec:
        """The partition of an array with these logical dimensions; None leaves a dimension whole.

        Raises:
          ConfigError: an unknown logical axis, or one mesh axis asked to split two dimensions.
        """
        known = {field.name for field in dataclasses.fields(self)}
        axes: list[Axis] = []
        used: list[str] = []
        for name in names:
            if name is not None and name not in known:
                raise ConfigError(
                    f"unknown logical axis '{name}'",
                    where=f"sharding of {names}",
                    do=f"use one of {', '.join(sorted(known))}",
                )
            axis = None if name is None else getattr(self, name)
            used += [axis] if isinstance(axis, str) else list(axis or ())
            axes.append(axis)
        if len(used) != len(set(used)):
            raise ConfigError(
                "a mesh axis splits two dimensions of one array", where=f"sharding of {names}", why=f"{axes}"
            )
        return PartitionSpec(*axes)


def constrain(array: jax.Array, *names: str | None, rules: ShardingRules) -> jax.Array:
    """``with_sharding_constraint`` by logical names, on the active mesh (``jax.set_mesh``).

    Raises:
      ConfigError: no mesh is active, a name is unknown, the mesh lacks an axis, or the rank differs.
    """
    spec = rules.spec(*names)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ConfigError(
            "a sharding constraint without a mesh would do nothing",
            where=f"constrain({names})",
            do="wrap the call in 'with jax.set_mesh(make_mesh(...))'",
        )
    if len(names) != array.ndim:
        raise ConfigError(
            "a name for every dimension is needed", where=f"constrain({names})", why=f"the shape is {array.shape}"
        )
    _check(array.shape, spec, names, dict(zip(mesh.axis_names, mesh.axis_sizes)))
    return jax.lax.with_sharding_constraint(array, spec)


# Logical dimensions of the parameters of scaletot_jax.lm, by leaf name; layers are stacked in front.
_PARAMETERS: dict[str, tuple[str | None, ...]] = {
    "embed": ("vocab", "embed"),
    "attn_norm": ("layers", None),
    "mlp_norm": ("layers", None),
    "post_attn_norm": ("layers", None),
    "post_mlp_norm": ("layers", None),
    "q_norm": ("layers", None),
    "k_norm": ("layers", None),
    "q_bias": ("layers", "heads"),
    "k_bias": ("layers", "heads"),
    "v_bias": ("layers", "heads"),
    "q": ("layers", "embed", "heads"),
    "k": ("layers", "embed", "heads"),
    "v": ("layers", "embed", "heads"),
    "o": ("layers", "heads", "embed"),
    "gate": ("layers", "embed", "mlp"),
    "up": ("layers", "embed", "mlp"),
    "down": ("layers", "mlp", "embed"),
    "final_norm": (None,),
    "head": ("embed", "vocab"),
    "weight": (None, None),  # the exit map of a truncated model: small, used at every token
    "bias": (None,),
}
_ADAPTERS: dict[str, tuple[str | None, ...]] = {
    f"{name}_{side}": ("layers", dims[1], "rank") if side == "a" else ("layers", "rank", dims[2])
    for name, dims in _PARAMETERS.items()
    if len(dims) == 3
    for side in ("a", "b")
}


def parameter_shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: ShardingRules) -> Any:
    """NamedShardings for base parameters, adapters, or any tree that repeats their leaf names.

    Optimiser moments carry the names of the parameters they belong to and are split alike; every other leaf (counts,
    schedules) is replicated.

    Raises:
      ConfigError: a dimension is not divisible by the mesh axes that split it.
    """
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes))

    def leaf(path: tuple, value: Any) -> NamedSharding:
        name = next((str(key.key) for key in reversed(path) if isinstance(key, jax.tree_util.DictKey)), "")
        dims = _ADAPTERS.get(name) or _PARAMETERS.get(name)
        shape = jax.numpy.shape(value)
        if dims is None or len(dims) != len(shape):
            return NamedSharding(mesh, PartitionSpec())
        spec = rules.spec(*dims)
        _check(shape, spec, (name, *dims), sizes)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def batch_shardings(tree: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """NamedShardings that split the leading dimension of every leaf as ``batch``; scalars are replicated."""
    sizes = dict(zip(mesh.axis_names, mesh.devices.shape))

    def leaf(value: Any) -> NamedSharding:
        shape = jax.numpy.shape(value)
        spec = rules.spec("batch", *(None,) * (len(shape) - 1)) if shape else PartitionSpec()
        _check(shape, spec, ("batch",), sizes)
        return NamedSharding(mesh, spec)

    return jax.tree.map(leaf, tree)


def batch_parts(mesh: Any, rules: ShardingRules) -> int:
    """Among how many devices the rows of a batch are divided."""
    axes = (rules.batch,) if isinstance(rules.batch, str) else rules.batch or ()
    return math.prod(mesh.shape[axis] for axis in axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def _check(shape: tuple[int, ...], spec: PartitionSpec, names: tuple, sizes: dict[str, int]) -> None:
    for size, axis in zip(shape, spec):
        axes = (axis,) if isinstance(axis, str) else tuple(axis or ())
        unknown = [name for name in axes if name not in sizes]
        if unknown:
            raise ConfigError(
                "the mesh has no such axis", where=f"sharding of {names}", why=f"{unknown[0]} is not in {tuple(sizes)}"
            )
        parts = math.prod(sizes[name] for name in axes)
        if size % parts:
            raise ConfigError(
                "a dimension cannot be split evenly",
                where=f"sharding of {names}",
                why=f"size {size} over {axes} of {parts} devices",
                do="choose mesh axes or batch sizes that divide",
            )
