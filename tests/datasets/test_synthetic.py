"""The synthetic population: valid, seeded, and with the relations that its docstring states."""

import numpy as np
import pytest

from scaletot_jax.config import default_config
from scaletot_jax.datasets.load import SYNTHETIC_ROWS, load
from scaletot_jax.datasets.synthetic import build_table

stats = pytest.importorskip("scipy.stats")


def test_rows_and_seed():
    assert build_table(50, seed=1).equals(build_table(50, seed=1))
    assert not build_table(50, seed=1).equals(build_table(50, seed=2))
    config = default_config()
    config.data.name = "synthetic"
    assert load(config.data.to_dict())[0].num_rows == SYNTHETIC_ROWS
    config.data.limit = 37
    assert load(config.data.to_dict())[0].num_rows == 37


def test_relations():
    table = build_table(4_000, seed=0)
    lt30, visits, age = (table[name].to_numpy() for name in ("lt30", "visits_30", "age"))
    early = stats.spearmanr(visits, lt30)[0]
    plan = stats.spearmanr(np.array(table["plan"]) != "free", lt30)[0]
    assert 0.4 < early < 0.9 and 0.1 < plan < early
    known = ~np.isnan(age)
    assert stats.spearmanr(age[known], lt30[known])[0] < -0.1
    assert 0.1 < 1 - known.mean() < 0.2
    value = table["ltv30"].to_numpy()
    assert ((value == 0) == (lt30 == 0)).all() and 0.2 < (lt30 == 0).mean() < 0.6
