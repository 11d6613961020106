"""The checksum of a tree: independent of the split, against plain integers, and changed by every change."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from scaletot_jax.parallel.digest import _odd_numbers, digest, part_sum
from scaletot_jax.parallel.mesh import make_mesh

DTYPES = (np.float32, np.float64, np.int8, np.uint32, np.bool_, ml_dtypes.bfloat16)


def by_hand(x):
    """The definition, in Python's integers."""
    bits = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")
    weights = [[int(r) for r in _odd_numbers(axis, 0, size)] for axis, size in enumerate(x.shape)]
    total = 0
    for place in np.ndindex(x.shape):
        term = int(bits[place])
        for axis, i in enumerate(place):
            term *= weights[axis][i]
        total += term
    return total % 2**64


@given(st.integers(0, 2**31), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(DTYPES))
def test_the_sum_is_the_definition_and_a_split_does_not_change_it(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 50).astype(dtype)
    expected = by_hand(x)
    assert part_sum(x, (0,) * x.ndim, x.shape) == expected
    axis = int(rng.integers(x.ndim))
    cut = int(rng.integers(x.shape[axis] + 1))
    first, second = np.split(x, [cut], axis=axis)
    begin = tuple(cut if a == axis else 0 for a in range(x.ndim))
    assert (part_sum(first, (0,) * x.ndim, x.shape) + part_sum(second, begin, x.shape)) % 2**64 == expected
    changed = x.copy()
    place = tuple(int(rng.integers(n)) for n in shape)
    changed.view(f"u{x.dtype.itemsize}")[place] ^= 1
    assert part_sum(changed, (0,) * x.ndim, x.shape) != expected


def test_the_weights_are_odd_and_differ():
    numbers = np.concatenate([_odd_numbers(axis, 0, 1000) for axis in range(3)])
    assert (numbers % 2 == 1).all() and len(set(numbers.tolist())) == 3000
    np.testing.assert_array_equal(_odd_numbers(1, 10, 5), _odd_numbers(1, 0, 15)[10:])


@pytest.mark.parametrize("spec", [("data", "fsdp"), (None, "tensor"), (("data", "fsdp"), None), (None, None)])
def test_a_sharded_array_has_the_digest_of_the_whole(spec):
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert digest([jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))]) == digest([x])


@pytest.mark.parametrize(
    "other",
    [
        {"a": jnp.zeros((2, 3)), "b": jnp.int32(1)},
        {"a": jnp.zeros((3, 2)), "b": jnp.int32(0)},
        {"a": jnp.zeros((2, 3), jnp.int32), "b": jnp.int32(0)},
        {"c": jnp.zeros((2, 3)), "b": jnp.int32(0)},
        {"a": jnp.zeros((2, 3)).at[1, 2].set(-0.0), "b": jnp.int32(0)},
    ],
)
def test_names_shapes_types_and_values_count(other):
    one = {"a": jnp.zeros((2, 3)), "b": jnp.int32(0)}
    assert digest(one) == digest(jax.tree.map(np.asarray, one))
    assert digest(other) != digest(one)


def test_empty_arrays_and_long_rows():
    assert digest([np.zeros((0, 3), np.float32)]) != digest([np.zeros((3, 0), np.float32)])
    long = np.arange(3_000_000, dtype=np.uint32)
    halves = part_sum(long[: 1 << 20], (0,), long.shape) + part_sum(long[1 << 20 :], (1 << 20,), long.shape)
    assert halves % 2**64 == part_sum(long, (0,), long.shape)
