"""Stage ``evaluate``: do reasoning states help the LTV heads? Baselines, metrics, intervals, paired differences, a verdict.

Writes ``metrics.json``, the one source of every number of the comparison; docs/evaluation.md explains its keys. The systems
are explained in :mod:`scaletot_jax.evaluation.comparison` and :mod:`scaletot_jax.evaluation.baselines.registry`, the metrics in
:mod:`scaletot_jax.evaluation.catalogue`, the rule of the verdict in :mod:`scaletot_jax.evaluation.verdict`.

Two feature sets are judged, see :mod:`scaletot_jax.evaluation.feature_sets`: the profile fields as configured, and the static
ones alone, whose profiles count as seen by their static fields.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.errors import DataError
from scaletot_jax.evaluation import cells, comparison, kept_heads, slices
from scaletot_jax.evaluation.baselines.answers import covered
from scaletot_jax.evaluation.baselines.known import Known
from scaletot_jax.evaluation.baselines.registry import SYSTEMS, fit_baselines
from scaletot_jax.evaluation.catalogue import CATALOGUE
from scaletot_jax.evaluation.feature_sets import FeatureSet, feature_sets, known_of
from scaletot_jax.evaluation.heads import Scaler
from scaletot_jax.evaluation.monotone import raise_to_monotone
from scaletot_jax.evaluation.predictions import Predictions, Rows, Target, targets_of, thresholds
from scaletot_jax.evaluation.split_audit import UNSEEN, audit_splits, audit_time, audit_training
from scaletot_jax.evaluation.verdict import REQUIRED, RULE, verdict
from scaletot_jax.files import read_table, write_json, write_table
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage

# What the verdict goes by, for each kind of label; that of the run is the one on the days label (docs/protocol.md).
PRIMARY = {"days": "rps_skill", "value": "spearman", "binary": "auc"}
FORMAT = 2  # of metrics.json


def evaluate(run: Run) -> Stage:
    """Writes ``metrics.json``, ``predictions.parquet`` (one row per test row, target, feature set and system),
    ``population.parquet`` (what is served: the expected labels of every row, by the heads with ẑ), and those heads.

    Raises:
      DataError: a user lies in two splits or was used to train the language model or the encoder.
    """
    stage = run.stage(
        "evaluate",
        sections=("seed", "head", "evaluate", "data.profile_fields", "split.time_forward"),
        needs=("prepare", "teach", "sft", "osipo", "distill", "score"),
    )
    if stage.done:
        return stage
    seed, settings = run.config["seed"], run.config["evaluate"]
    population = open_population(run)
    table = population.table
    groups = _strings(table, "group")
    audit = _audit(run, population, groups)
    split = _strings(table, "split")
    rows = Rows(*(np.flatnonzero(split == name) for name in ("head", "val", "test")))
    test_groups = len(set(groups[rows.test]))

    features = feature_sets(run, population, seed)
    known_profiles = {"teacher": _reasoned_rows(run), "head": rows.head}
    targets = targets_of(population.schema.labels, population.table)
    results: dict[str, Any] = {
        target.column: {
            "kind": target.kind, "horizon": target.horizon or None,
            "thresholds": dict(thresholds(target, rows)), "features": {},
        }
        for target in targets
    }  # fmt: skip
    predictions: list[pa.Table] = []
    configured = next(iter(features))
    served: dict[str, Predictions] = {}
    kept: list[kept_heads.KeptHead] = []
    resampling = {"resamples": settings["bootstrap"], "level": settings["level"], "seed": seed}
    with Progress("evaluate", len(features) * len(targets), "comparisons") as progress:
        for name, found in features.items():
            inputs = comparison.variants(found.dense, found.z, found.untrained, rows, seed, found.rivals)
            seen = {other: slices.seen_rows(found.coarse, index, rows.test) for other, index in known_profiles.items()}
            divisions = _divisions(table, found, rows)
            known = known_of(
                run, population, found, rows, groups, seed, text=settings["baselines"] and name == configured
            )
            said: dict[str, dict[str, list[Predictions]]] = {}
            absent: dict[str, dict[str, Any]] = {}
            for target in targets:
                systems, everyone, head = comparison.predict(
                    target, inputs, found.dense, rows, run.config["head"], seed, shared_penalty=True
                )
                baselines, absent[target.column] = fit_baselines(known, target) if settings["baselines"] else ({}, {})
                said[target.column] = {**systems, **{system: list(p) for system, p in baselines.items()}}
                if name == configured:
                    kept.append(head)
                    served[target.column] = everyone
                progress.advance(0, f"{target.column}, {name}: fitted")
            said = raise_to_monotone(targets, said)
            for target in targets:
                systems = {system: said[target.column][system] for system in SYSTEMS if system in said[target.column]}
                scores, differences, gains = comparison.score_systems(target, systems, rows, groups, **resampling)
                metric = PRIMARY[target.kind]
                results[target.column]["features"][name] = {
                    "systems": scores,
                    "absent": {**_no_rivals(found), **absent[target.column]},
                    "coverage": _coverage(known, systems),
                    "differences": differences,
                    "slices": slices.score_slices(target, systems, rows, groups, seen, **resampling),
                    "cells": cells.score_cells(target, systems, rows, groups, divisions, **resampling),
                    "verdict": verdict(
                        {other: row[metric] for other, row in gains.items() if metric in row},
                        target=target.column, metric=metric, features=name, level=settings["level"],
                        seeds=run.config["head"]["seeds"], rows=len(rows.test), groups=test_groups, resamples=settings["bootstrap"],
                    ),
                }  # fmt: skip
                predictions += [
                    _prediction_rows(table, rows, target, name, system, comparison.average(p))
                    for system, p in systems.items()
                ]
                progress.advance()

    primary = results[targets[0].column]["features"][configured]["verdict"]
    report = {
        "format": FORMAT,
        "rows": {name: len(index) for name, index in rows._asdict().items()} | {"test_groups": test_groups},
        "bootstrap": {
            "resamples": settings["bootstrap"],
            "level": settings["level"],
            "unit": "group",
            "interval": "percentile",
            "note": "test sampling, for these fitted models",
        },
        "seeds": run.config["head"]["seeds"],
        "audit": audit,
        "metrics": {name: metric._asdict() for name, metric in CATALOGUE.items()},
        "systems": {name: {**system._asdict(), "order": i} for i, (name, system) in enumerate(SYSTEMS.items())},
        "families": {
            "required": list(REQUIRED),
            "note": "Holm's correction over the required rivals, and apart from them over all other systems",
        },
        "rule": RULE,
        "slices": {"seen": slices.KNOWN, "min_rows": slices.MIN_ROWS, "min_groups": slices.MIN_GROUPS},
        "targets": results,
        "verdict": primary,
    }
    write_table(stage.path("predictions.parquet"), pa.concat_tables(predictions))
    write_table(stage.path("population.parquet"), _served_rows(table, targets, served))
    used = features[configured]
    kept_heads.write_heads(
        stage.directory,
        kept,
        Scaler.fit(np.concatenate([used.dense, used.z], axis=1)[rows.head]),
        profile_fields=configured,
        columns=population.features.dense_columns(),
        dim=used.z.shape[1],
    )
    write_json(stage.path("metrics.json"), report)
    stage.finish(
        ["metrics.json", "predictions.parquet", "population.parquet", *kept_heads.FILES],
        summary={"rows": report["rows"], "verdict": primary},
    )
    return stage


def _divisions(table: pa.Table, found: FeatureSet, rows: Rows) -> dict[str, np.ndarray]:
    """Name → value of each test row: the sparsity cohort, and every field that has a few values."""
    present = np.zeros(table.num_rows, np.int64)
    out: dict[str, np.ndarray] = {}
    for field in found.fields:
        present += table[field.name].is_valid().to_numpy()
        if field.kind in ("enum", "ordered", "boolean"):
            values = table[field.name].take(pa.array(rows.test)).cast(pa.string()).fill_null("missing")
            out[field.name] = np.asarray(values.to_pylist(), object)
    return {cells.SPARSITY: cells.sparsity(present, rows), **out}


def _no_rivals(found: FeatureSet) -> dict[str, dict[str, str]]:
    """Required rivals whose encoders the run did not train."""
    why = {"note": "not run", "why": "stage distill trained no such encoder", "do": "name it in distill.placebos"}
    return {name: why for name in REQUIRED[1:] if name not in found.rivals}


def _coverage(known: Known, systems: Any) -> dict[str, float]:
    """Of the language models' answers: the share of test rows whose coarse profile has one."""
    answers = {"teacher_answer": known.teacher, "student_answer": known.student}
    return {name: float(covered(found, known).mean()) for name, found in answers.items() if name in systems}


def _audit(run: Run, population: Population, groups: np.ndarray) -> dict[str, Any]:
    table = population.table
    split = _strings(table, "split")
    members = audit_splits(groups, split)
    trained: set[str] = set()
    for stage, name in (("teach", "profiles"), ("osipo", "users"), ("distill", "profiles")):  # as those stages wrote it
        path = run.finished(stage).path(f"{name}.parquet")
        used = read_table(path, columns=["group", "row"])
        stated = np.asarray(used["group"].to_pylist(), object)
        if (groups[used["row"].to_numpy()] != stated).any():
            raise DataError("a list of trained users does not belong to this population", where=str(path))
        trained |= set(stated)
    count = audit_training(trained, groups, split)
    overlap = len(trained & set(groups[np.isin(split.astype(str), UNSEEN)]))
    audit: dict[str, Any] = {"groups": members, "trained_groups": count, "overlap": overlap}
    if population.schema.snapshot and run.config["split"]["time_forward"]:
        snapshots = table["snapshot"].to_numpy(zero_copy_only=False).astype("datetime64[D]")
        audit["days_between_training_labels_and_evaluation"] = audit_time(
            snapshots, split, population.schema.labels.days.horizon
        )
    return audit


def _reasoned_rows(run: Run) -> np.ndarray:
    """Rows whose profiles the teacher reasoned about."""
    return read_table(run.finished("teach").path("profiles.parquet"), columns=["row"])["row"].to_numpy()


def _prediction_rows(
    table: pa.Table, rows: Rows, target: Target, features: str, system: str, p: Predictions
) -> pa.Table:
    size = len(rows.test)
    return pa.table(
        {
            "row": pa.array(_floats(table, "row")[rows.test].astype(np.int64)),
            "target": pa.array([target.column] * size, pa.string()),
            "features": pa.array([features] * size, pa.string()),
            "system": pa.array([system] * size, pa.string()),
            "label": pa.array(target.labels[rows.test]),
            "expected": pa.array(p.mean.astype(np.float32)),
            "p_positive": pa.array(p.positive.astype(np.float32)),
        }
    )


def _served_rows(table: pa.Table, targets: list[Target], served: dict[str, Predictions]) -> pa.Table:
    names = [name for name in ("row", "user_id", "snapshot", "split") if name in table.column_names]
    found = table.select(names)
    ordered = raise_to_monotone(targets, {column: {"served": [p]} for column, p in served.items()})
    for column, systems in ordered.items():
        said = systems["served"][0]
        for name, values in ((f"expected_{column}", said.mean), (f"p_positive_{column}", said.positive)):
            found = found.append_column(name, pa.array(np.asarray(values, np.float32)))
    return found


def _strings(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_pylist(), object)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return table[name].cast(pa.float64()).to_numpy()
