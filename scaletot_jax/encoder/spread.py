"""States for profiles that have none: what the encoder is trained on beside the distilled profiles themselves.

A few hundred states are too few for a network and enough for a kernel regression (:mod:`scaletot_jax.encoder.kernel`). So the
regression is fitted on the distilled profiles and says, for thousands of profiles nobody reasoned about, which states to expect;
the network learns these. It then answers like the regression, at the cost of the network. The profiles come from the training
splits (teacher, distill, head), without their labels, and from no group that judges or selects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.encoder.kernel import MAX_ROWS, Words, fit_kernel, predict_kernel
from scaletot_jax.encoder.model import EncoderSpec, Inputs
from scaletot_jax.encoder.selection import Profiles
from scaletot_jax.profiles.split import TRAIN, unit_hash


class Spread(NamedTuple):
    """What training sees in the place of the distilled profiles alone."""

    inputs: Inputs  # train profiles, then the pool
    targets: tuple[
        np.ndarray, ...
    ]  # for each segment [T + Q, d_k], expected by the regression; beyond its limit one's own
    record: dict[str, Any]  # weights of the fields and the error, for the summary


def pool_rows(table: pa.Table, profiles: Profiles, limit: int, seed: int) -> np.ndarray:
    """One row for each of at most ``limit`` distinct profiles of the training splits that are not distilled, by hash.

    Rows of groups whose distilled profiles select or judge are left out.
    """
    judged = set(profiles.groups[profiles.part != "train"].astype(str))
    taken = set(profiles.keys.astype(str))
    first: dict[str, int] = {}
    columns = (table[name].to_pylist() for name in ("exact_key", "split", "group"))
    for row, (key, split, group) in enumerate(zip(*columns)):
        if split in TRAIN and group not in judged and key not in taken:
            first.setdefault(key, row)
    keys = sorted(first)
    if not keys:
        return np.zeros(0, np.int64)
    order = np.argsort(unit_hash(keys, seed, "pool"), kind="stable")[:limit]
    return np.array([first[keys[i]] for i in order], np.int64)


def spread(
    spec: EncoderSpec,
    train: Inputs,
    targets: Sequence[np.ndarray],
    groups: np.ndarray,
    pool: Inputs,
    words: Words = None,
) -> Spread:
    """Fits the regression on the training profiles and asks it about them and the pool.

    It is fitted on at most :data:`~scaletot_jax.encoder.kernel.MAX_ROWS` of them, drawn at random; the others keep their own
    targets, noisier and as good on average, so that no state is thrown away.

    Args:
      spec: of the encoder.
      train: T profiles with targets.
      targets: for each segment [T, d_k]; the scale of a component is its weight in the choice of the fields' weights.
      groups: [T], left out together.
      pool: Q profiles.
      words: likeness of values, see :func:`scaletot_jax.encoder.kernel.field_kernels`.
    """
    widths = np.cumsum([target.shape[1] for target in targets])[:-1]
    own, fitted = np.concatenate(targets, 1), np.arange(len(groups))
    if len(groups) > MAX_ROWS:
        fitted = np.sort(np.random.default_rng(0).permutation(len(groups))[:MAX_ROWS])
    some = Inputs(*(np.asarray(part)[fitted] for part in train))
    fit = fit_kernel(spec, some, own[fitted], groups[fitted], words)
    whole = Inputs(*(np.concatenate([np.asarray(a), np.asarray(b)]) for a, b in zip(train, pool)))
    expected = predict_kernel(fit, spec, whole, words)
    beyond = np.setdiff1d(np.arange(len(groups)), fitted)
    expected[beyond] = own[beyond]
    record = {
        "profiles": len(groups),
        "fitted": len(fitted),
        "pool": len(pool.cat),
        "left_out_error": fit.error,
        "weights": {name: float(weight) for name, weight in zip(spec.fields, fit.weights)},
    }
    return Spread(whole, tuple(np.split(expected, widths, axis=1)), record)
