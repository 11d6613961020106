"""A small served model with drawn weights, on a made-up table that has a field of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from encoder.synthetic_profiles import SCHEMA as SMALL
from encoder.synthetic_profiles import population

from scaletot_jax.population.model import ServedModel
from scaletot_jax.population.untrained import write_untrained_model
from scaletot_jax.profiles.schema import Schema

MORE = [  # kinds that the small schema lacks
    {"name": "since", "kind": "date", "role": "static"},
    {"name": "rating", "kind": "number", "role": "early", "digits": 1, "range": [0, 5]},
    {"name": "likes", "kind": "multi", "role": "static", "ranked": True, "max_values": 2},
]


def schema(horizon: int = 30) -> Schema:
    small = SMALL.to_dict()
    labels = {**small["labels"], "days": {"column": "lt30", "horizon": horizon}}
    return Schema.from_dict(small | {"labels": labels, "fields": [*small["fields"], *MORE]})


def table(rows: int = 300, seed: int = 0, horizon: int = 30) -> pa.Table:
    """Profiles and labels of ``rows`` users, canonical."""
    rng = np.random.default_rng(seed + 1)
    likes = [list(rng.permutation(["tea", "jazz", "chess", "golf"])[: rng.integers(0, 5)]) for _ in range(rows)]
    return (
        population(rows, seed)[0]
        .append_column("user_id", pa.array([f"u{i}" for i in range(rows)]))
        .append_column("since", pa.array(rng.integers(15_000, 19_000, rows).astype(np.int32)).cast(pa.date32()))
        .append_column("rating", pa.array(np.round(rng.uniform(0, 5, rows), 1), mask=rng.random(rows) < 0.3))
        .append_column("likes", pa.array([words or None for words in likes], pa.list_(pa.string())))
        .append_column("lt30", pa.array(rng.integers(0, horizon + 1, rows)))
        .append_column("ltv30", pa.array(rng.lognormal(2, 1, rows) * (rng.random(rows) < 0.6)))
    )


def make_nested(directory: Path) -> ServedModel:
    """With days of three horizons, one of them a single day, and a binary label: drawn heads that disagree in most rows."""
    base = table()
    days = np.asarray(base["lt30"].to_pylist())
    for name, values in {"lt1": days > 20, "lt7": np.minimum(days, 7), "won": days % 2}.items():
        base = base.append_column(name, pa.array(values.astype(np.int64)))
    labels = {
        **schema().to_dict()["labels"],
        "horizons": [{"column": "lt7", "horizon": 7}, {"column": "lt1", "horizon": 1}],
        "binary": [{"column": "won"}],
    }
    whole = Schema.from_dict(schema().to_dict() | {"labels": labels})
    return write_untrained_model(directory, base, whole, dim=8, width=16, seeds=3, head_width=6, target_dim=4)


def make(directory: Path, horizon: int = 30) -> ServedModel:
    return write_untrained_model(
        directory, table(horizon=horizon), schema(horizon), dim=8, width=16, seeds=3, head_width=6, target_dim=4
    )
