"""The stage: its artifacts, their bytes, its summary, and what it refuses."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaletot_jax.config import default_config
from scaletot_jax.datasets import synthetic
from scaletot_jax.datasets.load import load
from scaletot_jax.errors import ConfigError, DataError, StaleRunError
from scaletot_jax.profiles.prepare import ARTIFACTS, open_population, prepare
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.split import SPLITS, TRAIN
from scaletot_jax.run import Run


def recipe(**data):
    config = default_config()
    config.data.name = "synthetic"
    config.data.limit = 300
    for key, value in data.items():
        config.data[key] = value
    return config.to_dict()


def prepared(workdir, config):
    with Run(workdir, config) as run:
        stage = prepare(run)
        return stage, open_population(run)


def test_artifacts(tmp_path):
    stage, population = prepared(tmp_path, recipe())
    table = population.table
    assert table.column_names[:6] == ["row", "user_id", "group", "split", "exact_key", "coarse_key"]
    assert table["row"].to_pylist() == list(range(300))
    users = table["user_id"].to_pylist()
    assert users == sorted(users)
    assert {"age", "interests", "lt30", "ltv30"} <= set(table.column_names)
    assert {field.name for field in population.fields} == {field.name for field in population.schema.fields}
    summary = stage.summary()
    assert summary["rows"] == summary["users"] == 300 and sum(summary["splits"].values()) == 300
    counts = {item["values"]: item["counts"] for item in table["split"].value_counts().to_pylist()}
    assert {name: counts[name] for name in SPLITS} == {name: summary["splits"][name] for name in SPLITS}
    lt30 = np.array(table["lt30"])
    assert summary["labels"]["lt30"]["zero_share"] == pytest.approx((lt30 == 0).mean())
    assert summary["missing"]["age"] == table["age"].null_count / 300
    assert summary["distinct_profiles"]["exact"] == len(set(table["exact_key"].to_pylist()))
    assert summary["repetition"]["coarse"] > summary["repetition"]["exact"]
    assert summary["example_prompt"] == population.renderer.text(table.to_pylist()[0])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        prepared(tmp_path / name, recipe())
    for artifact in (*ARTIFACTS, "stage.json"):
        assert (tmp_path / "one/prepare" / artifact).read_bytes() == (
            tmp_path / "other/prepare" / artifact
        ).read_bytes()


def test_a_second_call_redoes_nothing(tmp_path):
    prepared(tmp_path, recipe())
    before = {name: (tmp_path / "prepare" / name).stat().st_mtime_ns for name in ARTIFACTS}
    prepared(tmp_path, recipe())
    assert before == {name: (tmp_path / "prepare" / name).stat().st_mtime_ns for name in ARTIFACTS}


def test_fitted_on_training_rows_without_labels(tmp_path):
    """Changing labels anywhere, or evaluation rows, changes neither renderer nor features."""
    base = synthetic.build_table(300, seed=0)
    pq.write_table(base, tmp_path / "users.parquet")
    own = {"name": "parquet", "path": str(tmp_path / "users.parquet"), "schema": "synthetic", "limit": 0}
    _, population = prepared(tmp_path / "one", recipe(**own))
    train = np.isin(population.table["split"].to_pylist(), TRAIN)  # rows are sorted as the generator makes them
    assert population.table["user_id"].to_pylist() == base["user_id"].to_pylist()

    changes = {
        "lt30": pa.array(30 - base["lt30"].to_numpy()),
        "visits_30": pa.array(np.where(train, base["visits_30"].to_numpy(), 0)),
        "city": pa.array(np.where(train, np.array(base["city"].to_pylist()), "Zoo")),
    }
    changed = base
    for name, column in changes.items():
        changed = changed.set_column(changed.column_names.index(name), name, column)
    pq.write_table(changed, tmp_path / "users.parquet")
    _, other = prepared(tmp_path / "other", recipe(**own))
    assert other.renderer == population.renderer and other.features == population.features


def test_prompts_hold_no_identifier(tmp_path):
    _, population = prepared(tmp_path, recipe())
    texts = population.renderer.texts(population.table)
    assert not any(user in text for user, text in zip(population.table["user_id"].to_pylist(), texts))


def test_a_changed_input_file_is_another_stage(tmp_path):
    path = tmp_path / "users.parquet"
    own = recipe(name="parquet", path=str(path), schema="synthetic")
    pq.write_table(synthetic.build_table(200, seed=0), path)
    prepared(tmp_path / "run", own)
    pq.write_table(synthetic.build_table(200, seed=1), path)
    with pytest.raises(StaleRunError, match="sha256"):
        prepared(tmp_path / "run", own)


def test_static_fields_alone(tmp_path):
    _, population = prepared(tmp_path, recipe(profile_fields="static"))
    assert [field.name for field in population.fields] == ["age", "city", "plan", "interests", "device"]
    assert not any("visit" in text for text in population.renderer.texts(population.table))
    assert "visits_30" not in population.features.number_fields
    assert "visits_30" in population.table.column_names  # evaluation reads it for the other set of fields


def test_surplus_columns_are_reported(tmp_path):
    table = synthetic.build_table(200, seed=0).append_column("hobby", pa.array(["x"] * 200))
    pq.write_table(table, tmp_path / "users.parquet")
    config = recipe(name="parquet", path=str(tmp_path / "users.parquet"), schema="synthetic")
    stage, population = prepared(tmp_path / "run", config)
    assert stage.summary()["surplus_columns"] == ["hobby"] and "hobby" not in population.table.column_names


def test_limit_is_nested_and_by_user():
    data = recipe(limit=0)["data"]
    own = {**data, "limit": 100}
    table = synthetic.build_table(300, seed=0)
    from scaletot_jax.datasets.load import Source, select
    from scaletot_jax.profiles.schema import load_schema

    source = Source(table, load_schema("synthetic"), "users.parquet")
    small, large = (set(select(source, {**own, "limit": n}, seed=4)["user_id"].to_pylist()) for n in (100, 200))
    assert len(small) == 100 and len(large) == 200 and small < large
    assert small != set(select(source, own, seed=5)["user_id"].to_pylist())


def test_low_activity_rows_only():
    from scaletot_jax.datasets.load import Source, select
    from scaletot_jax.profiles.schema import Schema

    stated = load_schema("synthetic").to_dict()
    narrow = Schema.from_dict({**stated, "low_activity": {"field": "visits_30", "at_most": 1}})
    source = Source(synthetic.build_table(300, seed=0), narrow, "users.parquet")
    data = {**recipe()["data"], "limit": 0}
    assert max(select(source, data)["visits_30"].to_pylist()) == 1
    assert max(select(source, {**data, "low_activity": False})["visits_30"].to_pylist()) > 1
    none = Schema.from_dict({**stated, "low_activity": {"field": "visits_30", "at_most": -1}})
    with pytest.raises(DataError, match=r"no row belongs[\s\S]*users.parquet[\s\S]*visits_30 <= -1"):
        select(Source(source.table, none, "users.parquet"), data)


def test_rows_of_unknown_activity_are_counted_and_named(tmp_path, capsys):
    stated = load_schema("synthetic").to_dict()
    table = synthetic.build_table(600, seed=0)
    visits = [None if i % 10 == 0 else v for i, v in enumerate(table["visits_30"].to_pylist())]
    table = table.set_column(
        table.column_names.index("visits_30"), "visits_30", pa.array(visits, table["visits_30"].type)
    )
    pq.write_table(table, tmp_path / "users.parquet")
    (tmp_path / "schema.yaml").write_text(json.dumps({**stated, "low_activity": {"field": "visits_30", "at_most": 9}}))
    config = recipe(name="parquet", path=str(tmp_path / "users.parquet"), schema=str(tmp_path / "schema.yaml"), limit=0)
    stage, population = prepared(tmp_path / "run", config)
    left_out = stage.summary()["left_out"]
    assert left_out == {"rows": 600 - population.table.num_rows, "activity_unknown": 60} and left_out["rows"] > 60
    assert "60 of 600 rows left out: visits_30 is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({"name": "parquet", "path": "none.parquet", "schema": "synthetic"}, DataError, ["missing", "none.parquet"]),
        ({"name": "parquet", "path": "", "schema": "synthetic"}, DataError, ["missing", "data.path"]),
        ({"name": "parquet", "path": "x.parquet", "schema": ""}, ConfigError, ["data.schema"]),
        ({"name": "parquet", "path": "x.parquet", "schema": "none.yaml"}, DataError, ["none.yaml", "synthetic"]),
        ({"limit": 3}, DataError, ["a split has no row", "3 groups"]),
    ],
)
def test_bad_configurations(tmp_path, data, error, words):
    with pytest.raises(error) as caught:
        prepared(tmp_path, recipe(**data))
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "prepare" / "stage.json").exists()


def test_a_bad_file_names_file_row_field_and_reason(tmp_path):
    table = synthetic.build_table(50, seed=0)
    days = table["lt30"].to_numpy().copy()
    days[17] = 31
    table = table.set_column(table.column_names.index("lt30"), "lt30", pa.array(days))
    pq.write_table(table, tmp_path / "users.parquet")
    data = recipe(name="parquet", path=str(tmp_path / "users.parquet"), schema="synthetic")["data"]
    with pytest.raises(DataError) as caught:
        load(data)
    for word in ("users.parquet", "row 17", "field 'lt30'", "value 31", "outside 0..30"):
        assert word in str(caught.value)


def test_the_renderer_file_is_plain_json(tmp_path):
    prepared(tmp_path, recipe())
    stated = json.loads((tmp_path / "prepare/renderer.json").read_text())
    assert {field["name"] for field in stated["fields"]} == {
        "age",
        "city",
        "plan",
        "interests",
        "device",
        "visits_30",
        "days_since_last_visit",
    }


def test_a_shift_between_two_values_of_a_field(tmp_path):
    config = recipe(limit=600)
    config["split"] |= {"shift_field": "city", "shift_train": "Arden", "shift_test": "Brook"}
    _, population = prepared(tmp_path / "shift", config)
    found = {(city, split) for city, split in zip(*(population.table[n].to_pylist() for n in ("city", "split")))}
    assert {split for city, split in found if city == "Arden"} == {"teacher", "distill", "head", "val"}
    assert {split for city, split in found if city == "Brook"} == {"test"}
    assert {split for city, split in found if city not in ("Arden", "Brook")} == {"unused"}
    for field, value, told in (("city", "Nowhere", "it has Arden, Brook"), ("age", "30", "field of words")):
        config["split"] |= {"shift_field": field, "shift_test": value}
        with pytest.raises(ConfigError, match=told):
            prepared(tmp_path / field, config)
