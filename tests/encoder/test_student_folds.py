"""Out-of-fold students: whom each one may be trained on. The training itself is made up; the stages are tested with the student."""

import itertools
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from encoder.made_up_run import MadeUpStudent, open_run

from scaletot_jax.encoder import distill as stage_module
from scaletot_jax.encoder import student_folds
from scaletot_jax.encoder.blocks import plan_blocks
from scaletot_jax.encoder.fit import Fitted
from scaletot_jax.encoder.model import init_params
from scaletot_jax.errors import DataError
from scaletot_jax.evaluation.feature_sets import _latent, _student_answers
from scaletot_jax.files import write_table
from scaletot_jax.profiles.prepare import open_population


def made_up_training(cheat=False):
    """Stand-ins for sft and osipo that use every row of the teacher split, as those do, or with ``cheat`` every row there is."""

    def sft(run):
        run.stage("sft", sections=("seed",), needs=("prepare", "teach")).finish([])

    def osipo(run):
        stage = run.stage("osipo", sections=("seed",), needs=("prepare", "sft"))
        table = open_population(run).table
        split = np.asarray(table["split"].to_pylist())
        used = table.take(np.flatnonzero(cheat | (split == "teacher")))
        write_table(stage.path("users.parquet"), used.select(["row", "group"]))
        stage.finish(["users.parquet"])

    return sft, osipo


def install(run, patch, cheat=False):
    made = MadeUpStudent(run).install(patch)
    asked = []
    sft, osipo = made_up_training(cheat)
    patch.setattr(student_folds, "sft", sft)
    patch.setattr(student_folds, "osipo", osipo)
    patch.setattr(student_folds, "identity_of_model", lambda config: {"weights": "made up"})

    def load(inner, which):
        assert which == run.config["distill"]["student"]
        asked.append(inner.workdir)
        return made.load(inner, which)

    patch.setattr(student_folds, "load_student", load)

    def untrained(folder, spec, *args, **kwargs):
        (folder / "steps.jsonl").write_text("")
        return Fitted(init_params(spec, 0), {"steps": 0, "kept_step": 0, "select_error": 1.0})

    patch.setattr(stage_module, "fit_targets", untrained)  # nothing here depends on the encoder
    return made, asked


def test_each_fold_has_a_student_that_never_saw_it(tmp_path, monkeypatch):
    settings = {"distill__student_folds": 3, "distill__placebos": (), "distill__pool": 0, "distill__student": "sft"}
    with open_run(tmp_path, **settings) as run:  # of students before OSIPO, for once
        made, asked = install(run, monkeypatch)
        stage = stage_module.distill(run)
        used = pq.read_table(stage.path("profiles.parquet")).to_pylist()
        table = open_population(run).table.select(["group", "exact_key", "split"]).to_pylist()
    assert made.which == "sft"
    assert sum(stage.summary()["profiles_by_student"]) == len(used) and len(stage.summary()["profiles_by_student"]) == 4
    assert stage.summary()["student_folds"] == 3 and len(asked) == len(set(asked)) == 3
    assert [row["source"] for row in used] == sorted(row["source"] for row in used)  # the distill split comes first
    seen = []
    for folder in asked:
        taught = set(pq.read_table(folder / "teach/chains.parquet")["exact_key"].to_pylist())
        rows = pq.read_table(folder / "osipo/users.parquet")["row"].to_pylist()
        own = {table[row]["group"] for row in rows}
        states_from = [row for row in used if row["source"] == "teacher" and row["group"] not in own]
        assert states_from and taught and not taught & {row["exact_key"] for row in states_from}
        assert {table[row]["split"] for row in rows} == {"teacher"}  # nobody of a later split comes in
        seen += [row["exact_key"] for row in states_from]
    teachers = [row["exact_key"] for row in used if row["source"] == "teacher"]
    assert sorted(seen) == sorted(teachers)  # every one is out of exactly one student's training
    coarse = np.asarray(open_population(run).table["coarse_key"].to_pylist(), object)
    # What reads the states afterwards finds all of them, in the order of the profiles.
    assert len(_student_answers(run, open_population(run), coarse).coarse) > 0
    rows, states = _latent(run)
    assert len(rows) == len(states) == sum(row["part"] == "train" for row in used)


def test_a_student_that_saw_its_fold_is_refused(tmp_path, monkeypatch):
    with open_run(tmp_path, distill__student_folds=2, distill__placebos=(), distill__pool=0) as run:
        install(run, monkeypatch, cheat=True)
        with pytest.raises(DataError, match="trained on users whose states it gives"):
            stage_module.distill(run)


def test_no_block_holds_profiles_of_two_students():
    plan = plan_blocks(40, 10, 33)
    assert [(block.begin, block.end) for block in plan] == [(0, 32), (32, 40), (40, 50), (50, 82), (82, 83)]
    assert len({block.file for block in plan}) == 5 and plan_blocks(40) == plan[:2]


def test_a_fold_is_trained_on_the_process_s_own_devices():
    """What fits stays as it is; what does not becomes a mesh that fits and divides what the configured one divides."""

    def mesh(*sizes):
        return dict(zip(("data", "fsdp", "tensor"), sizes))

    for sizes in ((1, 1, 1), (0, 1, 1), (2, 2, 1), (0, 2, 2)):
        assert student_folds.own_mesh(mesh(*sizes), 4) == mesh(*sizes)
    assert student_folds.own_mesh(mesh(1, 16, 1), 4) == mesh(1, 4, 1)
    assert student_folds.own_mesh(mesh(2, 4, 2), 4) == mesh(1, 2, 2)
    assert student_folds.own_mesh(mesh(1, 6, 1), 4) == mesh(1, 2, 1) and student_folds.own_mesh(
        mesh(6, 1, 1), 3
    ) == mesh(3, 1, 1)
    for data, fsdp, tensor, devices in itertools.product((1, 2, 3), (1, 3, 8), (1, 2, 9), (1, 2, 4, 8)):
        found = student_folds.own_mesh(mesh(data, fsdp, tensor), devices)
        assert 1 <= math.prod(found.values()) <= devices
        assert data % found["data"] == fsdp % found["fsdp"] == tensor % found["tensor"] == 0
