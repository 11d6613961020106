"""Stage ``evaluate``: do reasoning states help the LTV heads? Metrics, intervals, paired differences, a verdict.

``metrics.json``:

    rows             {head, val, test}, and test_groups
    audit            groups of each split, trained groups, days between training labels and evaluation
    metrics          definition and direction of each metric
    slices           what makes a test row "seen", by slice, and how small a slice may be
    targets          label column → {kind, horizon, features: name of the feature set → {systems, differences, slices,
                     verdict}}
    verdict          that of the primary comparison, see PRIMARY: {word, attributable, gain, sentence, caveat, ...}

``systems``: system → metric → {estimate, low, high}, and ``by_seed``. ``differences``: "profile_z - other" → metric →
{estimate, low, high, word}. The systems are explained in :mod:`scaletot_jax.evaluation.comparison`, the slices in
:mod:`scaletot_jax.evaluation.slices`.

Two feature sets are judged: the profile fields as configured, and the static ones alone. For the latter ẑ is computed
with every early field withheld, so that nothing behavioural reaches the head by way of ẑ. Its profiles count as seen by
their static fields.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from scaletot_jax.encoder.artifact import Encoder, load_encoder, sha256_json
from scaletot_jax.encoder.model import Inputs, init_params, redact
from scaletot_jax.encoder.score import compile_embedding, embed_rows, read_embeddings
from scaletot_jax.errors import DataError
from scaletot_jax.evaluation import comparison, kept_heads, slices
from scaletot_jax.evaluation.comparison import DEFINITIONS, LOWER_IS_BETTER, Predictions, Rows, Target
from scaletot_jax.evaluation.heads import Scaler
from scaletot_jax.evaluation.split_audit import UNSEEN, audit_splits, audit_time, audit_training
from scaletot_jax.evaluation.verdict import verdict
from scaletot_jax.files import read_json, read_table, write_json, write_table
from scaletot_jax.profiles.features import Features
from scaletot_jax.profiles.keys import coarse_keys
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage

PRIMARY = "spearman"  # of the days label, on the profile fields as configured: fixed before any result was seen
_BATCH = 4096


class FeatureSet(NamedTuple):
    """Inputs of one comparison, for all rows."""

    dense: np.ndarray  # [U, P] profile features
    z: np.ndarray  # [U, E] ẑ from the same fields
    untrained: np.ndarray  # [U, E] of the encoder's initial weights
    coarse: np.ndarray  # [U] coarse key of the fields in use


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
    sizes = {"test_rows": len(rows.test), "test_groups": len(set(groups[rows.test]))}

    features = _feature_sets(run, population, seed)
    known = {"teacher": _reasoned_rows(run), "head": rows.head}
    targets = _targets(population)
    results: dict[str, Any] = {
        target.column: {"kind": target.kind, "horizon": target.horizon or None, "features": {}} for target in targets
    }
    predictions: list[pa.Table] = []
    configured = next(iter(features))
    served: dict[str, np.ndarray] = {}
    kept: list[kept_heads.KeptHead] = []
    with Progress("evaluate", len(features) * len(targets), "comparisons") as progress:
        for name, found in features.items():
            inputs = comparison.variants(found.dense, found.z, found.untrained, rows, seed)
            seen = {other: slices.seen_rows(found.coarse, index, rows.test) for other, index in known.items()}
            for target in targets:
                systems, everyone, head = comparison.predict(
                    target, inputs, found.dense, rows, run.config["head"], seed
                )
                if name == configured:
                    kept.append(head)
                    served |= {
                        f"expected_{target.column}": everyone.mean,
                        f"p_positive_{target.column}": everyone.positive,
                    }
                resampling = {"resamples": settings["bootstrap"], "level": settings["level"], "seed": seed}
                scores, differences, gains = comparison.score_systems(target, systems, rows, groups, **resampling)
                results[target.column]["features"][name] = {
                    "systems": scores,
                    "differences": differences,
                    "slices": slices.score_slices(target, systems, rows, groups, seen, **resampling),
                    "verdict": verdict(
                        gains[comparison.WITHOUT][PRIMARY],
                        {other: gains[other][PRIMARY] for other in comparison.PLACEBOS},
                        target=target.column, metric=PRIMARY, features=name,
                        rows=sizes["test_rows"], groups=sizes["test_groups"], level=settings["level"],
                    ),
                }  # fmt: skip
                predictions += [
                    _prediction_rows(table, rows, target, name, system, comparison.average(p))
                    for system, p in systems.items()
                ]
                progress.advance()

    primary = results[targets[0].column]["features"][configured]["verdict"]
    report = {
        "rows": {name: len(index) for name, index in rows._asdict().items()} | {"test_groups": sizes["test_groups"]},
        "bootstrap": {
            "resamples": settings["bootstrap"],
            "level": settings["level"],
            "unit": "group",
            "note": "test sampling, for these fitted models",
        },
        "seeds": run.config["head"]["seeds"],
        "audit": audit,
        "metrics": {
            name: {"definition": text, "better": "lower" if name in LOWER_IS_BETTER else "higher"}
            for name, text in DEFINITIONS.items()
        },
        "slices": {"seen": slices.KNOWN, "min_rows": slices.MIN_ROWS, "min_groups": slices.MIN_GROUPS},
        "targets": results,
        "verdict": primary,
    }
    write_table(stage.path("predictions.parquet"), pa.concat_tables(predictions))
    write_table(stage.path("population.parquet"), _served_rows(table, served))
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


def _feature_sets(run: Run, population: Population, seed: int) -> dict[str, FeatureSet]:
    """The configured feature set first, then the static one where that is another."""
    configured = run.config["data"]["profile_fields"]
    space = population.features
    features = space.encode(population.table)
    record = read_json(run.finished("prepare").path("features.json"))
    encoder = load_encoder(run.finished("distill").directory, features_sha256=sha256_json(record))
    early = np.array([field.role == "early" for field in space.fields])
    z = read_embeddings(run.finished("score").directory)
    untrained = _embed(encoder, features, None, seed=seed)
    found = {configured: FeatureSet(space.dense(features), z, untrained, _strings(population.table, "coarse_key"))}
    if early.any() and not early.all():
        static = replace(space, fields=tuple(field for field in space.fields if field.role == "static"))
        found["static"] = FeatureSet(
            static.dense(static.encode(population.table)),
            _embed(encoder, features, early),
            _embed(encoder, features, early, seed=seed),
            coarse_keys(population.table, [field for field in population.fields if field.role == "static"]),
        )
    return found


def _reasoned_rows(run: Run) -> np.ndarray:
    """Rows whose profiles the teacher reasoned about."""
    return read_table(run.finished("teach").path("profiles.parquet"), columns=["row"])["row"].to_numpy()


def _embed(encoder: Encoder, features: Features, withheld: np.ndarray | None, seed: int | None = None) -> np.ndarray:
    """Embeddings rounded to float16 as the population's are; with a seed, those of the initial weights."""
    params = encoder.params if seed is None else init_params(encoder.spec, seed)
    inputs = Inputs(*features)
    if withheld is not None:
        inputs = Inputs(
            *(
                np.asarray(column)
                for column in jax.jit(redact, static_argnames="spec")(inputs, jnp.asarray(withheld), spec=encoder.spec)
            )
        )
    rows = len(inputs.cat)
    return (
        embed_rows(compile_embedding(encoder.spec, params), inputs, min(_BATCH, rows))
        .astype(np.float16)
        .astype(np.float32)
    )


def _targets(population: Population) -> list[Target]:
    labels, table = population.schema.labels, population.table
    out = [Target(labels.days.column, "days", labels.days.horizon, _floats(table, labels.days.column))]
    if labels.value is not None:
        out.append(Target(labels.value.column, "value", 0, _floats(table, labels.value.column)))
    return out


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


def _served_rows(table: pa.Table, columns: dict[str, np.ndarray]) -> pa.Table:
    names = [name for name in ("row", "user_id", "snapshot", "split") if name in table.column_names]
    served = table.select(names)
    for name, values in columns.items():
        served = served.append_column(name, pa.array(values.astype(np.float32)))
    return served


def _strings(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_pylist(), object)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return table[name].cast(pa.float64()).to_numpy()
