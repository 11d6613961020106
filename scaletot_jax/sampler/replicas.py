"""Data-parallel replicas over hosts: each process serves its share of a queue on its own devices.

Decoding needs no communication between hosts, only the same weights on each. A request's text depends on its own key, so
the shares together are what one process would have drawn, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import jax

from scaletot_jax.sampler.sampler import Request, Sample, Sampler


def generate_share(
    sampler: Sampler, requests: Iterable[Request], *, index: int | None = None, count: int | None = None
) -> Iterator[tuple[int, list[Sample]]]:
    """Serves every ``count``-th request, from number ``index`` on.

    Args:
      sampler: one that lies on devices of this process alone, such as a mesh over ``jax.local_devices()``.
      requests: the whole queue, the same on every process.
      index, count: this replica and how many there are; by default ``jax.process_index()`` and ``jax.process_count()``.

    Yields:
      (number of the request in the whole queue, its samples), as soon as a request is complete.
    """
    index = jax.process_index() if index is None else index
    count = jax.process_count() if count is None else count
    if not 0 <= index < count:
        raise ValueError(f"replica {index} of {count}")
    for number, samples in sampler.generate(islice(requests, index, None, count)):
        yield index + number * count, samples
