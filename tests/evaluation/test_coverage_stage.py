"""The stage on a run with a made-up student: nested points, one pass of the student, kills, other points and prices."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from encoder.made_up_run import MadeUpStudent, files, open_run

from scaletot_jax.encoder import blocks
from scaletot_jax.encoder.model import describe
from scaletot_jax.errors import ConfigError
from scaletot_jax.evaluation import cover, coverage_point
from scaletot_jax.evaluation import coverage as curve
from scaletot_jax.evaluation.cover_text import show
from scaletot_jax.evaluation.coverage_baselines import BASELINES
from scaletot_jax.evaluation.verdict import HURT, UNDECIDED
from scaletot_jax.files import read_json, write_json, write_table
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.profiles.split import UNUSED
from scaletot_jax.run import Stage
from scaletot_jax.student.states import state_stream

SMALL = {
    "distill__steps": 25, "distill__pool": 0, "distill__placebos": ("random",), "coverage__points": (0.05, 0.8), "coverage__folds": 2,
    "coverage__draws": 2, "head__seeds": 1, "head__steps": 50,
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


def without_some(population):
    """The population with its first rows in no split, as those between the periods of a split by time are."""
    table = population.table
    split = [UNUSED] * 7 + table["split"].to_pylist()[7:]
    return population._replace(table=table.set_column(table.column_names.index("split"), "split", [split]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished curve, and how often the student was asked."""
    patch = pytest.MonkeyPatch()
    run = open_run(tmp_path_factory.mktemp("curve"), **SMALL)
    student = MadeUpStudent(run)
    patch.setattr(cover, "open_population", lambda run: without_some(open_population(run)))
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
    for one in labels.values():
        assert set(one["systems"]) == {"profile", "everywhere", "own", "random", *BASELINES}  # placebos as configured
        assert set(one["systems"]["ridge"]) == {"spearman"} and "rps_skill" in one["systems"]["segment_mean"]
        assert one["verdict"]["not_run"] == ["labels", "shuffled", "prompt_end"]
        assert one["verdict"]["word"] in (HURT, UNDECIDED) and set(one["verdict"]["p_holm"]) == {"profile", "random"}
    assert 0 < labels["scarce"]["labelled"] < labels["plentiful"]["labelled"]
    assert labels["plentiful"]["systems"]["own"] != labels["plentiful"]["systems"]["everywhere"]
    costs = [p["cost"]["student_tokens"] for p in found["points"]]
    assert costs == [130 * p["profiles"] for p in found["points"]] and costs == sorted(costs)
    assert "no curve" in found["curves"]["scarce"]["own"]["sentence"]  # of one point
    rows = pq.read_table(run.workdir / "coverage" / "coverage.parquet")
    assert rows.num_rows == 2 * 2 * (4 + len(BASELINES)) * found["rows"]["test"]
    unsaid = set(rows.filter(pc.is_null(rows["rps"]))["system"].to_pylist())
    assert unsaid <= set(BASELINES) and np.isfinite(rows["rps"].drop_null().to_numpy()).all()
    split = np.asarray(cover.open_population(run).table["split"].to_pylist(), object)
    assert split[0] == UNUSED and found["rows"]["test"] == (split == "test").sum()
    assert set(rows["row"].to_pylist()) == set(np.flatnonzero(split == "test"))
    said = show(run.workdir)
    assert "z where available" in said and "ẑ minus random" in said and "not run: labels, shuffled, prompt_end" in said


def test_every_draw_has_users_of_its_own_and_the_rule_is_applied_over_all(made):
    run, *_ = made
    folder = run.workdir / "coverage"
    found, rows = read_json(folder / "coverage.json"), pq.read_table(folder / "coverage.parquet")
    assert found["draws"] == 2 and found["points"][0]["labels"] == {}
    first, other = (read_json(folder / part / "points" / "0.800000.json") for part in ("", "draw-1"))
    assert (
        first["labels"]["scarce"]["labelled"] != other["labels"]["scarce"]["labelled"]
        and first["users"] == other["users"]
    )
    for labels, one in found["points"][1]["labels"].items():
        over = one["across"]
        for name, skill in over["skill"].items():
            each = [point["labels"][labels]["systems"][name]["rps_skill"]["estimate"] for point in (first, other)]
            np.testing.assert_allclose(skill["by_draw"], each, rtol=1e-9)
            some = rows.filter(pc.and_(pc.equal(rows["labels"], labels), pc.equal(rows["system"], name)))
            assert set(some["draw"].to_pylist()) == {0, 1}
        gap = over["differences"]["everywhere - random"]
        assert gap["estimate"] == pytest.approx(np.mean(gap["by_draw"])) and gap["low"] < gap["estimate"] < gap["high"]
        assert over["verdict"]["not_run"] == ["labels", "shuffled", "prompt_end"]
    assert "over 2 draws" in show(run.workdir)


def test_states_are_read_once_and_not_those_that_distillation_has(made):
    run, student, calls = made
    known = pq.read_table(run.workdir / "distill" / "profiles.parquet").num_rows
    blocks = list((run.workdir / "coverage").glob("**/states/block-*"))
    profiles = read_json(run.workdir / "coverage" / "coverage.json")["points"][-1]["profiles"]
    assert calls == len(blocks) <= 2 * -(-(600 - known) // 32) and 32 * calls >= (profiles - known)
    cover.coverage(run)
    assert student.calls == calls


def test_a_killed_point_is_made_again_to_the_same_bytes(made, monkeypatch):
    run, student, calls = made
    folder = run.workdir / "coverage"
    before = files(folder)
    for name in ("stage.json", "coverage.json", "draw-1/points/0.800000.json", "states/block-00001.safetensors"):
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


def test_states_of_out_of_fold_students_are_not_mixed_with_those_of_the_one(made, monkeypatch):
    run, student, _ = made
    calls, honest = student.calls, Stage.summary
    monkeypatch.setattr(Stage, "summary", lambda stage: honest(stage) | {"student_folds": 2})
    population = cover.open_population(run)
    rank = curve.ranks(np.asarray(population.table["group"].to_pylist(), object), 0)
    profiles = cover._ordered_profiles(population.table, rank, curve.reasoned(rank, 0.1))
    aside = run.stage("aside", sections=("seed",))
    _, states, ends, _ = cover._states(run, aside, population, profiles)
    assert student.calls == calls + len(list(aside.path("states").glob("block-*.safetensors"))) > calls
    assert len(states) == len(ends) == profiles.needed
    student.calls = calls


def test_the_regression_spreads_states_over_training_rows_nobody_reasoned_about(made):
    run, *_ = made
    population = cover.open_population(run)
    groups, split = (np.asarray(population.table[name].to_pylist(), object) for name in ("group", "split"))
    rank = curve.ranks(groups, 0)
    profiles = cover._ordered_profiles(population.table, rank, curve.reasoned(rank, 0.5))
    everyone = cover._everyone(population, groups, split, np.arange(len(groups)))._replace(profile=profiles.of_row)
    member = curve.reasoned(rank, 0.5)
    learns = np.flatnonzero(member)[:60]
    visits = np.log1p(population.table["visits_30"].to_numpy().astype(float))
    target = np.where(member, (visits - visits.mean()) / visits.std(), np.nan)[:, None].astype(np.float32)
    spec = describe(everyone.space, everyone.inputs, segments=["a"], target_dims=[1], dim=4, width=8)
    (spread,), rows = coverage_point._spread(everyone, spec, [target], learns, member, 80, 0)
    pool = rows[len(learns) :]
    assert np.array_equal(rows[: len(learns)], learns) and len(pool) == 80
    assert not member[pool].any() and set(split[pool]) <= {"teacher", "distill", "head"}
    assert np.corrcoef(spread[pool, 0], visits[pool])[0, 1] > 0.8  # what the field says of people without a state
    assert not spread[np.setdiff1d(np.arange(len(groups)), rows)].any()


def test_labels_of_equal_profiles_are_averaged_within_those_that_learn():
    profile, target = np.array([4, 2, 4, 2, 9, 4]), np.array([[1.0], [2], [5], [8], [3], [100]], np.float32)
    mask = np.array([True, True, True, True, True, False])
    found = coverage_point._mean_of_each(profile, mask, target)
    assert found[:, 0].tolist() == [3, 5, 3, 5, 3, 100] and found.dtype == np.float32
    assert target[0, 0] == 1  # the rows of the others, and what was given, stay as they are


@pytest.mark.parametrize("mode", coverage_point.PLACEBOS)
def test_a_placebo_is_distilled_from_other_targets_and_never_from_a_row_s_own_label(made, mode, monkeypatch):
    run, *_ = made
    population = cover.open_population(run)
    groups, split = (np.asarray(population.table[name].to_pylist(), object) for name in ("group", "split"))
    rank = curve.ranks(groups, 0)
    profiles = cover._ordered_profiles(population.table, rank, curve.reasoned(rank, 0.5))
    everyone = cover._everyone(population, groups, split, np.arange(len(groups)))._replace(profile=profiles.of_row)
    member = curve.reasoned(rank, 0.5)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(profiles.needed, 2, 6))
    some = profiles.of_row[member]
    reasoned = coverage_point.Reasoned(member, states[some], states[some, 0], ("a", "b"))
    labelled, fold, asked = (
        np.flatnonzero(np.isin(split.astype(str), ("distill", "head"))),
        curve.folds(groups, 2, 0),
        [],
    )

    def learnt(everyone, spec, targets, learners, settings, seed, weights):
        asked.append((np.concatenate(targets, 1), learners))
        return np.full((len(learners), sum(spec.target_dims)), float(len(asked)), np.float32)

    monkeypatch.setattr(coverage_point, "_distilled", learnt)
    found = coverage_point.placebo(mode, everyone, reasoned, labelled, fold, run.config["distill"], 0)
    assert found.shape == (len(groups), 2 * 4) and len(asked) == 3  # of all, and without each fold
    whole, learners = asked[0]
    wanted = np.isin(np.arange(len(groups)), labelled) if mode == "labels" else member
    assert np.array_equal(learners, wanted)
    for number, (_, others) in enumerate(asked[1:]):
        assert np.array_equal(others, wanted & (fold != number))
        assert np.allclose(found[wanted & (fold == number), 0], number + 2)  # a member, by the encoder without its fold
    if mode in ("shuffled", "prompt_end"):
        own = coverage_point._whitened(everyone, reasoned, reasoned.states, run.config["distill"])
        z = np.concatenate(own.values, 1)
        if mode == "shuffled":
            np.testing.assert_allclose(np.sort(whole[member], 0).std(0), np.sort(z[member], 0).std(0), rtol=0.2)
            assert (np.abs(whole[member] - z[member]).max(1) > 1e-6).mean() > 0.9  # hardly anybody keeps the own
    if mode == "labels":
        days = np.log1p(everyone.labels[wanted])
        assert abs(np.corrcoef(whole[wanted, 0], days)[0, 1]) > 0.999 and not whole[~wanted].any()


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
