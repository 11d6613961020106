"""A small served model with drawn weights, made once for all tests of this folder, and tables for it."""

import pyarrow.parquet as pq
import pytest

from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.population.untrained import write_untrained_model
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

SMALL = {"dim": 8, "width": 16, "seeds": 2, "head_width": 4}


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    schema = load_schema("synthetic")
    table = validate(build_table(400, seed=3), schema)
    return write_untrained_model(tmp_path_factory.mktemp("served") / "model", table, schema, **SMALL)


@pytest.fixture(scope="session")
def users(tmp_path_factory):
    """A table of 1,000 users in two Parquet files with row groups that fit no shard."""
    folder = tmp_path_factory.mktemp("users") / "table"
    folder.mkdir()
    table = build_table(1000, seed=4).drop_columns(["lt30", "ltv30"])
    pq.write_table(table.slice(0, 430), folder / "a.parquet", row_group_size=97)
    pq.write_table(table.slice(430), folder / "b.parquet", row_group_size=350)
    return folder
