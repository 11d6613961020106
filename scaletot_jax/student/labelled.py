"""Rows of the population with a known label, as prompts: OSIPO's training users and the student's held-out users."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.errors import DataError
from scaletot_jax.lm.tokenizer import Tokenizer
from scaletot_jax.losses import pooled_targets
from scaletot_jax.profiles.prepare import Population
from scaletot_jax.student.policy import encode_prompts


class Labelled(NamedTuple):
    """Prompts with labels.

    Attributes:
      rows: [U] int64, row numbers of the population, ascending.
      prompts: [U, P] int32; prompt_valid: [U, P] bool.
      buckets: [U] int32, bucket of the label; [U, Kb] float32 after :func:`pooled`.
      truncated: profile texts that were cut.
    """

    rows: np.ndarray
    prompts: np.ndarray
    prompt_valid: np.ndarray
    buckets: np.ndarray
    truncated: int


def buckets_of(population: Population, spec: ChainSpec) -> np.ndarray:
    """Bucket of every row's label, int32 [rows]; −1 where the label is missing."""
    column = population.table[population.schema.labels.days.column].cast(pa.float64())
    return spec.bucket_of(column.to_numpy(zero_copy_only=False))


def labelled_rows(
    population: Population,
    split: str,
    spec: ChainSpec,
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    limit: int = 0,
    seed: int = 0,
) -> Labelled:
    """The labelled rows of a split.

    Args:
      limit: keep at most so many, drawn without replacement by ``seed``; 0 keeps all.

    Raises:
      DataError: the split has no labelled row.
    """
    buckets = buckets_of(population, spec)
    splits = np.asarray(population.table["split"].to_pylist())
    rows = np.flatnonzero((splits == split) & (buckets >= 0))
    if not len(rows):
        raise DataError(f"the split '{split}' has no labelled row", where="prepare/population.parquet")
    if limit and len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    texts = population.renderer.texts(population.table.take(rows))
    prompts, valid, truncated = encode_prompts(tokenizer, texts, max_tokens)
    return Labelled(rows.astype(np.int64), prompts, valid, buckets[rows], truncated)


def pooled(users: Labelled, population: Population, spec: ChainSpec) -> Labelled:
    """``users`` with the labels of equal coarse profiles pooled, [U, Kb], see :func:`scaletot_jax.losses.pooled_targets`.

    Only the labels of these very users enter.
    """
    keys = np.asarray(population.table["coarse_key"].take(pa.array(users.rows)).to_pylist())
    distinct, profiles = np.unique(keys, return_inverse=True)
    labels, numbers = jnp.asarray(users.buckets), jnp.asarray(profiles)
    targets, _ = pooled_targets(
        labels, numbers, num_buckets=spec.num_buckets, num_profiles=len(distinct), concentration=None
    )
    return users._replace(buckets=np.asarray(targets, np.float32))


def base_rate(buckets: np.ndarray, num_buckets: int) -> np.ndarray:
    """Share of each bucket, float64 [Kb]."""
    return np.bincount(buckets, minlength=num_buckets) / len(buckets)
