"""Stage ``coverage``: the coverage curve of a finished run. It is no part of ``scaletot run``.

    coverage/states/block-*.safetensors   mean state [u, K, D] of profiles, in the order in which the share grows, and the state
                                          [u, D] at the end of their prompts
    coverage/points/SHARE.parquet, .json  test rows and figures of one point, written when it is whole
    coverage/draw-N/states, points        the same of another draw of the reasoned users (coverage.draws)
    coverage/coverage.parquet             all points: share, draw, labels, system, row of prepare/population.parquet, rps, expected
    coverage/coverage.json                the curve, see :func:`coverage`
    coverage/money.json                   what each point costs at the configured prices

The language model reads each profile once a draw, for the largest share; smaller shares are nested in it. A kill costs the block
or the point in flight. Profiles whose states stage ``distill`` has are not read again. Another draw reasons about, and with scarce
labels learns from, other users, and its encoders and heads begin at other weights; the student is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.encoder import blocks as store
from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import ConfigError
from scaletot_jax.evaluation import coverage as curve
from scaletot_jax.evaluation.baselines.known import Known
from scaletot_jax.evaluation.coverage_baselines import BASELINES, baseline_scores
from scaletot_jax.evaluation.coverage_point import PLACEBOS, Everyone, Reasoned, placebo, score_heads, summaries
from scaletot_jax.evaluation.draws import across
from scaletot_jax.evaluation.feature_sets import field_codes
from scaletot_jax.evaluation.metrics import rps_rows
from scaletot_jax.evaluation.predictions import Rows, Target
from scaletot_jax.files import read_arrays, read_json, read_table, seal, sealed, write_arrays, write_json, write_table
from scaletot_jax.profiles.keys import coarse_keys
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.profiles.split import TRAIN, UNUSED
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.student.labelled import base_rate
from scaletot_jax.student.policy import Student, encode_prompts, load_student
from scaletot_jax.student.states import profile_ids, reasoning_states, state_stream
from scaletot_jax.teacher.identity import identity_of_model

_APART = 1000  # between the seeds of two draws: further than heads have seeds


class _Profiles(NamedTuple):
    """Distinct profiles in the order in which the share grows; the first ``needed`` belong to the largest share."""

    rows: np.ndarray  # [Q] a row that stands for the profile
    keys: np.ndarray  # [Q] exact keys
    of_row: np.ndarray  # [U] place of each row's profile
    needed: int


def coverage(run: Run) -> Stage:
    """Writes the curve of a run in which ``distill`` is done.

    ``coverage.json``:

        metric      RPS skill of the days label against the base rate, and Spearman
        rows        test rows and users; users of the population
        tokens      {pilot, search, student}: of teacher and pilot together, and of one profile for the student
        points      {share, users, profiles, status, why, cost, labels: plentiful | scarce → {status, labelled, systems,
                    differences, verdict, across}}: of the first draw; systems are profile, everywhere, own, those of
                    distill.placebos that can be made, and baselines; ``across`` is what
                    :func:`scaletot_jax.evaluation.draws.across` says of all draws, null where there is one
        draws       how many
        curves      labels → system → {rise, bend, sentence}

    Raises:
      StaleRunError: a stage it builds on is not finished, or the folder holds another run's work.
      ConfigError: the points are not rising shares in (0, 1].
    """
    settings = run.config["coverage"]
    shares = [float(share) for share in settings["points"]]
    if not shares or sorted(set(shares)) != shares or shares[0] <= 0 or shares[-1] > 1:
        raise ConfigError(
            "the points of a coverage curve are rising shares in (0, 1]", where="coverage.points", why=f"{shares}"
        )
    stage = run.stage(
        "coverage",
        sections=("seed", "distill", "head", "evaluate", "coverage.folds", "coverage.chains"),
        needs=("prepare", "teach", "sft", "osipo", "distill"),
        extra=identity_of_model(run.config) | {"baselines": sorted(BASELINES)},  # points made without them do not fit
    )
    wanted = {"shares": shares, "draws": settings["draws"]}
    if not (stage.done and read_json(stage.path("coverage.json")).items() >= wanted.items()):
        _make(run, stage, shares)
    found = read_json(stage.path("coverage.json"))
    _price(stage, found, settings)
    return stage


def _make(run: Run, stage: Stage, shares: list[float]) -> None:
    population = open_population(run)
    numbers = np.flatnonzero(pc.not_equal(population.table["split"], UNUSED).to_numpy())
    table = population.table.take(pa.array(numbers))
    population = population._replace(table=table)
    groups, split = (np.asarray(table[name].to_pylist(), object) for name in ("group", "split"))
    everyone = _everyone(population, groups, split, numbers)
    known = np.isin(split.astype(str), ("distill", "head"))
    base_distribution = base_rate(everyone.labels[known].astype(np.int64), everyone.horizon + 1)
    y = everyone.labels[everyone.test]
    base = rps_rows(y, np.tile(base_distribution, (len(y), 1)))
    draws = _draws(run)
    for draw in draws:
        _make_draw(run, stage, shares, draw, population, everyone, split, base)
    _finish(run, stage, shares, draws, everyone, base)


class _Draw(NamedTuple):
    """One draw of the reasoned users."""

    number: int
    seed: int  # of the order of the users, of folds, choices, weights and heads
    folder: str  # of its files, in the stage's folder


def _draws(run: Run) -> list[_Draw]:
    seed, count = run.config["seed"], run.config["coverage"]["draws"]
    return [_Draw(i, seed + _APART * i, f"draw-{i}/" if i else "") for i in range(count)]


def _make_draw(
    run: Run,
    stage: Stage,
    shares: list[float],
    draw: _Draw,
    population: Population,
    everyone: Everyone,
    split: np.ndarray,
    base: np.ndarray,
) -> None:
    """The points of one draw."""
    rank = curve.ranks(everyone.groups, draw.seed)
    profiles = _ordered_profiles(population.table, rank, curve.reasoned(rank, shares[-1]))
    everyone = everyone._replace(profile=profiles.of_row)
    names, states, ends, student_tokens = _states(run, stage, population, profiles, draw.folder)
    tokens = _teacher_tokens(run, student_tokens)
    fold = curve.folds(everyone.groups, run.config["coverage"]["folds"], draw.seed)
    with Progress(f"coverage{f', draw {draw.number}' if draw.number else ''}", len(shares), "points") as progress:
        for share in shares:
            files = _point_files(stage, draw, share)
            if not all(map(sealed, files)):
                member = curve.reasoned(rank, share)
                some = profiles.of_row[member]
                reasoned = Reasoned(member, states[some], ends[some], tuple(names))
                point, rows = _point(run, draw.seed, population, everyone, reasoned, split, fold, base)
                point |= {"share": share, "tokens": tokens._asdict()}
                write_table(files[0], rows)
                write_json(files[1], point)
                for path in files:
                    seal(path)
            progress.advance(note=f"{share:.2%}")


def _point_files(stage: Stage, draw: _Draw, share: float) -> list[Path]:
    """Rows and figures of one point."""
    return [stage.path(f"{draw.folder}points/{share:.6f}.{kind}") for kind in ("parquet", "json")]


def _everyone(population: Population, groups: np.ndarray, split: np.ndarray, numbers: np.ndarray) -> Everyone:
    """All but the number of each row's profile, which follows from the draw."""
    table, space, label = population.table, population.features, population.schema.labels.days
    features = space.encode(table)
    return Everyone(
        space, Inputs(*features), space.dense(features), np.array([field.role == "early" for field in space.fields]),
        table[label.column].cast(pa.float64()).to_numpy(), label.horizon, groups, np.flatnonzero(split == "test"),
        np.zeros(len(groups), np.int64), np.isin(split.astype(str), TRAIN), numbers,
    )  # fmt: skip


def _ordered_profiles(table: pa.Table, rank: np.ndarray, largest: np.ndarray) -> _Profiles:
    """The order follows from the population and the seed alone, so that other points find the same blocks of states."""
    keys = np.asarray(table["exact_key"].to_pylist(), object)
    place: dict[str, int] = {}
    rows: list[int] = []
    for row in np.argsort(rank, kind="stable"):
        if keys[row] not in place:
            place[keys[row]] = len(rows)
            rows.append(int(row))
    chosen, of_row = np.asarray(rows, np.int64), np.array([place[key] for key in keys])
    return _Profiles(chosen, keys[chosen], of_row, int(of_row[largest].max()) + 1)


def _states(
    run: Run, stage: Stage, population: Population, profiles: _Profiles, folder: str = ""
) -> tuple[list[str], np.ndarray, np.ndarray, float]:
    """Segment names; of every needed profile the mean state [needed, K, D] and that at its prompt's end [needed, D]; the
    student's tokens a profile.

    A profile's chains follow from the run's seed and the profile, so that those of stage ``distill`` are these very ones.
    """
    distilled = run.finished("distill")
    record = read_json(distilled.path("encoder.json"))
    layer, chains = record["layer"], run.config["coverage"]["chains"] or run.config["distill"]["chains"]
    # States of folds come from other students.
    ours = chains == record["chains"] and not distilled.summary().get("student_folds")
    known = _distilled_states(distilled, layer) if ours else {}
    missing = [i for i, key in enumerate(profiles.keys) if key not in known]
    plan = [missing[i : i + store.BLOCK] for i in range(0, len(missing), store.BLOCK)]
    plan = [block for block in plan if block[0] < profiles.needed]
    files = [stage.path(f"{folder}states/block-{i:05d}.safetensors") for i in range(len(plan))]
    left = [i for i, path in enumerate(files) if not sealed(path)]
    stated = stage.path(f"{folder}states/student.json")
    if left or not sealed(stated):
        _read_states(
            run, population, profiles, [(plan[i], files[i]) for i in left], layer, chains, stated, len(plan)
        )  # fmt: skip
    names = read_json(stated)
    found: list[Any] = [known.get(key) for key in profiles.keys[: profiles.needed]]
    for block, path in zip(plan, files):
        arrays = read_arrays(path)
        for j, *value in zip(block, arrays["states"], arrays["prompt_end"]):
            if j < profiles.needed:
                found[j] = value
    states, ends = (np.stack([pair[i] for pair in found]).astype(np.float64) for i in range(2))
    return names["segments"], states, ends, names["tokens"]


def _read_states(
    run: Run,
    population: Population,
    profiles: _Profiles,
    todo: list[tuple[list[int], Path]],
    layer: int,
    chains: int,
    stated: Path,
    blocks: int,
) -> None:
    """What the language model does for the curve."""
    student = load_student(run, run.config["distill"]["student"])
    table, texts_of = population.table, population.renderer.texts
    tokens = tokens_per_profile(student, texts_of(table.take(pa.array(profiles.rows[:256]))), chains)
    write_json(stated, {"tokens": tokens, "segments": [segment.name for segment in student.spec.segments]})
    seal(stated)
    with Progress("coverage: states", blocks, "blocks", done=blocks - len(todo)) as progress:
        for block, path in todo:
            found = reasoning_states(
                student, texts_of(table.take(pa.array(profiles.rows[block]))), chains=chains,
                seed=state_stream(run.config["seed"]), layers=(layer,), ids=profile_ids(profiles.keys[j] for j in block),
            )  # fmt: skip
            arrays = {
                "states": np.asarray(found.states[layer]).mean(1),
                "prompt_end": np.asarray(found.prompt_end[layer]),
            }
            write_arrays(path, arrays)
            seal(path)
            progress.advance()


def tokens_per_profile(student: Student, texts: list[str], chains: int) -> float:
    """Tokens that the student reads and writes for a profile: its text once, and its chains at their full length."""
    _, valid, _ = encode_prompts(student.tokenizer, texts, student.max_profile_tokens)
    return float(np.asarray(valid).sum(1).mean()) + chains * student.chain_length


def _distilled_states(distilled: Stage, layer: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    keys = read_table(distilled.path("profiles.parquet"), columns=["exact_key"])["exact_key"].to_pylist()
    plan = store.distilled_blocks(distilled)
    states = store.read_states(distilled.directory, plan, layer).mean(1)
    return dict(zip(keys, zip(states, store.read_states(distilled.directory, plan, layer, "prompt_end"))))


def _teacher_tokens(run: Run, student: float) -> curve.Tokens:
    stated = run.finished("teach").summary().get("tokens", {})
    return curve.Tokens(int(stated.get("pilot", 0)), int(stated.get("search", 0)), student)


def _point(
    run: Run,
    seed: int,
    population: Population,
    everyone: Everyone,
    reasoned: Reasoned,
    split: np.ndarray,
    fold: np.ndarray,
    base: np.ndarray,
) -> tuple[dict[str, Any], pa.Table]:
    """One point's figures and the rows they were made of."""
    config, member = run.config, reasoned.member
    users = len(np.unique(everyone.groups[member].astype(str)))
    distinct = len(np.unique(everyone.profile[member]))
    point: dict[str, Any] = {"users": users, "profiles": distinct, "status": "run", "why": None, "labels": {}}
    rows: list[pa.Table] = []
    if why := curve.not_run(users):
        return point | {"status": curve.NOT_RUN, "why": why}, _rows([])
    z, predicted = summaries(everyone, reasoned, fold, config["distill"], seed)
    modes = [mode for mode in config["distill"]["placebos"] if mode in PLACEBOS]
    placebos: dict[str, np.ndarray] = {}
    for labels in curve.LABELS:
        labelled = curve.labelled_rows(labels, split, member, everyone.groups, seed)
        count = len(labelled.head) + len(labelled.val)
        if why := curve.not_run(users, count if min(map(len, labelled)) else 0):
            point["labels"][labels] = {"status": curve.NOT_RUN, "why": why, "labelled": count}
            continue
        for mode in modes:
            if mode == "labels" or mode not in placebos:  # the others know no label
                placebos[mode] = placebo(mode, everyone, reasoned, labelled.head, fold, config["distill"], seed)
        scores = score_heads(everyone, z, predicted, member, labelled, config["head"], seed, placebos)
        scores |= baseline_scores(*_known(population, everyone, labelled, config["head"], seed))
        judged = curve.judge(
            scores, everyone.labels[everyone.test], base, everyone.groups[everyone.test].astype(str),
            resamples=config["evaluate"]["bootstrap"], level=config["evaluate"]["level"], seed=seed,
        )  # fmt: skip
        point["labels"][labels] = {"status": "run", "why": None, "labelled": count, **judged}
        for system, one in scores.items():
            rows.append(_system_rows(everyone, labels, system, one))
    return point, _rows(rows)


def _known(
    population: Population, everyone: Everyone, labelled: curve.Labelled, head: dict[str, Any], seed: int
) -> tuple[Known, Target]:
    """What the baselines may read."""
    table, fields = population.table, tuple(population.fields)
    names = tuple(field.name for field in fields if field.kind != "text")
    known = Known(
        Rows(labelled.head, labelled.val, everyone.test), everyone.dense, field_codes(table, fields, labelled.head), names,
        coarse_keys(table, fields), everyone.groups, seed, head,
    )  # fmt: skip
    return known, Target(population.schema.labels.days.column, "days", everyone.horizon, everyone.labels)


def _system_rows(everyone: Everyone, labels: str, system: str, scores: curve.Scores) -> pa.Table:
    size = len(everyone.test)
    return pa.table(
        {
            "labels": pa.array([labels] * size, pa.string()),
            "system": pa.array([system] * size, pa.string()),
            "row": pa.array(everyone.numbers[everyone.test], pa.int64()),
            "rps": pa.array(scores.rps if scores.rps is not None else [None] * size, pa.float64()),
            "expected": pa.array(scores.expected, pa.float64()),
        }
    )


def _rows(tables: list[pa.Table]) -> pa.Table:
    kinds = {
        "labels": pa.string(),
        "system": pa.string(),
        "row": pa.int64(),
        "rps": pa.float64(),
        "expected": pa.float64(),
    }
    return pa.concat_tables(tables) if tables else pa.table({name: pa.array([], kind) for name, kind in kinds.items()})


def _finish(
    run: Run, stage: Stage, shares: list[float], draws: list[_Draw], everyone: Everyone, base: np.ndarray
) -> None:
    """Joins the points, says where the curves rise and bend and what all draws say, and records the stage."""
    files = [[_point_files(stage, draw, share) for share in shares] for draw in draws]
    points = [read_json(figures) for _, figures in files[0]]
    tables = [[read_table(rows) for rows, _ in of_draw] for of_draw in files]
    stage.path("stage.json").unlink(missing_ok=True)  # of other points: it would not match what is written now
    whole = pa.concat_tables(
        t.add_column(0, "draw", pa.array([draw.number] * t.num_rows, pa.int32())).add_column(
            0, "share", pa.array([share] * t.num_rows, pa.float64())
        )
        for draw, of_draw in zip(draws, tables)
        for share, t in zip(shares, of_draw)
    )
    write_table(stage.path("coverage.parquet"), whole)
    groups = everyone.groups[everyone.test].astype(str)
    tokens = curve.Tokens(**points[0]["tokens"])
    resampling = {
        "resamples": run.config["evaluate"]["bootstrap"], "level": run.config["evaluate"]["level"], "seed": run.config["seed"]
    }  # fmt: skip
    curves: dict[str, dict[str, Any]] = {}
    for labels in curve.LABELS:
        scored = [[_rps(t, labels) for t in of_draw] for of_draw in tables]  # draw, point → system → [T]
        for i, point in enumerate(points):
            if labels in point["labels"]:
                every = [of_draw[i] for of_draw in scored if of_draw[i]]
                point["labels"][labels]["across"] = (
                    across(every, base, groups, **resampling) if len(every) > 1 else None
                )
        curves[labels] = {}
        for system in curve.SYSTEMS:
            line, rps = [], []
            for point, found in zip(points, scored[0]):
                if not found:
                    continue
                rps.append(found[system])
                spent = curve.cost(tokens, point["profiles"], 0, 0)["tokens"]
                skill = point["labels"][labels]["systems"][system]["rps_skill"]["estimate"]
                line.append({"share": point["share"], "tokens": spent, "skill": skill})
            curves[labels][system] = curve.describe_curve(line, rps, base, groups, **resampling)
    report = {
        "metric": "rps_skill",
        "shares": shares,
        "draws": len(draws),
        "rows": {
            "test": len(everyone.test), "test_users": len(set(groups)),
            "users": len(np.unique(everyone.groups.astype(str))),
        },
        "level": run.config["evaluate"]["level"],
        "tokens": tokens._asdict(),
        "points": [
            {**{k: v for k, v in p.items() if k != "tokens"}, "cost": curve.cost(tokens, p["profiles"], 0, 0)} for p in points
        ],
        "curves": curves,
    }  # fmt: skip
    write_json(stage.path("coverage.json"), report)
    summary = {"curves": curves, "points": len(points), "run": sum(p["status"] == "run" for p in points)}
    stage.finish(["coverage.json", "coverage.parquet"], summary=summary)


def _rps(rows: pa.Table, labels: str) -> dict[str, np.ndarray]:
    """System → RPS of the test rows; none where these labels were not run, or for a system without a distribution."""
    some = rows.filter(pc.and_(pc.equal(rows["labels"], labels), pc.is_valid(rows["rps"])))
    names = list(dict.fromkeys(some["system"].to_pylist()))
    return {name: some.filter(pc.equal(some["system"], name))["rps"].to_numpy() for name in names}


def _price(stage: Stage, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """``money.json``: prices are no part of the result, so another price redoes nothing."""
    tokens = curve.Tokens(**found["tokens"])
    teacher, student = settings["usd_per_million_teacher"], settings["usd_per_million_student"]
    points = [
        {"share": p["share"], "users": p["users"], **curve.cost(tokens, p["profiles"], teacher, student)}
        for p in found["points"]
    ]
    write_json(
        stage.path("money.json"),
        {"usd_per_million": {"teacher": teacher, "student": student}, "points": points},
    )
