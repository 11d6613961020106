"""What the benchmarks of the teacher share: the base rate of other people, and a reasoner as a run would make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.config import default_config
from scaletot_jax.lm.load import LoadedLM
from scaletot_jax.profiles.render import Renderer
from scaletot_jax.teacher.reasoner import Profile, Reasoner
from scaletot_jax.teacher.store import Store


def base_rate(spec: ChainSpec, labels: pa.ChunkedArray) -> np.ndarray:
    """[Kb] shares of the answer's buckets among ``labels``, with one more of each."""
    counts = np.bincount(spec.bucket_of(labels.to_numpy()), minlength=spec.num_buckets) + 1.0
    return counts / counts.sum()


def make_reasoner(
    spec: ChainSpec, lm: LoadedLM, store: Store, settings: Mapping[str, Any], fields: Sequence, renderer: Renderer
) -> Reasoner:
    """A teacher with the default length of profiles."""
    return Reasoner(
        spec,
        lm,
        store,
        settings,
        max_profile_tokens=default_config().lm.max_profile_tokens,
        fields=[field.name for field in fields],
        render=renderer.text,
    )


def profiles_of(reasoner: Reasoner, table: pa.Table, fields: Sequence) -> list[Profile]:
    """One profile a row, keyed by the row's number: no identifier comes near the teacher."""
    records = table.select([field.name for field in fields]).to_pylist()
    return [reasoner.profile(f"{i:05d}", record) for i, record in enumerate(records)]
