"""The population pass with a served model: every row once, the plain oracle's numbers, the same bytes however it is run."""

import hashlib
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from population.toy_job import files

from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import ConfigError, DataError, StaleRunError
from scaletot_jax.population import score as stage
from scaletot_jax.population import scoring
from scaletot_jax.population.model import load_model, serve
from scaletot_jax.population.score import Options, score_table
from scaletot_jax.population.worker import Worker, find_worker
from scaletot_jax.profiles.table import validate

ROWS = Options(shard_rows=300, batch_rows=128)


@pytest.fixture(scope="module")
def whole(served, users, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert score_table(served.directory, users, out, ROWS)
    return out


@pytest.fixture(scope="module")
def table(whole):
    return pa.concat_tables([pq.read_table(path) for path in sorted(whole.glob("part-*.parquet"))])


def test_every_row_once_with_what_the_plain_path_says(served, whole, table):
    population = build_table(1000, seed=4)
    assert table["row"].to_pylist() == list(range(1000))
    assert table["user_id"].to_pylist() == population["user_id"].to_pylist()
    want = serve(
        served.params, spec=served.spec, inputs=Inputs(*served.space.encode(validate(population, served.schema)))
    )
    got = table["embedding"].combine_chunks().flatten().to_numpy().reshape(1000, 8)
    np.testing.assert_allclose(got, want.embedding, atol=2e-3 * float(np.abs(want.embedding).max()))
    for target, label in zip(served.spec.targets, want.labels):
        for name, values in (("expected", label.mean), ("p_positive", label.positive)):
            np.testing.assert_allclose(table[f"{name}_{target.column}"], values, rtol=1e-4, atol=1e-5)
        days = np.stack([table[f"q{q}_{target.column}"].to_numpy() for q in (10, 50, 90)], 1)
        # at a step of the distribution rounding may fall on either side
        assert np.isclose(days, label.quantiles, rtol=1e-3, atol=1e-4).mean() > 0.995
        assert (np.diff(days, axis=1) >= 0).all()
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 8)


def test_the_manifest_states_rows_ranges_hashes_and_what_made_them(served, whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    ranges = [(e["first_row"], e["last_row"], e["first_id"], e["last_id"]) for e in manifest["shards"]]
    assert ranges[1:3] == [(300, 599, "u0000300", "u0000599"), (600, 899, "u0000600", "u0000899")]
    assert manifest["rows"] == 1000 and manifest["model"] == served.fingerprint and manifest["dim"] == 8
    assert {"schema", "code", "table"} <= set(manifest)
    for entry in manifest["shards"]:
        assert hashlib.sha256((whole / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_again_is_a_no_op(served, users, whole, monkeypatch):
    monkeypatch.setattr(scoring, "score_shards", lambda *_: pytest.fail("a recorded shard was computed again"))
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert score_table(served.directory, users, whole, ROWS)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_equal_profiles_are_computed_once_to_the_same_bytes(served, tmp_path, monkeypatch):
    """Also across blocks: a block of 64 rows, shards of several."""
    population = build_table(700, seed=6)
    picked = np.random.default_rng(0).integers(0, 40, 700)
    repeated = population.take(pa.array(picked)).set_column(0, "user_id", population["user_id"])
    pq.write_table(repeated, tmp_path / "t.parquet")
    monkeypatch.setattr(scoring, "BLOCK", 64)
    sizes = []
    real = stage.compile_columns

    def counting(*args, **kwargs):
        compute = real(*args, **kwargs)
        return lambda inputs: sizes.append(len(inputs.cat)) or compute(inputs)

    monkeypatch.setattr(stage, "compile_columns", counting)
    for form in ("rows", "distinct"):
        score_table(served.directory, tmp_path / "t.parquet", tmp_path / form, Options(300, 128, form=form))
        if form == "rows":
            assert sum(sizes) == 700
            sizes.clear()
    assert len(sizes) == 3 and max(sizes) <= 40
    assert files(tmp_path / "distinct") == files(tmp_path / "rows")


def test_four_workers_in_any_order_leave_the_bytes_of_one(served, users, whole, tmp_path):
    done = [score_table(served.directory, users, tmp_path, ROWS, Worker(i, 4)) for i in (2, 0, 3, 1)]
    assert done == [False, False, False, True]
    assert files(tmp_path) == files(whole)


def test_one_file_or_many_are_the_same_rows(served, users, whole, tmp_path):
    """The shards differ in the fingerprint they carry alone."""
    pq.write_table(
        pa.concat_tables([pq.read_table(f) for f in sorted(users.glob("*.parquet"))]), tmp_path / "one.parquet"
    )
    score_table(served.directory, tmp_path / "one.parquet", tmp_path / "out", ROWS)
    for path in sorted(whole.glob("part-*")):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "out" / path.name))


def test_int8_is_within_half_a_step(served, users, whole, table, tmp_path):
    score_table(served.directory, users, tmp_path, Options(300, 128, embedding="int8"))
    got = pa.concat_tables([pq.read_table(path) for path in sorted(tmp_path.glob("part-*.parquet"))])
    assert got.schema.field("embedding").type == pa.list_(pa.int8(), 8) and got["scale"].type == pa.float32()
    codes = got["embedding"].combine_chunks().flatten().to_numpy().reshape(1000, 8)
    scale = got["scale"].to_numpy()[:, None]
    half = table["embedding"].combine_chunks().flatten().to_numpy().reshape(1000, 8).astype(np.float32)
    assert (np.abs(codes).max(1) == 127).all()
    assert (np.abs(codes * scale - half) <= scale / 2 + np.abs(half) * 2**-10 + 1e-6).all()
    assert got["expected_lt30"].equals(table["expected_lt30"])


def test_without_embeddings_and_with_one_compiled_program(served, users, table, tmp_path, caplog):
    with jax.log_compiles():
        score_table(served.directory, users, tmp_path, Options(300, 128, embedding="none"))
    assert sum("Compiling jit(_columns)" in record.getMessage() for record in caplog.records) == 1
    got = pa.concat_tables([pq.read_table(path) for path in sorted(tmp_path.glob("part-*.parquet"))])
    assert "embedding" not in got.column_names and got["q90_ltv30"].equals(table["q90_ltv30"])


@pytest.mark.parametrize("change", ["model", "schema", "table", "option", "code"])
def test_what_changed_is_refused_and_shown(served, users, whole, tmp_path, monkeypatch, change):
    options, source, model = ROWS, users, served.directory
    if change in ("model", "schema"):
        from population.conftest import SMALL

        from scaletot_jax.population.untrained import write_untrained_model

        schema = served.schema.model_copy(update={"title": "somebody else"}) if change == "schema" else served.schema
        sample = validate(build_table(400, seed=3), schema)
        model = write_untrained_model(
            tmp_path / "other", sample, schema, **SMALL, seed=int(change == "model")
        ).directory
    elif change == "table":
        source = tmp_path / "other"
        source.mkdir()
        for file in users.glob("*.parquet"):
            (source / file.name).write_bytes(file.read_bytes())
        changed = pq.read_table(source / "b.parquet")
        ages = changed["age"].to_pylist()
        ages[7] = (ages[7] or 18) + 1
        column = changed.column_names.index("age")
        pq.write_table(changed.set_column(column, "age", pa.array(ages)), source / "b.parquet", row_group_size=350)
    elif change == "option":
        options = Options(shard_rows=300, batch_rows=64)
    else:
        monkeypatch.setattr(stage, "__version__", "9.9")
    with pytest.raises(StaleRunError, match={"option": "batch_rows: 128 -> 64", "code": "9.9"}.get(change, change)):
        score_table(model, source, whole, options)


def test_bad_values_are_named_with_row_and_file_and_leave_nothing(served, tmp_path):
    table = build_table(500, seed=1)
    device = table["device"].to_pylist()
    device[421] = "abacus"
    pq.write_table(table.set_column(5, "device", pa.array(device)), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"row 421, field 'device', value 'abacus'"):
        score_table(served.directory, tmp_path / "t.parquet", tmp_path / "out", Options(300, 128))
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"job.json", "records", "part-00000.parquet"}


def test_an_embedding_beyond_float16_is_refused_with_its_row(served, users, tmp_path, monkeypatch):
    real = stage.compile_columns

    def huge(*args, **kwargs):
        compute = real(*args, **kwargs)

        def broken(inputs):
            out = compute(inputs)
            out["finite"][17] = len(out["finite"]) == 300
            return out

        return broken

    monkeypatch.setattr(stage, "compile_columns", huge)
    with pytest.raises(DataError, match=r"row 917 .*b\.parquet, row 487"):
        score_table(served.directory, users, tmp_path, ROWS)
    assert not (tmp_path / "manifest.json").exists()


def test_a_row_does_not_depend_on_its_place(served, users, tmp_path):
    """What the form distinct rests on: bit for bit the same beside other rows and in another batch."""
    job = stage.open_job(load_model(served.directory), users, tmp_path, ROWS)
    inputs = Inputs(*served.space.encode(validate(build_table(500, seed=9), served.schema)))
    whole = job.compute(inputs)
    order = np.random.default_rng(0).permutation(500)
    moved = job.compute(Inputs(*(column[order] for column in inputs)))
    assert all(whole[name][order].tobytes() == moved[name].tobytes() for name in whole)


@pytest.mark.parametrize(
    ("environ", "stated", "want"),
    [
        ({}, "", (0, 1)),
        ({}, "2/8", (2, 8)),
        ({"SCALETOT_WORKER": "1/3", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "9"}, "", (1, 3)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, "", (3, 4)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1",
          "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "2"}, "", (3, 4)),
        ({"JOB_COMPLETION_INDEX": "5", "SCALETOT_WORKERS": "6"}, "", (5, 6)),
    ],
)  # fmt: skip
def test_the_worker_is_found_in_the_environment(environ, stated, want):
    assert find_worker(environ, stated) == want


@pytest.mark.parametrize(
    ("environ", "stated"),
    [({}, "4/4"), ({}, "one"), ({"JOB_COMPLETION_INDEX": "1"}, ""), ({"SCALETOT_WORKER": "1"}, "")],
)
def test_an_impossible_worker_is_refused(environ, stated):
    with pytest.raises(ConfigError):
        find_worker(environ, stated)


def test_impossible_options_are_refused():
    for options in ({"embedding": "float64"}, {"form": "both"}, {"shard_rows": 0}):
        with pytest.raises(ConfigError):
            Options(**options)
