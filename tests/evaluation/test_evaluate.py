"""The evaluate stage on a made-up run: complete, reproducible, and refusing when a user was trained on."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoder.made_up_run import MadeUpStudent, open_run

from scaletot_jax.encoder.distill import distill
from scaletot_jax.encoder.model import Inputs
from scaletot_jax.encoder.score import read_embeddings, score
from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.evaluation import evaluate as stage_module
from scaletot_jax.evaluation import slices
from scaletot_jax.evaluation.baselines.registry import FITS, SYSTEMS, fit_baselines
from scaletot_jax.evaluation.comparison import METRICS, WITH, WITHOUT
from scaletot_jax.evaluation.feature_sets import feature_sets
from scaletot_jax.evaluation.verdict import HELPED, HURT, UNDECIDED
from scaletot_jax.population import export as export_module
from scaletot_jax.population.export import export_model
from scaletot_jax.population.model import FILES, load_model, serve
from scaletot_jax.profiles.prepare import open_population

# The others are fitted in test_baselines.py.
CHEAP = {
    name: FITS[name] for name in ("segment_mean", "profile_mean", "sentence_ridge", "student_answer", "mapped_latent")
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as patch,
        open_run(tmp_path_factory.mktemp("evaluate"), evaluate__sentence_rows=0) as run,
    ):
        MadeUpStudent(run).install(patch)
        patch.setattr(stage_module, "fit_baselines", lambda known, target: fit_baselines(known, target, CHEAP))
        distill(run)
        score(run)
        stage = stage_module.evaluate(run)
        yield run, stage, json.loads(stage.path("metrics.json").read_text())


def test_report_is_complete(evaluated):
    run, _, report = evaluated
    table = open_population(run).table
    assert report["rows"]["test"] == table["split"].to_pylist().count("test") == report["rows"]["test_groups"]
    assert set(report["targets"]) == {"lt30", "ltv30"}
    for target in report["targets"].values():
        assert list(target["features"]) == ["static", "static+early"]
        for found in target["features"].values():
            assert set(found["systems"]) | set(found["absent"]) == {
                name for name in SYSTEMS if (name in CHEAP or name not in FITS) and name != "encoder_pooled"
            }
            assert not set(found["systems"]) & set(found["absent"])
            assert {"encoder_labels", "segment_mean", "mapped_latent"} <= set(found["systems"])
            assert found["absent"]["sentence_ridge"]["why"] and found["absent"]["encoder_random"]["note"] == "not run"
            assert set(found["systems"][WITH]) == {*METRICS[target["kind"]], "by_seed"}
            assert set(found["differences"]) == {f"{WITH} - {other}" for other in found["systems"] if other != WITH}
            required = found["differences"][f"{WITH} - {WITHOUT}"]["spearman"]
            assert required["p_holm"] >= required["p"] and found["verdict"]["not_run"] == [
                "encoder_shuffled",
                "encoder_random",
                "encoder_prompt_end",
            ]
            assert found["verdict"]["word"] in (HELPED, HURT, UNDECIDED)
    assert report["verdict"] == report["targets"]["lt30"]["features"]["static+early"]["verdict"]
    assert report["audit"]["overlap"] == 0 and report["audit"]["trained_groups"] > 100


def test_slices_are_by_the_coarse_profile_of_the_fields_in_use(evaluated):
    """Oracle: the bins of schemas/synthetic.yaml by hand: age and plan, and with early fields visits."""
    run, _, report = evaluated
    table = open_population(run).table
    age = np.digitize(np.nan_to_num(np.array(table["age"].to_pylist(), float), nan=-1), [0, 30, 45, 60])
    visits = np.digitize(table["visits_30"].to_numpy(), [1, 3, 8])
    split = np.array(table["split"].to_pylist())
    test, rows = split == "test", {"head": split == "head", "teacher": np.zeros(len(split), bool)}
    rows["teacher"][pq.read_table(run.workdir / "teach" / "profiles.parquet")["row"].to_numpy()] = True
    for features, columns in (
        ("static", (age, table["plan"].to_numpy())),
        ("static+early", (age, table["plan"].to_numpy(), visits)),
    ):
        profile = np.array(list(map(str, zip(*columns))))
        for target in report["targets"].values():
            found = target["features"][features]["slices"]
            assert set(found) == {"teacher", "head"}
            for name, known in rows.items():
                seen = int(np.isin(profile[test], profile[known]).sum())
                if seen in (0, test.sum()):
                    assert found[name]["note"] == slices.NOT_APPLICABLE
                else:
                    assert [found[name][side]["rows"] for side in slices.SIDES] == [seen, test.sum() - seen]


def test_early_behaviour_does_not_reach_the_static_comparison(evaluated):
    """visits_30 tells most about lt30: with it every network must order users clearly better than without."""
    _, _, report = evaluated
    features = report["targets"]["lt30"]["features"]
    for system in (WITHOUT, WITH):
        rho = {name: found["systems"][system]["spearman"]["estimate"] for name, found in features.items()}
        assert rho["static+early"] > rho["static"] + 0.1


def test_static_embeddings_ignore_early_columns(evaluated):
    run, *_ = evaluated
    population = open_population(run)
    sets = feature_sets(run, population, 0)
    changed = population.table.set_column(
        population.table.column_names.index("visits_30"), "visits_30",
        pa.chunked_array([pa.array(np.full(population.table.num_rows, 9), population.table.schema.field("visits_30").type)]),
    )  # fmt: skip
    other = feature_sets(run, population._replace(table=changed), 0)
    np.testing.assert_array_equal(other["static"].z, sets["static"].z)
    np.testing.assert_array_equal(other["static"].dense, sets["static"].dense)
    np.testing.assert_array_equal(other["static"].coarse, sets["static"].coarse)
    assert (other["static+early"].dense != sets["static+early"].dense).any()
    assert np.abs(sets["static"].z - sets["static+early"].z).max() > 1e-2


def test_predictions_are_those_of_the_metrics(evaluated):
    _, stage, report = evaluated
    table = pq.read_table(stage.path("predictions.parquet"))
    rows = [r for r in table.to_pylist() if (r["target"], r["features"], r["system"]) == ("lt30", "static+early", WITH)]
    assert len(rows) == report["rows"]["test"]
    error = np.sqrt(np.mean([(r["expected"] - r["label"]) ** 2 for r in rows]))
    assert error == pytest.approx(
        report["targets"]["lt30"]["features"]["static+early"]["systems"][WITH]["rmse"]["estimate"], rel=1e-5
    )


def test_again_gives_the_same_bytes(evaluated):
    run, stage, _ = evaluated
    before = {name: stage.path(name).read_bytes() for name in ("metrics.json", "predictions.parquet")}
    assert stage_module.evaluate(run).done
    stage.path("stage.json").unlink()
    stage = stage_module.evaluate(run)
    assert {name: stage.path(name).read_bytes() for name in before} == before


@pytest.mark.parametrize("used", ["teach/profiles.parquet", "osipo/users.parquet", "distill/profiles.parquet"])
def test_a_test_user_that_was_trained_on_is_refused(evaluated, used):
    """The planted leak: one group of the test split among those that were reasoned about, rewarded or distilled."""
    run, *_ = evaluated
    population = open_population(run)
    path = run.workdir / used
    original = path.read_bytes()
    split, groups = population.table["split"].to_pylist(), population.table["group"].to_pylist()
    leak = split.index("test")
    table = pq.read_table(path)
    rows, names = table["row"].to_pylist(), table["group"].to_pylist()
    rows[0], names[0] = leak, groups[leak]
    try:
        for column, values in (("row", rows), ("group", names)):
            table = table.set_column(
                table.column_names.index(column), column, pa.array(values, table.schema.field(column).type)
            )
        pq.write_table(table, path)
        with pytest.raises(DataError, match=f"split 'test' were used[\\s\\S]*'{groups[leak]}'"):
            stage_module._audit(run, population, np.asarray(groups, object))
    finally:
        path.write_bytes(original)


@pytest.fixture(scope="module")
def exported(evaluated, tmp_path_factory):
    return export_model(evaluated[0], tmp_path_factory.mktemp("served") / "model")


def test_the_exported_model_says_what_was_judged(evaluated, exported):
    """The embedding is the encoder's own; labels up to ẑ's rounding to float16, on which the heads learnt."""
    run, stage, _ = evaluated
    inputs = Inputs(*exported.space.encode(open_population(run).table))
    got = serve(exported.params, spec=exported.spec, inputs=inputs)
    want = read_embeddings(run.workdir / "score")
    np.testing.assert_allclose(got.embedding, want, atol=2e-3 * np.abs(want).max())
    table = pq.read_table(stage.path("population.parquet"))
    for target, label in zip(exported.spec.targets, got.labels):
        for name, values in (("expected", label.mean), ("p_positive", label.positive)):
            judged = table[f"{name}_{target.column}"].to_numpy()
            np.testing.assert_allclose(values, judged, rtol=5e-3, atol=1e-3)
            assert judged.std() > 0
        assert (np.diff(label.quantiles, axis=1) >= 0).all() and label.quantiles.max() <= target.cap + target.horizon


def test_an_export_has_a_reference_and_the_programs_asked_for(evaluated, exported, tmp_path, monkeypatch):
    table = open_population(evaluated[0]).table
    train = sum(split in ("teacher", "distill", "head") for split in table["split"].to_pylist())
    assert exported.reference["rows"] == train and len(exported.reference["scores"]) == 4
    asked = []
    monkeypatch.setattr(export_module, "write_exports", lambda *arguments: asked.append(arguments))
    model = export_model(evaluated[0], tmp_path / "model", ("onnx",))
    assert asked[0][0].fingerprint == model.fingerprint and asked[0][1] == ("onnx",) and asked[0][2].equals(table)
    assert model.directory == tmp_path / "model" and load_model(model.directory).fingerprint == model.fingerprint


def test_an_export_is_the_same_when_made_again_and_takes_no_folder_of_others(
    evaluated, exported, tmp_path, monkeypatch
):
    run, out = evaluated[0], exported.directory
    again = export_model(run, tmp_path / "again")
    assert {path.name for path in out.iterdir()} == {*FILES, "probe.safetensors", "model.json"}
    assert all(
        (out / name).read_bytes() == (again.directory / name).read_bytes()
        for name in (*FILES, "probe.safetensors", "model.json")
    )
    assert export_model(run, again.directory).fingerprint == exported.fingerprint

    def nobody(*arguments):
        raise DataError("no chain is shared")

    monkeypatch.setattr(export_module, "collect", nobody)
    with pytest.raises(DataError, match="no chain is shared"):
        export_model(run, again.directory, min_users=2)
    assert load_model(again.directory).fingerprint == exported.fingerprint  # the earlier one stays
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StaleRunError, match="other things"):
        export_model(run, tmp_path)
