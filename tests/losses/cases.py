"""Random batches of typed chains for the property tests: uneven groups, missing segments, dead rows, NaN in the padding."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st

# Few shapes, many contents: every shape is compiled once.
SHAPES = ((6, 13, 3), (5, 9, 1))  # B, T, K


class Batch(NamedTuple):
    ids: np.ndarray  # [B, T] int32
    groups: np.ndarray  # [B] int32, arbitrary labels
    outcomes: np.ndarray  # [B]
    logps: np.ndarray  # [B, T]; NaN or infinite in the padding
    old: np.ndarray
    prm: np.ndarray
    ref: np.ndarray
    advantages: np.ndarray
    num_segments: int

    @property
    def rewards(self):
        from losses import reference

        return reference.rewards(self.prm, self.ref, self.ids, self.num_segments, 0.5)


def make_batch(seed: int, shape=SHAPES[0], *, typed=True, poison=True, group_size=None) -> Batch:
    """A batch; ``typed=False`` gives one full segment a chain, as plain text has."""
    rng = np.random.default_rng(seed)
    rows, length, num_segments = shape
    ids = np.full((rows, length), -3, np.int32)
    for i in range(rows):
        if typed:
            kind = rng.random()
            row = [] if kind < 0.08 else [-1] * int(rng.integers(1, 4)) if kind < 0.16 else chain(rng, num_segments)
        else:
            row = [0] * int(rng.integers(1, length - 1))
        start = int(rng.integers(0, 2))  # the prompt
        row = row[: length - start]
        ids[i, start : start + len(row)] = row
    if group_size:
        groups = rng.permutation(np.repeat(np.arange(rows // group_size) * 17 - 5, group_size)).astype(np.int32)
    else:
        groups = rng.choice([-7, 3, 1000, 12], size=rows).astype(np.int32)
    logps = -rng.exponential(1.0, (rows, length))
    old, prm, ref = (logps + 0.25 * rng.standard_normal((rows, length)) for _ in range(3))
    if poison:
        padding = ids == -3
        for array in (logps, old, prm, ref):
            array[padding] = rng.choice([np.nan, np.inf, -np.inf], padding.sum())
    advantages = np.where(ids == -3, np.nan if poison else 0.0, rng.standard_normal((rows, length)))
    return Batch(ids, groups, rng.random(rows), logps, old, prm, ref, advantages, num_segments)


def chain(rng, num_segments):
    row = []
    for k in range(num_segments):
        row += [-1] + [k] * int(rng.integers(0, 4))
    return row + [-2] + [-1] * int(rng.integers(0, 2))


batches = st.builds(make_batch, st.integers(0, 2**32 - 1), st.sampled_from(SHAPES))
even_groups = st.builds(lambda seed: make_batch(seed, (8, 12, 2), group_size=4), st.integers(0, 2**32 - 1))
plain_text = st.builds(lambda seed: make_batch(seed, (8, 10, 1), typed=False, group_size=4), st.integers(0, 2**32 - 1))


def finite(array):
    """The array with 0 for NaN and infinity, for references without masks."""
    return np.where(np.isfinite(array), array, 0.0)


def float64():
    """Context in which jax computes in float64."""
    return jax.enable_x64(True)


# Compiling is most of what these tests do; without LLVM's optimiser it takes half as long.
QUICK = {"xla_backend_optimization_level": "0"}


@functools.cache
def compiled(function, /, **options):
    """``function`` with its options, compiled once a shape: the properties run it on hundreds of batches."""
    return jax.jit(functools.partial(function, **options), compiler_options=QUICK)


@functools.cache
def compiled_gradient(function, /, **options):
    """Value and gradient by the first argument of a function that returns (loss, metrics)."""
    gradient = jax.value_and_grad(functools.partial(function, **options), has_aux=True)
    return jax.jit(gradient, compiler_options=QUICK)


def call(transform, function, *arguments, **options):
    """``transform(function)`` on arguments and options, numbers among the options traced: fewer things to compile."""
    traced = {name: value for name, value in options.items() if isinstance(value, float)}
    static = {name: value for name, value in options.items() if name not in traced}
    return transform(function, **static)(*arguments, **traced)


def central_difference(function, point, *arguments, step=1e-6, **options):
    """Gradient by ``point`` of the first result of ``function(point, *arguments)``, by central differences in float64."""
    point = np.asarray(point, np.float64)
    shifts = step * np.eye(point.size).reshape(-1, *point.shape)
    values = compiled(_first_of_many, function=function, **options)
    difference = np.asarray(values(point + shifts, *arguments)) - np.asarray(values(point - shifts, *arguments))
    return difference.reshape(point.shape) / (2 * step)


def _first_of_many(points, *arguments, function, **options):
    def first(point):
        result = function(point, *arguments, **options)
        return result[0] if isinstance(result, tuple) else result

    return jax.lax.map(first, points)
