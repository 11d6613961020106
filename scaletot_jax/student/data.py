"""Data order of training as a grain pipeline: shuffled, batched to a fixed shape, and resumable at any batch."""

from __future__ import annotations

from typing import Any

import grain
import jax
import numpy as np


class ArraySource:
    """Random access to the rows of a pytree of arrays that share their first dimension."""

    def __init__(self, arrays: Any):
        self._arrays = arrays
        self._count = len(jax.tree.leaves(arrays)[0])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return jax.tree.map(lambda array: array[index], self._arrays)

    def __repr__(self) -> str:
        return f"ArraySource({self._count} rows)"


def batches(arrays: Any, *, batch_size: int, seed: int, epochs: int | None, blank: Any = None) -> Any:
    """An iterator of batches with ``get_state()`` and ``set_state(state)``.

    Args:
      arrays: pytree of arrays [E, ...].
      batch_size: rows a batch; every batch has exactly so many.
      seed: of the shuffle; every epoch has another order.
      epochs: passes over the data; None: without end.
      blank: a row (pytree without the leading dimension) that fills up the last batch of finite passes.

    Returns:
      A grain iterator; its state is JSON-able and belongs into the checkpoint.
    """

    def stack(rows: Any) -> Any:
        rows = [*rows, *[blank] * (batch_size - len(rows))]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    dataset = grain.MapDataset.source(ArraySource(arrays)).seed(seed).shuffle().repeat(epochs)
    dataset = dataset.batch(batch_size, batch_fn=stack)
    # The rows lie in memory: threads would only cost.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def steps_in(examples: int, batch_size: int, epochs: int) -> int:
    """Batches that :func:`batches` yields."""
    return -(-examples * epochs // batch_size)
