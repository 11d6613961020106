"""A small made-up population with a known latent state, in the shape that ``prepare`` writes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from scaletot_jax.profiles.schema import Schema

SCHEMA = Schema.from_dict(
    {
        "name": "made_up",
        "id": "user_id",
        "labels": {"days": {"column": "lt30", "horizon": 30}, "value": {"column": "ltv30", "unit": "dollars"}},
        "fields": [
            {"name": "age", "kind": "ordered", "role": "static", "values": ["young", "middle", "old"]},
            {"name": "region", "kind": "enum", "role": "static"},
            {"name": "loyal", "kind": "boolean", "role": "static"},
            {"name": "tops", "kind": "multi", "role": "static"},
            {"name": "visits", "kind": "number", "role": "early"},
            {"name": "spend", "kind": "number", "role": "early"},
        ],
    }
)
REGIONS = ("north", "south", "east", "west")
TOPS = ("food", "drink", "toys")


def population(rows: int, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """The profile columns of ``rows`` users and their latent activity [rows]."""
    rng = np.random.default_rng(seed)
    age, region = rng.integers(0, 3, rows), rng.integers(0, 4, rows)
    visits, loyal = rng.poisson(3, rows), rng.random(rows) < 0.4
    latent = 0.6 * (age - 1) + 0.4 * np.sin(region * 1.7) + 0.3 * visits - 0.9 + 0.5 * loyal * (region > 1)
    absent = rng.random(rows) < 0.2
    table = pa.table(
        {
            "age": pa.array(
                [None if gone else SCHEMA.field("age").values[i] for i, gone in zip(age, absent)], pa.string()
            ),
            "region": pa.array([REGIONS[i] for i in region], pa.string()),
            "loyal": pa.array(loyal, pa.bool_()),
            "tops": pa.array(
                [[TOPS[j] for j in range(3) if (i + j) % 2] or None for i in region + age], pa.list_(pa.string())
            ),
            "visits": pa.array(visits.astype(float), pa.float64()),
            "spend": pa.array([None if v == 0 else float(v * rng.lognormal()) for v in visits], pa.float64()),
        }
    )
    return table, latent
