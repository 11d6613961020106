"""The stage on a run with a made-up student: nested points, one pass of the student, kills, other points and prices."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from encoder.made_up_run import MadeUpStudent, files, open_run

from scaletot_jax.encoder import blocks
from scaletot_jax.errors import ConfigError
from scaletot_jax.evaluation import cover
from scaletot_jax.files import read_json, write_json, write_table
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.student.states import state_stream

SMALL = {
    "distill__steps": 25, "coverage__points": (0.05, 0.8), "coverage__folds": 2,
    "head__seeds": 1, "head__steps": 50,
}  # fmt: skip


def leave_distilled(run, student, count=64):
    """What the stage reads of ``distill``: states of some profiles, and at which layer."""
    stage = run.stage("distill", sections=("seed", "distill"), needs=("prepare", "teach", "sft", "osipo"))
    population = open_population(run)
    table = population.table.slice(0, count)
    plan, texts = blocks.plan_blocks(count), population.renderer.texts(table)
    ids = [int(key[:6], 16) for key in table["exact_key"].to_pylist()]
    for block in plan:
        part = slice(block.begin, block.end)
        chains, stream = run.config["distill"]["chains"], state_stream(0)
        found = student.states(student.student, texts[part], chains=chains, seed=stream, layers=(3,), ids=ids[part])
        blocks.write_block(stage.directory, block, found, (3,))
    write_table(stage.path("profiles.parquet"), table.select(["exact_key"]))
    write_json(stage.path("encoder.json"), {"layer": 3, "chains": run.config["distill"]["chains"]})
    stage.finish(
        ["profiles.parquet", "encoder.json", *(block.file for block in plan)], summary={"profiles_by_student": [count]}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished curve, and how often the student was asked."""
    patch = pytest.MonkeyPatch()
    run = open_run(tmp_path_factory.mktemp("curve"), **SMALL)
    student = MadeUpStudent(run)
    patch.setattr(cover, "identity_of_model", lambda config: {"weights": "made up"})
    patch.setattr(cover, "load_student", student.load)
    patch.setattr(cover, "reasoning_states", student.states)
    patch.setattr(cover, "tokens_per_profile", lambda student, texts, chains: 100.0 + 10 * chains)
    leave_distilled(run, student)
    student.calls = 0
    cover.coverage(run)
    yield run, student, student.calls
    patch.undo()


def test_points_and_systems(made):
    run, *_ = made
    found = read_json(run.workdir / "coverage" / "coverage.json")
    assert [p["status"] for p in found["points"]] == ["not run", "run"] and "30 reasoned" in found["points"][0]["why"]
    labels = found["points"][1]["labels"]
    assert set(labels["plentiful"]["systems"]) == {"profile", "everywhere", "own"}
    assert 0 < labels["scarce"]["labelled"] < labels["plentiful"]["labelled"]
    assert labels["plentiful"]["systems"]["own"] != labels["plentiful"]["systems"]["everywhere"]
    costs = [p["cost"]["student_tokens"] for p in found["points"]]
    assert costs == [130 * p["profiles"] for p in found["points"]] and costs == sorted(costs)
    assert "no curve" in found["curves"]["scarce"]["own"]["sentence"]  # of one point
    rows = pq.read_table(run.workdir / "coverage" / "coverage.parquet")
    assert rows.num_rows == 2 * 3 * found["rows"]["test"] and np.isfinite(rows["rps"].to_numpy()).all()
    assert "z where available" in cover.show(run.workdir)


def test_states_are_read_once_and_not_those_that_distillation_has(made):
    run, student, calls = made
    known = pq.read_table(run.workdir / "distill" / "profiles.parquet").num_rows
    blocks = list((run.workdir / "coverage" / "states").glob("block-*"))
    profiles = read_json(run.workdir / "coverage" / "coverage.json")["points"][-1]["profiles"]
    assert calls == len(blocks) <= -(-(600 - known) // 32) and 32 * calls >= 0.5 * (profiles - known)
    cover.coverage(run)
    assert student.calls == calls


def test_a_killed_point_is_made_again_to_the_same_bytes(made, monkeypatch):
    run, student, calls = made
    folder = run.workdir / "coverage"
    before = files(folder)
    for name in ("stage.json", "coverage.json", "points/0.800000.json", "states/block-00001.safetensors"):
        (folder / name).unlink()
    honest = cover.write_json

    def killed(path, value):
        if path.name == "0.800000.json":
            raise KeyboardInterrupt
        honest(path, value)

    monkeypatch.setattr(cover, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        cover.coverage(run)
    monkeypatch.setattr(cover, "write_json", honest)
    cover.coverage(run)
    assert files(folder) == before and student.calls == calls + 1


def test_other_prices_and_points_keep_what_was_paid_for(made):
    run, student, _ = made
    folder, calls = run.workdir / "coverage", student.calls
    whole = (folder / "coverage.json").read_bytes()
    run.config["coverage"] |= {"usd_per_million_teacher": 2.0, "usd_per_million_student": 1e6}
    cover.coverage(run)
    assert (folder / "coverage.json").read_bytes() == whole
    money = read_json(folder / "money.json")["points"]
    assert [p["usd"] for p in money] == [float(p["student_tokens"]) for p in money]
    run.config["coverage"] |= {"points": (0.8,)}
    cover.coverage(run)
    assert student.calls == calls and read_json(folder / "coverage.json")["shares"] == [0.8]


@pytest.mark.parametrize("points", [(), (0.5, 0.2), (0.0, 0.5), (0.5, 1.5), (0.5, 0.5)])
def test_points_that_are_no_curve(made, points):
    run, *_ = made
    run.config["coverage"] |= {"points": points}
    with pytest.raises(ConfigError, match="rising shares"):
        cover.coverage(run)
