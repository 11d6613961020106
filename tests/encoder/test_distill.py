"""The distill stage on made-up states of known mean and noise: it finds the layer, reaches the ceiling, resumes exactly."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import quick_compile
from encoder.made_up_run import BEST_LAYER, SEGMENTS, MadeUpStudent, files, open_run

from scaletot_jax.encoder import collect, fit, placebos
from scaletot_jax.encoder import distill as stage_module
from scaletot_jax.encoder.artifact import load_encoder
from scaletot_jax.encoder.blocks import plan_blocks, read_states
from scaletot_jax.encoder.embed import embed
from scaletot_jax.encoder.selection import choose_profiles
from scaletot_jax.encoder.transfer import TRAINED, UNSEEN
from scaletot_jax.errors import ConfigError, DataError, StaleRunError
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.sinks import Sinks


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compile.here(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, open_run(tmp_path_factory.mktemp("distill")) as run:
        made = MadeUpStudent(run).install(patch)
        stage = stage_module.distill(run)
        yield run, stage, made


def test_chooses_the_layer_that_tells_most(finished):
    _, stage, _ = finished
    probe = json.loads(stage.path("probe.json").read_text())
    assert probe["layer"] == BEST_LAYER == stage.summary()["layer"]
    assert max(probe["r2"], key=probe["r2"].get) == str(BEST_LAYER) and probe["r2"][str(BEST_LAYER)] > 0.1
    assert probe["label_users"] == "distill split"


def test_transfer_nears_the_ceiling_and_is_reported_by_segment(finished):
    _, stage, _ = finished
    evidence = stage.summary()["transfer"][UNSEEN]
    assert [row["segment"] for row in evidence] == list(SEGMENTS)
    for row in evidence:
        assert row["held_out"] >= 5 and 1 < row["effective_rank"] < 5
        assert 0.8 < row["ceiling_by_variance"] <= 1
        assert 0.7 * row["ceiling_by_variance"] < row["r2_by_variance"] <= 1
        assert row["retrieval"]["mrr"] > 2 * row["retrieval"]["chance_mrr"]
        assert row["share_of_ceiling"] == pytest.approx(row["r2"] / row["ceiling"]) and 0.5 < row["cka"] < 1.2
    slices = stage.summary()["transfer_slices"]
    assert {"sparse", "rich"} <= set(slices)
    for name, found in slices.items():
        assert found is None or all(30 <= row["held_out"] <= evidence[0]["held_out"] for row in found), name
    skill = stage.summary()["label_skill"]
    assert skill["low"] < skill["estimate"] < skill["high"] <= 1


def test_evidence_for_groups_the_language_model_never_saw_is_apart(finished):
    """Oracle: the group's split, which the stage does not look at: it asks the earlier stages whom they used."""
    run, stage, _ = finished
    used = pq.read_table(stage.path("profiles.parquet")).to_pylist()
    split = dict(zip(*(open_population(run).table[name].to_pylist() for name in ("group", "split"))))
    keys = {
        key
        for key, name in zip(*(open_population(run).table[name].to_pylist() for name in ("exact_key", "split")))
        if name == "teacher"
    }
    held_out = [row for row in used if row["part"] == "held_out"]
    unseen = [row for row in held_out if split[row["group"]] != "teacher"]
    assert 0 < len(unseen) < len(held_out)
    summary = stage.summary()
    for row in summary["transfer"][UNSEEN]:
        assert row["held_out"] == len(unseen)
    for row in summary["transfer"][TRAINED]:
        assert row["held_out"] == len(held_out) - len(unseen)
    assert summary["profiles"]["held_out"] == len(held_out)
    assert summary["profiles"]["held_out_unseen_groups"] == len(unseen)
    assert summary["profiles"]["of_them_with_a_trained_profile"] == sum(row["exact_key"] in keys for row in unseen)


def test_only_teacher_and_distill_users_and_no_labels(finished):
    run, stage, _ = finished
    table = open_population(run).table
    used = pq.read_table(stage.path("profiles.parquet"))
    split = np.array(table["split"].to_pylist())[used["row"].to_numpy()]
    assert set(zip(split, used["source"].to_pylist())) == {("teacher", "teacher"), ("distill", "distill")}
    assert stage.summary()["labels_used_for_training"] is False
    parts = dict(zip(used["group"].to_pylist(), used["part"].to_pylist()))
    assert all(parts[g] == p for g, p in zip(used["group"].to_pylist(), used["part"].to_pylist())), (
        "a group lies in one part"
    )
    assert len(set(used["exact_key"].to_pylist())) == used.num_rows


def test_a_finished_stage_is_not_run_again(finished):
    run, stage, made = finished
    calls = made.calls
    assert stage_module.distill(run).fingerprint == stage.fingerprint and made.calls == calls


def test_the_encoder_is_bound_to_its_feature_space(finished):
    _, stage, _ = finished
    encoder = load_encoder(stage.directory)
    assert encoder.spec.segments == SEGMENTS and len(encoder.whitening) == 2
    with pytest.raises(StaleRunError, match="another feature space"):
        load_encoder(stage.directory, features_sha256="0" * 64)


def test_weights_of_another_file_are_refused(finished, tmp_path):
    _, stage, _ = finished
    for name in ("encoder.json", "encoder.safetensors"):
        (tmp_path / name).write_bytes(stage.path(name).read_bytes())
    weights = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(weights)
    with pytest.raises(DataError, match="do not belong together"):
        load_encoder(tmp_path)


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", ["second block", "after the probe", "first checkpoint", "before the end"])
def test_killed_and_continued_gives_the_same_bytes(finished, tmp_path, moment):
    whole = files(finished[1].directory)
    close, failures = Sinks.close, []
    with open_run(tmp_path) as run:
        with pytest.MonkeyPatch.context() as patch:
            made = MadeUpStudent(run).install(patch)
            patch.setattr(Sinks, "close", lambda *args, failed=False: close(*args) or failures.append(failed))

            def stop_after(function, count):
                calls = [0]

                def stopping(*args, **kwargs):
                    if calls[0] == count:
                        raise Killed
                    calls[0] += 1
                    return function(*args, **kwargs)

                return stopping

            if moment == "second block":
                patch.setattr(collect, "reasoning_states", stop_after(made.states, 1))
            elif moment == "after the probe":
                patch.setattr(stage_module.store, "read_states", stop_after(stage_module.store.read_states, 3))
            elif moment == "first checkpoint":
                patch.setattr(fit, "train_block", stop_after(fit.train_block, 1))
            else:
                patch.setattr(stage_module, "save_encoder", stop_after(stage_module.save_encoder, 0))
            with pytest.raises(Killed):
                stage_module.distill(run)
        assert failures == {"first checkpoint": [True], "before the end": [False]}.get(moment, [])
        with pytest.MonkeyPatch.context() as patch:
            again = MadeUpStudent(run).install(patch)
            stage = stage_module.distill(run)
            assert again.calls == (0 if moment in ("first checkpoint", "before the end") else again.calls)
    assert files(stage.directory) == whole


def test_damaged_units_of_a_killed_stage_are_made_again(finished, tmp_path, capsys):
    def killed(*_, **__):
        raise Killed

    whole = files(finished[1].directory)
    with open_run(tmp_path) as run:
        with pytest.MonkeyPatch.context() as patch:
            MadeUpStudent(run).install(patch)
            patch.setattr(stage_module, "write_table", killed)  # all is trained
            with pytest.raises(Killed):
                stage_module.distill(run)
        folder = run.workdir / "distill"
        block, log = folder / "states" / "block-00001.safetensors", folder / "steps.jsonl"
        honest = log.read_text()
        with pytest.MonkeyPatch.context() as patch:
            again = MadeUpStudent(run).install(patch)
            log.write_text(honest.replace("0.", "1.", 1))
            with pytest.raises(DataError, match=r"steps\.jsonl"):
                stage_module.distill(run)
            log.write_text(honest)
            block.write_bytes(block.read_bytes()[:-1] + b"\x7f")
            (folder / "placebos" / "labels" / "encoder.safetensors").write_bytes(b"")
            stage_module.distill(run)
            assert again.calls == 1
    assert files(folder) == whole
    assert capsys.readouterr().err.count("is not what was written; it is made again") >= 2


def test_blocks_hold_every_profile_once(finished):
    _, stage, _ = finished
    used = pq.read_table(stage.path("profiles.parquet"))
    states = read_states(stage.directory, plan_blocks(used.num_rows), BEST_LAYER)
    assert states.shape == (used.num_rows, 3, len(SEGMENTS), 24)


def test_placebos_are_trained_beside_it_and_embed_every_row(finished):
    run, stage, _ = finished
    encoders = placebos.load_placebos(run)
    assert list(encoders) == list(run.config["distill"]["placebos"]) == ["labels"]
    features = open_population(run).features.encode(open_population(run).table)
    main = load_encoder(stage.directory)
    early = np.array([name in ("visits_30", "days_since_last_visit") for name in main.spec.fields])
    embedded = {name: embed(one, features) for name, one in (("main", main), *encoders.items())}
    hidden = embed(encoders["labels"], features, withheld=early)
    assert embedded["labels"].shape == embedded["main"].shape == hidden.shape == (600, 8)
    assert encoders["labels"].record["target"] == "labels" and main.record["target"] == "states"
    assert np.abs(embedded["labels"] - embedded["main"]).max() > 0.1 and np.abs(hidden - embedded["labels"]).max() > 0.1
    assert list(stage.summary()["placebos"]) == ["labels"]
    assert "placebos/labels/encoder.json" in json.loads(stage.path("stage.json").read_text())["artifacts"]


def test_labels_of_later_splits_are_never_targets(finished):
    """Oracle: the mean over the profile's rows, one by one."""
    run = finished[0]
    population = open_population(run)
    profiles = choose_profiles(
        population.table, pq.read_table(run.workdir / "teach/chains.parquet")["exact_key"].to_pylist(), "lt30", 120, 0
    )
    found = stage_module.labels_of(population, profiles)["lt30"]
    for i in range(0, len(profiles.keys), 17):
        rows = [
            row
            for row in population.table.select(["exact_key", "split", "lt30"]).to_pylist()
            if row["exact_key"] == profiles.keys[i] and row["split"] in ("teacher", "distill")
        ]
        assert found[i] == pytest.approx(np.mean([row["lt30"] for row in rows]))


def test_a_whole_run_on_a_placebo(tmp_path, monkeypatch):
    with open_run(tmp_path, distill__target="labels", distill__placebos=()) as run:
        MadeUpStudent(run).install(monkeypatch)
        summary = stage_module.distill(run).summary()
    assert summary["target"] == "labels" and summary["labels_used_for_training"] and summary["transfer"] == {}


def test_a_layer_can_be_set_and_a_wrong_one_is_refused(tmp_path, monkeypatch):
    with open_run(tmp_path, distill__layer="0.5") as run:
        MadeUpStudent(run).install(monkeypatch)
        assert stage_module.distill(run).summary()["layer"] == 2
    for bad in ("deep", "1.5"):
        with pytest.raises(ConfigError, match=r"distill\.layer"):
            collect._fraction_layer(bad, 4)


def test_a_reasoned_profile_of_an_evaluation_user_is_refused(finished):
    run = finished[0]
    table = open_population(run).table
    keys = dict(zip(table["split"].to_pylist(), table["exact_key"].to_pylist()))
    with pytest.raises(DataError, match="teacher split"):
        choose_profiles(table, [keys["test"]], "lt30", 10, 0)
