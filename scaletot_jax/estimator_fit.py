"""What :class:`scaletot_jax.estimator.ScaleToTEncoder` does, by the functions of the line: a served model in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from scaletot_jax.encoder.artifact import load_encoder, save_encoder, sha256_json
from scaletot_jax.encoder.embed import embed
from scaletot_jax.encoder.fit import data_of, fit_encoder
from scaletot_jax.encoder.model import Inputs, check_inputs, describe
from scaletot_jax.encoder.targets import Targets, label_targets, whitened_targets
from scaletot_jax.encoder.train import LABELS, STATES
from scaletot_jax.errors import DataError
from scaletot_jax.evaluation.comparison import fit_target
from scaletot_jax.evaluation.heads import Scaler
from scaletot_jax.evaluation.kept_heads import write_heads
from scaletot_jax.evaluation.predictions import Rows, targets_of
from scaletot_jax.export.levels import all_logits
from scaletot_jax.files import read_json, write_json
from scaletot_jax.losses.ltv import hurdle_distribution
from scaletot_jax.population.compute import compile_columns
from scaletot_jax.population.forward import nested_survivals
from scaletot_jax.population.model import ServedModel, copy_parts, seal_model
from scaletot_jax.population.probe import write_probe
from scaletot_jax.population.rows import Layout, RowEncoder
from scaletot_jax.population.watch import training_reference
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.schema import Schema
from scaletot_jax.profiles.split import TRAIN, unit_hash
from scaletot_jax.profiles.table import validate

SELECT, OF_ENCODER = (
    0.2,
    0.6,
)  # hash of the group below: chooses steps and penalties; below: the encoder's, where labels train it
_BATCH = 512
_LEAST = 20  # rows of each part


def fit_table(
    table: pa.Table, schema: Schema, states: Any, settings: Mapping[str, Any], folder: Path
) -> tuple[ServedModel, str]:
    """Fits features, encoder and heads, and writes them as a served model.

    Users (groups) are divided by hash: a fifth chooses training steps and penalties. With states the others train encoder
    and heads; with labels alone half of them train the encoder and half the heads, so that no label is used twice.

    Args:
      table: with the schema's columns.
      states: see :meth:`scaletot_jax.estimator.ScaleToTEncoder.fit`; None: labels.
      settings: the estimator's parameters.
      folder: of the model.

    Returns:
      the model, and ``states`` or ``labels``.
    """
    rows = validate(table, schema, where="X")
    seed, mode = settings["seed"], "labels" if states is None else "states"
    fields = schema.profile_fields(settings["profile_fields"])
    place = unit_hash(rows["group"].to_pylist(), seed, "estimator")
    part = np.where(place < SELECT, "select", "train").astype(object)
    of_heads = place >= SELECT
    if mode == "labels":
        part[place >= OF_ENCODER] = "heads"
        of_heads = place >= OF_ENCODER
    chosen = {"select": part == "select", "encoder": part == "train", "heads": of_heads}
    few = {name: int(mask.sum()) for name, mask in chosen.items() if mask.sum() < _LEAST}
    if few:
        raise DataError("too few rows to fit", where="X", why=f"{few}, at least {_LEAST} each", do="give more users")
    train = rows.filter(pa.array(part != "select"))
    space = FeatureSpace.fit(train, schema, fields)
    features = space.encode(rows)
    inputs = Inputs(*features)
    targets = _label_targets(rows, schema, chosen["encoder"]) if states is None else state_targets(states, chosen["encoder"], settings)  # fmt: skip
    if len(targets.values[0]) != rows.num_rows:
        raise DataError("states have another length than X", why=f"{len(targets.values[0])}, not {rows.num_rows}")
    known = np.all([np.isfinite(value).all(1) for value in targets.values], axis=0)
    if min(int((known & chosen[name]).sum()) for name in ("encoder", "select")) < 2:
        raise DataError("too few rows have states", where="states", why=f"{int(known.sum())} of {rows.num_rows} rows")
    fitting = chosen["encoder"] & known
    spec = describe(
        space, Inputs(*(column[fitting] for column in inputs)), segments=targets.names,
        target_dims=[value.shape[1] for value in targets.values], dim=settings["dim"], width=settings["width"],
    )  # fmt: skip
    check_inputs(spec, inputs, where="X")
    early = np.array([schema.field(name).role == "early" for name in spec.fields])
    distill = {name: settings[name] for name in ("steps", "batch_size", "learning_rate", "field_dropout")}
    state = fit_encoder(
        folder.parent / "fit", spec, data_of(inputs, targets.values, fitting),
        data_of(inputs, targets.values, chosen["select"] & known), early, {**distill, "checkpoint_every": settings["steps"]},
        seed, weights=LABELS if mode == "labels" else STATES,
    )  # fmt: skip
    copy_parts({}, folder)
    write_json(folder / "features.json", space.to_dict())
    write_json(folder / "schema.json", {"schema": schema.to_dict(), "profile_fields": settings["profile_fields"]})
    save_encoder(
        folder, spec, state.best, targets.whitening, target=mode, features_sha256=sha256_json(read_json(folder / "features.json"))
    )  # fmt: skip
    x = np.concatenate([space.dense(features), embed(load_encoder(folder), features)], axis=1)
    _write_heads(folder, rows, schema, x, Rows(*(np.flatnonzero(m) for m in (of_heads, chosen["select"], of_heads))), settings, space)  # fmt: skip
    split = np.where(part == "select", "val", TRAIN[0]).astype(object)
    population = rows.append_column("split", pa.array(split, pa.string()))
    model = seal_model(
        folder, reference=lambda model: training_reference(model, population), add=[write_probe], target=mode
    )
    return model, mode


def _write_heads(
    folder: Path,
    rows: pa.Table,
    schema: Schema,
    x: np.ndarray,
    split: Rows,
    settings: Mapping[str, Any],
    space: FeatureSpace,
) -> None:
    scaler = Scaler.fit(x[split.head])
    head = {name: settings[f"head_{name}"] for name in ("seeds", "width", "steps", "learning_rate", "penalties")}
    head["batch_size"] = settings["batch_size"]
    standard = scaler.apply(x)
    kept = [
        fit_target(target, standard, split, head, settings["seed"])[1] for target in targets_of(schema.labels, rows)
    ]
    columns = space.dense_columns()
    write_heads(
        folder, kept, scaler, profile_fields=settings["profile_fields"], columns=columns, dim=x.shape[1] - len(columns)
    )


def fit_run(workdir: Path, folder: Path) -> tuple[ServedModel, str]:
    """The served model of a finished run, by its own configuration."""
    from scaletot_jax.population.export import export_model
    from scaletot_jax.run import Run

    config = read_json(workdir / "config.json")
    with Run(workdir, config, lock=False) as run:
        return export_model(run, folder), str(config["distill"].get("target", "states"))


def predict_table(model: ServedModel, table: pa.Table, *, probabilities: bool) -> dict[str, np.ndarray]:
    """The columns of ``scaletot score``, float32; with ``probabilities`` those of days, too, [U, horizon + 1]."""
    layout = Layout({}, {field.name: field.source for field in model.fields})
    missing = [name for name in layout.columns if name not in table.column_names]
    if missing:
        raise DataError("a table lacks columns of the model", where="X", why=f"missing: {', '.join(missing)}", do="add them, null where unknown")  # fmt: skip
    if not table.num_rows:
        raise DataError("the table has no rows", where="X")
    _, features = RowEncoder(model.space, layout)(table.select(layout.columns), first=0, where="X")
    inputs = Inputs(*features)
    check_inputs(model.spec.encoder, inputs, where="X")
    found = compile_columns(model.params, model.spec, embedding="float32", batch_rows=_BATCH)(inputs)
    if probabilities:
        found |= _probabilities(model, inputs)
    return found


def _probabilities(model: ServedModel, inputs: Inputs) -> dict[str, np.ndarray]:
    """P(y = j) of every label of days, the mean over seeds; of several horizons those that agree, as in the expectations."""
    rows, out = inputs.cat.shape[0], {}
    parts: dict[str, list[np.ndarray]] = {}
    for begin in range(0, rows, _BATCH):
        index = np.minimum(np.arange(begin, begin + _BATCH), rows - 1)
        logits = _logits(model.params, model.spec, Inputs(*(column[index] for column in inputs)))
        agreed = nested_survivals(model.spec, logits)
        for place, (target, one) in enumerate(zip(model.spec.targets, logits)):
            if target.kind == "days":
                if place in agreed:
                    above = np.pad(np.asarray(agreed[place], np.float64), ((0, 0), (1, 0)), constant_values=1.0)
                    mean = above - np.pad(above[:, 1:], ((0, 0), (0, 1)))
                else:
                    mean = np.asarray(jnp.mean(hurdle_distribution(one), axis=1), np.float64)
                parts.setdefault(target.column, []).append(mean[: min(_BATCH, rows - begin)])
    for column, found in parts.items():
        whole = np.concatenate(found)
        out[f"probabilities_{column}"] = whole / whole.sum(1, keepdims=True)
    return out


_logits = jax.jit(all_logits, static_argnames="spec")


def _label_targets(rows: pa.Table, schema: Schema, train: np.ndarray) -> Targets:
    return label_targets({name: _numbers(rows, name) for name in schema.labels.columns}, train)


def state_targets(states: Any, train: np.ndarray, settings: Mapping[str, Any]) -> Targets:
    """Targets of reasoning states in any of the forms of ``fit``; rows without any become NaN. train: bool [U]."""
    if isinstance(states, Mapping):
        names, parts = list(states), [np.asarray(part, np.float64) for part in states.values()]
    else:
        whole = np.asarray(states, np.float64)
        if whole.ndim not in (3, 4):
            raise DataError(
                "states have another shape", where="states", why=f"{whole.shape}", do="[U, K, D] or [U, N, K, D]"
            )
        parts = [whole[..., k, :] for k in range(whole.shape[-2])]
        names = [f"segment_{k}" for k in range(len(parts))]
    chains = [part[:, None] if part.ndim == 2 else part for part in parts]
    if not chains or any(chain.ndim != 3 or len(chain) != len(train) for chain in chains):
        raise DataError(
            "states have another shape", where="states", why=f"{[part.shape for part in parts]} for {len(train)} rows",
            do="[U, D] or [U, N, D] for each segment",
        )  # fmt: skip
    known = np.all([np.isfinite(chain).all((1, 2)) for chain in chains], axis=0)
    if (known & train).sum() < 2:
        raise DataError("too few rows have states", where="states", why=f"{int(known.sum())} of {len(train)} rows")
    return whitened_targets(names, chains, known & train, settings["whiten_dim"])


def _numbers(rows: pa.Table, name: str) -> np.ndarray:
    return rows[name].cast(pa.float64()).to_numpy()
