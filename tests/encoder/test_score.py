"""The population pass: every row once, committed by manifest, the same bytes after any kill."""

import hashlib
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import quick_compile
from encoder.made_up_run import MadeUpStudent, files, open_run

from scaletot_jax.encoder import embed, model
from scaletot_jax.encoder import score as stage_module
from scaletot_jax.encoder.artifact import load_encoder
from scaletot_jax.encoder.distill import distill
from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.population import scoring
from scaletot_jax.profiles.prepare import open_population


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compile.here(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def distilled(quick, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, open_run(tmp_path_factory.mktemp("score")) as run:
        MadeUpStudent(run).install(patch)
        distill(run)
        yield run


@pytest.fixture(scope="module")
def whole(distilled):
    stage = stage_module.score(distilled)
    return files(stage.directory)


@pytest.fixture
def scored(distilled, whole):
    """The stage's folder with the undisturbed result in it, restored before each test."""
    folder = distilled.workdir / "score"
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()
    for name, data in whole.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    distilled._finished.pop("score", None)
    return folder


def again(run):
    return stage_module.score(run)


def test_every_row_once_with_the_encoders_own_numbers(distilled, scored):
    population = open_population(distilled)
    table = pa.concat_tables([pq.read_table(path) for path in sorted(scored.glob("part-*.parquet"))])
    assert table["row"].to_pylist() == list(range(population.table.num_rows))
    assert table["user_id"].equals(population.table["user_id"])
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 8)
    encoder = load_encoder(distilled.workdir / "distill")
    want = model.encode(
        encoder.params, spec=encoder.spec, inputs=model.Inputs(*population.features.encode(population.table))
    ).embedding
    got = stage_module.read_embeddings(scored)
    np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())
    assert got.std(0).min() > 0


def test_manifest_states_rows_ranges_and_hashes(scored):
    manifest = json.loads((scored / "manifest.json").read_text())
    assert [(e["first_row"], e["last_row"], e["rows"]) for e in manifest["shards"]] == [
        (0, 149, 150),
        (150, 299, 150),
        (300, 449, 150),
        (450, 599, 150),
    ]
    for entry in manifest["shards"]:
        assert hashlib.sha256((scored / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_again_is_a_no_op(distilled, scored, monkeypatch):
    monkeypatch.setattr(scoring, "score_shards", lambda *_: pytest.fail("a recorded shard was computed again"))
    assert again(distilled).done


def test_batch_rows_do_not_depend_on_their_neighbours(distilled):
    population = open_population(distilled)
    encoder = load_encoder(distilled.workdir / "distill")
    inputs = model.Inputs(*population.features.encode(population.table.slice(0, 70)))
    encode = embed.compile_embedding(encoder.spec, encoder.params)
    whole = embed.embed_rows(encode, inputs, 64)
    tail = embed.embed_rows(encode, model.Inputs(*(c[60:] for c in inputs)), 64)
    np.testing.assert_allclose(whole[60:], tail, atol=1e-5)


def _lose_a_shard(folder):
    (folder / "part-00001.parquet").unlink()


def _change_a_shard(folder):
    data = bytearray((folder / "part-00002.parquet").read_bytes())
    data[50] ^= 255
    (folder / "part-00002.parquet").write_bytes(data)


def _empty_shard(folder):
    (folder / "part-00000.parquet").write_bytes(b"")


def _not_recorded(folder):
    (folder / "stage.json").unlink()
    (folder / "manifest.json").unlink()
    (folder / "records" / "part-00001.json").unlink()


def _torn_manifest(folder):
    (folder / "stage.json").unlink()
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def _no_manifest(folder):
    (folder / "stage.json").unlink()
    (folder / "manifest.json").unlink()


def _temporary_left(folder):
    (folder / "stage.json").unlink()
    (folder / "part-00003.parquet").rename(folder / ".part-00003.parquet.1.tmp")


HARM = [_lose_a_shard, _change_a_shard, _empty_shard, _not_recorded, _torn_manifest, _no_manifest, _temporary_left]


@pytest.mark.parametrize("harm", HARM, ids=lambda f: f.__name__[1:])
def test_any_harm_is_repaired_to_the_same_bytes(distilled, scored, whole, harm):
    harm(scored)
    again(distilled)
    assert files(scored) == whole


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["open_parquet", "arrange"])
@pytest.mark.parametrize("count", [0, 2])
def test_a_kill_of_the_stage_ends_in_the_same_bytes(distilled, scored, whole, monkeypatch, name, count):
    """Every place of a kill is tried on the commits themselves, in tests/population/test_kills.py."""
    for path in [path for path in scored.rglob("*") if path.is_file()]:
        path.unlink()
    real, calls = getattr(scoring, name), [0]

    def stopping(*args):
        calls[0] += 1
        if calls[0] > count:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(scoring, name, stopping)
        again(distilled)
    assert len(list((scored / "records").iterdir())) == count and not (scored / "stage.json").exists()
    again(distilled)
    assert files(scored) == whole


def test_shards_of_another_encoder_are_refused(distilled, scored):
    (scored / "stage.json").unlink()
    job = json.loads((scored / "job.json").read_text())
    (scored / "job.json").write_text(json.dumps({**job, "fingerprint": "0" * 16}))
    with pytest.raises(StaleRunError, match="another model"):
        again(distilled)


def test_readers_refuse_what_is_not_recorded(scored):
    _lose_a_shard(scored)
    with pytest.raises(DataError, match="part-00001"):
        stage_module.read_embeddings(scored)
    _no_manifest(scored)
    with pytest.raises(DataError, match="not scored completely"):
        stage_module.read_embeddings(scored)


def test_an_embedding_beyond_float16_is_refused(distilled, scored, monkeypatch):
    _lose_a_shard(scored)
    real = stage_module.compile_columns

    def huge(params, *args, **kwargs):
        return real({"encoder": jax.tree.map(lambda leaf: leaf * 1e4, params["encoder"])}, *args, **kwargs)

    monkeypatch.setattr(stage_module, "compile_columns", huge)
    with pytest.raises(DataError, match="row 150"):
        again(distilled)


def test_one_compiled_program_for_all_batches(distilled):
    population = open_population(distilled)
    encoder = load_encoder(distilled.workdir / "distill")
    inputs = model.Inputs(*population.features.encode(population.table))
    encode = embed.compile_embedding(encoder.spec, encoder.params)
    embed.embed_rows(encode, model.Inputs(*(c[:50] for c in inputs)), 50)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        shapes = set()
        patch.setattr(embed, "apply", None)  # a second trace would fail
        embed.embed_rows(lambda batch: shapes.add(batch.cat.shape) or encode(batch), inputs, 50)
    assert shapes == {(50, inputs.cat.shape[1])}
