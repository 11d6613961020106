"""Cluster bootstrap: percentile intervals and paired differences when rows of one group (household, person) move together.

A resample draws G of the G groups with replacement; the weight of a row is how often its group was drawn. Metrics take
these weights directly, so nothing is copied. Two systems compared on the same weights give a paired difference.
The interval speaks of the sampling of test groups for *these* fitted models, not of refitting them.
Source: Efron & Tibshirani (1993), ch. 13; Field & Welsh (2007) for clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.errors import ConfigError

_CHUNK = 1 << 21  # weights held at once: 16 MiB of float64


class Interval(NamedTuple):
    """A point estimate with its percentile interval; all three NaN where the metric does not exist."""

    estimate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """JSON form: NaN becomes null."""
        return {name: (float(value) if np.isfinite(value) else None) for name, value in self._asdict().items()}


def resample_weights(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields bootstrap weights [r, U] float64 in blocks, ``resamples`` rows in all.

    Args:
      groups: group id of each row [U], any sortable dtype. Equal ids are resampled together.
      resamples: number of resamples R.
      seed: the same seed and groups give the same weights, whatever the size of the blocks.
    """
    if resamples < 1:
        raise ConfigError("the bootstrap needs at least one resample", where="evaluate.bootstrap")
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    count = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(len(code), count))
    for begin in range(0, resamples, step):
        size = min(step, resamples - begin)
        drawn = rng.integers(0, count, size=(size, count))
        flat = (drawn + count * np.arange(size)[:, None]).ravel()
        times = np.bincount(flat, minlength=size * count).reshape(size, count)
        yield times[:, code].astype(np.float64)


def bootstrap(
    statistics: Mapping[Any, Callable[[np.ndarray], np.ndarray]], groups: np.ndarray, *, resamples: int, seed: int
) -> dict[Any, np.ndarray]:
    """Bootstrap distribution of many statistics on the same resamples.

    Args:
      statistics: name (any key) -> function of weights [r, U] that returns [r].
      groups: group id of each row [U].
      resamples: R.
      seed: of the resampling.

    Returns:
      name -> [R]; differences of two entries are paired.
    """
    blocks: dict[Any, list[np.ndarray]] = {name: [] for name in statistics}
    for weights in resample_weights(groups, resamples, seed):
        for name, statistic in statistics.items():
            blocks[name].append(np.asarray(statistic(weights), np.float64))
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def percentile_interval(estimate: float, samples: np.ndarray, level: float) -> Interval:
    """The central ``level`` part of the bootstrap distribution around ``estimate``.

    Resamples in which the metric does not exist are left out; where more than half are, there is no interval.
    """
    if not 0 < level < 1:
        raise ConfigError("the level of an interval lies between 0 and 1", where="evaluate.level", why=f"it is {level}")
    samples = np.asarray(samples, np.float64)
    valid = samples[np.isfinite(samples)]
    if not np.isfinite(estimate) or len(valid) * 2 < len(samples):
        return Interval(float(estimate), float("nan"), float("nan"))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(valid, [tail, 100.0 - tail])
    return Interval(float(estimate), float(low), float(high))


def paired_difference(a: float, b: float, samples_a: np.ndarray, samples_b: np.ndarray, level: float) -> Interval:
    """Interval of the difference a − b, both measured on the same resamples."""
    return percentile_interval(a - b, np.asarray(samples_a) - np.asarray(samples_b), level)
