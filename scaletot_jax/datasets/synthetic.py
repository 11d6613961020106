"""A small made-up population for tests and first steps: a latent state drives profile, behaviour and labels."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

VERSION = "1.0.0"
CITIES = ("Arden", "Brook", "Cove", "Dale", "Elm", "Ford")
PLANS = ("free", "basic", "premium")
INTERESTS = ("music", "sports", "cooking", "travel", "games", "news", "fashion", "science")
DEVICES = ("phone", "tablet", "laptop")


def build_table(rows: int, *, seed: int = 0) -> pa.Table:
    """``rows`` users, the same for the same seed.

    A latent activity a ~ N(0, 1) moves with age, plan and number of interests; visits_30 and lt30 are two draws around
    it, so that early behaviour tells more than the static profile, and neither tells all. ltv30 is zero without
    visits. About 15 % of ages, 10 % of devices and 10 % of last visits are missing.

    Returns:
      columns user_id, age, city, plan, interests, device, visits_30, days_since_last_visit, lt30, ltv30.
    """
    rng = np.random.default_rng([seed, 20_300])
    age = rng.integers(18, 80, rows)
    city = rng.integers(0, len(CITIES), rows)
    plan = rng.choice(len(PLANS), rows, p=[0.6, 0.25, 0.15])
    likes = rng.random((rows, len(INTERESTS))) < 0.25
    device = rng.integers(0, len(DEVICES), rows)
    state = rng.normal(size=rows) + 0.8 * (plan - 0.5) + 0.3 * (likes.sum(1) - 2) - 0.02 * (age - 45)
    rate = np.exp(0.5 + 0.8 * state)
    visits = np.minimum(rng.poisson(rate), 30)
    lt30 = np.minimum(rng.poisson(rate * rng.gamma(2.0, 0.5, rows)), 30)
    spend = np.round(lt30 * np.exp(rng.normal(1.5 + 0.3 * plan, 0.6)), 2)
    gap = np.minimum(rng.geometric(1 / (1 + 20 / (1 + visits))), 365)
    ends = np.concatenate([[0], np.cumsum(likes.sum(1))]).astype(np.int32)
    interests = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.array(INTERESTS)[np.nonzero(likes)[1]]))
    return pa.table(
        {
            "user_id": pa.array([f"u{i:07d}" for i in range(rows)]),
            "age": pa.array(age, mask=rng.random(rows) < 0.15),
            "city": pa.array(np.array(CITIES)[city]),
            "plan": pa.array(np.array(PLANS)[plan]),
            "interests": interests,
            "device": pa.array(np.array(DEVICES)[device], mask=rng.random(rows) < 0.10),
            "visits_30": pa.array(visits),
            "days_since_last_visit": pa.array(gap, mask=rng.random(rows) < 0.10),
            "lt30": pa.array(lt30),
            "ltv30": pa.array(spend),
        }
    )
