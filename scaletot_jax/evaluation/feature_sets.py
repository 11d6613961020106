"""The inputs of the comparison, for all rows: profile features, ẑ, the placebos' embeddings, and what baselines read.

Two feature sets are judged: the profile fields as configured, and the static ones alone. For the latter every embedding is
computed with the early fields withheld, so that nothing behavioural reaches a head by way of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.chains.spec import spec_of_run
from scaletot_jax.encoder import blocks as store
from scaletot_jax.encoder.artifact import Encoder, load_encoder, sha256_json
from scaletot_jax.encoder.embed import embed
from scaletot_jax.encoder.model import init_params
from scaletot_jax.encoder.placebos import load_placebos
from scaletot_jax.encoder.score import read_embeddings
from scaletot_jax.encoder.whiten import whiten
from scaletot_jax.errors import ScaleToTError
from scaletot_jax.evaluation.baselines.known import Answers, Known, Missing
from scaletot_jax.evaluation.baselines.sentence_model import embed_texts, load_sentence_model
from scaletot_jax.evaluation.predictions import Rows
from scaletot_jax.files import read_arrays, read_json, read_table
from scaletot_jax.profiles.fields import Field
from scaletot_jax.profiles.keys import coarse_keys
from scaletot_jax.profiles.prepare import Population
from scaletot_jax.run import Run

_BINS = 8  # quantile bins of a number


class FeatureSet(NamedTuple):
    """Inputs of one comparison, for all rows."""

    dense: np.ndarray  # [U, P] profile features
    z: np.ndarray  # [U, E] ẑ from the same fields
    untrained: np.ndarray  # [U, E] of the encoder's initial weights
    coarse: np.ndarray  # [U] coarse key of the fields in use
    fields: tuple[Field, ...] = ()  # in use
    rivals: Mapping[str, np.ndarray] = {}  # "encoder_MODE" → [U, E]


def feature_sets(run: Run, population: Population, seed: int) -> dict[str, FeatureSet]:
    """The configured feature set first, then the static one where that is another."""
    configured = run.config["data"]["profile_fields"]
    space = population.features
    features = space.encode(population.table)
    record = read_json(run.finished("prepare").path("features.json"))
    encoder = load_encoder(run.finished("distill").directory, features_sha256=sha256_json(record))
    early = np.array([field.role == "early" for field in space.fields])
    z = read_embeddings(run.finished("score").directory)
    untrained = encoder._replace(params=init_params(encoder.spec, seed))
    coarse = np.asarray(population.table["coarse_key"].to_pylist(), object)
    rivals = _placebos(run)
    found = {
        configured: FeatureSet(
            space.dense(features), z, embed(untrained, features), coarse, tuple(population.fields),
            {f"encoder_{mode}": embed(other, features) for mode, other in rivals.items()},
        )
    }  # fmt: skip
    if early.any() and not early.all():
        static = replace(space, fields=tuple(field for field in space.fields if field.role == "static"))
        fields = tuple(field for field in population.fields if field.role == "static")
        found["static"] = FeatureSet(
            # Columns of zeros in place of the early ones: one shape, one compiled program for the heads of both sets.
            _padded(static.dense(static.encode(population.table)), space.dense(features).shape[1]),
            embed(encoder, features, withheld=early),
            embed(untrained, features, withheld=early),
            coarse_keys(population.table, fields),
            fields,
            {f"encoder_{mode}": embed(other, features, withheld=early) for mode, other in rivals.items()},
        )
    return found


def known_of(
    run: Run, population: Population, found: FeatureSet, rows: Rows, groups: np.ndarray, seed: int, *, text: bool
) -> Known:
    """What the baselines of a feature set may read.

    Args:
      text: whether to embed the rendered profiles, which show the configured fields.
    """
    latent_rows, latent = _latent(run)
    embedded, why = (
        _texts(run, population, rows)
        if text
        else (None, Missing("run on the configured profile fields only", note="not run"))
    )
    codes = field_codes(population.table, found.fields, rows.head)
    names = tuple(field.name for field in found.fields if field.kind != "text")
    return Known(
        rows, found.dense, codes, names, found.coarse, groups, seed, run.config["head"], z=found.z, text=embedded, no_text=why,
        teacher=_teacher_answers(run, population, found.coarse), student=_student_answers(run, population, found.coarse),
        latent_rows=latent_rows, latent=latent,
    )  # fmt: skip


def field_codes(table: pa.Table, fields: tuple[Field, ...], head: np.ndarray) -> np.ndarray:
    """[U, F] int64: the value of each field as a number; numbers and dates in quantile bins of the head rows; missing is one more
    value. Free text is left out."""
    out = []
    for field in fields:
        column = table[field.name]
        if field.kind == "text":
            continue
        if field.kind in ("number", "date"):
            if pa.types.is_date32(column.type):
                column = column.cast(pa.int32())
            value = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
            seen = value[head][np.isfinite(value[head])]
            edges = np.unique(np.quantile(seen, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(seen) else np.zeros(0)
            out.append(np.where(np.isfinite(value), np.searchsorted(edges, value, side="right"), len(edges) + 1))
            continue
        if field.kind == "multi":
            column = pc.binary_join(column, "\x1f")
        texts = pc.fill_null(column.cast(pa.string()), "\x00").to_pylist()
        out.append(np.unique(np.asarray(texts, object).astype(str), return_inverse=True)[1].reshape(-1))
    return np.stack(out, axis=1).astype(np.int64) if out else np.zeros((table.num_rows, 0), np.int64)


def _padded(dense: np.ndarray, width: int) -> np.ndarray:
    return np.pad(dense, ((0, 0), (0, width - dense.shape[1])))


def _placebos(run: Run) -> Mapping[str, Encoder]:
    """Encoders trained on other targets; none where the run was made without."""
    return load_placebos(run) if run.config["distill"].get("placebos") else {}


def _texts(run: Run, population: Population, rows: Rows) -> tuple[np.ndarray | None, Missing | None]:
    """Sentence embeddings [U, D] of the head, val and test rows, NaN elsewhere; or why there are none."""
    used = np.sort(np.concatenate(rows))
    most = run.config["evaluate"]["sentence_rows"]
    if len(used) > most:
        return None, Missing(f"{len(used):,} rows are more than evaluate.sentence_rows = {most:,}", note="not run")
    try:
        model = load_sentence_model()
    except Missing as missing:
        return None, missing
    embedded = embed_texts(model, population.renderer.texts(population.table.take(pa.array(used))))
    out = np.full((population.table.num_rows, embedded.shape[1]), np.nan, np.float32)
    out[used] = embedded
    return out, None


def _bucket_edges(run: Run) -> np.ndarray:
    return np.array([low for low, _ in spec_of_run(run.config).answer.buckets])


def _answers(
    run: Run, population: Population, coarse: np.ndarray, keys: list[str], probabilities: np.ndarray
) -> Answers | None:
    """Answers by coarse key; None where they are not over the buckets of the chain specification."""
    try:
        edges = _bucket_edges(run)
    except ScaleToTError:  # the specification file is gone
        return None
    if probabilities.ndim != 2 or probabilities.shape[1] != len(edges):
        return None
    first: dict[str, int] = {}
    for row, key in enumerate(population.table["exact_key"].to_pylist()):
        first.setdefault(key, row)
    rows = np.array([first[key] for key in keys], np.int64)
    column = population.schema.labels.days.column
    return Answers(coarse[rows], probabilities.astype(np.float64), edges, column)


def _teacher_answers(run: Run, population: Population, coarse: np.ndarray) -> Answers | None:
    table = read_table(run.finished("teach").path("chains.parquet"))
    if "answer" not in table.column_names:
        return None
    table = table.filter(pc.equal(table["rank"], 0))
    probabilities = np.asarray(table["answer"].to_pylist(), np.float64)
    return _answers(run, population, coarse, table["exact_key"].to_pylist(), probabilities)


def _student_answers(run: Run, population: Population, coarse: np.ndarray) -> Answers | None:
    stage = run.finished("distill")
    keys = read_table(stage.path("profiles.parquet"), columns=["exact_key"])["exact_key"].to_pylist()
    found = [read_arrays(stage.path(block.file))["answers"] for block in store.distilled_blocks(stage)]
    return _answers(run, population, coarse, keys, np.concatenate(found).mean(1))


def _latent(run: Run) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Rows of the profiles that trained the encoder, and their whitened reasoning states [N, d]."""
    stage = run.finished("distill")
    encoder: Encoder = load_encoder(stage.directory)
    record: dict[str, Any] = encoder.record
    if record.get("target", "states") != "states":
        return None, None
    profiles = read_table(stage.path("profiles.parquet"))
    train = np.asarray(profiles["part"].to_pylist(), object) == "train"
    states = store.read_states(stage.directory, store.distilled_blocks(stage), record["layer"])[train]
    segments = [whiten(w, states[:, :, k].mean(1)) for k, w in enumerate(encoder.whitening)]
    return profiles["row"].to_numpy()[train], np.concatenate(segments, axis=1)
