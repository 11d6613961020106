"""OULAD by configuration alone: a generated per-user table of its schema, found under SCALETOT_DATA, up to the chains."""

import line
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaletot_jax.config import load_config, override
from scaletot_jax.errors import DataError
from scaletot_jax.pipeline import run_all
from scaletot_jax.profiles.schema import load_schema

SIZES = {
    "data.limit": "0", "lm.max_profile_tokens": "220", "teacher.num_profiles": "12", "teacher.pilot_profiles": "8",
    "teacher.batch_size": "4",
}  # fmt: skip


def write_users(path, rows=240):
    """A table of the schema: enum values by chance, one in ten missing where the real one has gaps."""
    rng = np.random.default_rng(11)
    schema = load_schema("oulad")
    columns = {"user_id": [f"oulad_{i % 2}_2013J_{1000 + i // 2}" for i in range(rows)]}
    for field in schema.fields:
        if field.kind in ("enum", "ordered"):
            values = list(rng.choice(field.values, rows))
        else:
            values = rng.integers(0, 6, rows).tolist()
        if field.name in ("imd_band", "days_registered_before_start"):
            values = [None if rng.random() < 0.1 else value for value in values]
        columns[field.name] = values
    columns[schema.labels.days.column] = rng.integers(0, 31, rows).tolist()
    columns[schema.labels.value.column] = rng.integers(0, 900, rows).tolist()
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path)


def configured(tmp_path, root):
    recipe = load_config(root / "configs" / "oulad.py")
    tiny = load_config(line.write_recipe(tmp_path))
    for key, value in {**SIZES, "lm.weights": tiny.lm.weights}.items():
        override(recipe, key, value)
    return recipe


def test_the_oulad_recipe_reads_a_ready_table(tmp_path, monkeypatch, pytestconfig):
    write_users(tmp_path / "data" / "oulad" / "users.parquet")
    monkeypatch.setenv("SCALETOT_DATA", str(tmp_path / "data"))
    run = run_all(configured(tmp_path, pytestconfig.rootpath), tmp_path / "run", stages=("prepare", "teach"))
    population = pq.read_table(run / "prepare" / "population.parquet").to_pylist()
    assert len(population) == 240
    groups = {}
    for row in population:  # the same student's two courses stay in one split
        groups.setdefault(row["group"], set()).add(row["split"])
    assert len(groups) == 120 and all(len(splits) == 1 for splits in groups.values())
    chains = pq.read_table(run / "teach" / "chains.parquet").to_pylist()
    assert len({chain["exact_key"] for chain in chains}) == 12
    assert all(sum(chain["answer"]) == pytest.approx(1, abs=1e-5) for chain in chains)


def test_without_a_table_it_says_where_to_put_one(tmp_path, monkeypatch, pytestconfig):
    monkeypatch.delenv("SCALETOT_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        run_all(configured(tmp_path, pytestconfig.rootpath), tmp_path / "run", stages=("prepare",))
    assert "SCALETOT_DATA" in str(caught.value) and "manual_dir" in str(caught.value)
