"""Training one encoder in its folder: a checkpoint at a time, bit for bit after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.model import EncoderSpec, Inputs, init_params
from scaletot_jax.encoder.selection import Profiles
from scaletot_jax.encoder.spread import spread
from scaletot_jax.encoder.targets import Targets
from scaletot_jax.encoder.train import (
    CHECK_EVERY,
    LABELS,
    STATES,
    Data,
    LossWeights,
    TrainState,
    draw_rows,
    init_state,
    make_optimizer,
    train_block,
)
from scaletot_jax.encoder.value_words import likeness, start_tables
from scaletot_jax.errors import DataError
from scaletot_jax.parallel import checkpoint
from scaletot_jax.progress import Progress
from scaletot_jax.sinks import Sinks
from scaletot_jax.step_log import StepLog

Vectors = Sequence["np.ndarray | None"] | None


class Fitted(NamedTuple):
    """A trained encoder."""

    params: Any
    record: dict[str, Any]  # steps, kept_step, select_error, spread


def fit_targets(
    folder: Path,
    spec: EncoderSpec,
    profiles: Profiles,
    inputs: Inputs,
    targets: Targets,
    pool: Inputs,
    early: np.ndarray,
    settings: Mapping[str, Any],
    seed: int,
    *,
    mode: str,
    vectors: Vectors = None,
    sinks: Sinks | None = None,
) -> Fitted:
    """The whole way from targets to an encoder: emphasis, spread over profiles without states, training.

    Component j of a segment is trained with weight (λ_j / λ̄)^γ, λ its variance before whitening, γ ``distill.emphasis``: in
    whitened units (γ = 0) half of the loss is spent on directions that are noise. The weights are folded into the segment
    heads afterwards, so that :class:`~scaletot_jax.encoder.model.Encoded` is in whitened units always.

    Args:
      folder: of this encoder alone.
      spec: of the network.
      profiles: U distilled profiles.
      inputs: of them.
      targets: of them.
      pool: Q profiles without targets; none where ``distill.pool`` is 0.
      early: bool [F], behavioural fields, which are also withheld together.
      settings: the configuration's ``distill`` section.
      seed: of weights, batches and field dropout.
      mode: what the targets are, one of ``config_limits.TARGETS``.
      vectors: of the values' words, :func:`scaletot_jax.encoder.value_words.value_vectors`; None: values are strangers.
      sinks: where the lines of ``steps.jsonl`` go besides.
    """
    power = 0.0 if mode == "labels" else settings["emphasis"]
    emphasis = [(w.variance / w.variance.mean()) ** (power / 2) for w in targets.whitening]
    values = [value * scale for value, scale in zip(targets.values, emphasis)]
    known = np.all([np.isfinite(value).all(1) for value in values], axis=0)
    train, select = ((profiles.part == name) & known for name in ("train", "select"))
    record: dict[str, Any] = {}
    given = data_of(inputs, values, train)
    if settings["pool"]:
        found = spread(
            spec, Inputs(*(column[train] for column in inputs)), [value[train] for value in values],
            profiles.groups[train].astype(str), pool,
            None if vectors is None else [likeness(found) for found in vectors],
        )  # fmt: skip
        given, record = data_of(found.inputs, found.targets), {"spread": found.record}
    state = fit_encoder(
        folder, spec, given, data_of(inputs, values, select), early, settings, seed,
        vectors=vectors, weights=LABELS if mode == "labels" else STATES,
        name="encoder" if mode == settings["target"] else f"placebo {mode}", sinks=sinks,
    )  # fmt: skip
    params = dict(state.best)
    for k, scale in enumerate(emphasis):
        head = params[f"segment_{k}"]
        params[f"segment_{k}"] = {name: value / jnp.asarray(scale, jnp.float32) for name, value in head.items()}
    record |= {
        "steps": int(state.step),
        "kept_step": int(state.best_step),
        "select_error": float(state.best_error),
    }
    return Fitted(params, record)


def data_of(inputs: Inputs, targets: Sequence[np.ndarray], mask: np.ndarray | slice = slice(None)) -> Data:
    """Those of the profiles in ``mask``, for the device. inputs: U profiles; targets: for each segment [U, d_k]."""
    rows = Inputs(*(jnp.asarray(column[mask]) for column in inputs))
    return Data(rows, tuple(jnp.asarray(target[mask], jnp.float32) for target in targets))


def fit_encoder(
    folder: Path,
    spec: EncoderSpec,
    train: Data,
    select: Data,
    early: np.ndarray,
    settings: Mapping[str, Any],
    seed: int,
    *,
    vectors: Vectors = None,
    weights: LossWeights = STATES,
    name: str = "encoder",
    sinks: Sinks | None = None,
) -> TrainState:
    """Trains from the newest checkpoint of ``folder``, or from the start, to the last step; writes ``steps.jsonl``.

    Args:
      folder, spec, early, settings, seed, vectors, sinks: as in :func:`fit_targets`.
      train: what is learnt.
      select: chooses the step to keep.
      weights: of the parts of the loss.
      name: for the progress line.
    """
    checks = -(-settings["steps"] // CHECK_EVERY)
    every = max(1, settings["checkpoint_every"] // CHECK_EVERY)
    optimizer = make_optimizer(settings["learning_rate"], checks * CHECK_EVERY)
    params = init_params(spec, seed)
    if vectors is not None:
        params = jax.tree.map(jnp.asarray, start_tables(params, vectors, len(spec.cat_sizes)))
    state = init_state(params, optimizer)
    restored = checkpoint.restore(folder / "checkpoints", state)
    if restored is not None:
        state = TrainState(*restored.arrays)
    key = jax.random.fold_in(jax.random.key(seed), 5)
    steps = checks * CHECK_EVERY
    stated = restored.record.get("log") if restored is not None else None
    with (
        closing(StepLog(folder / "steps.jsonl", keep_through=int(state.step), stated=stated, sinks=sinks)) as log,
        Progress(f"distill: {name}", steps, "steps", done=int(state.step)) as progress,
    ):
        while (step := int(state.step)) < steps:
            count = min(every, checks - step // CHECK_EVERY)
            rows = draw_rows(seed, step, count, len(train.targets[0]), settings["batch_size"])
            state, metrics = train_block(
                state, train, select, rows, jnp.asarray(early), key,
                spec=spec, optimizer=optimizer, rate=settings["field_dropout"], weights=weights,
            )  # fmt: skip
            values = {name: np.asarray(value) for name, value in metrics.items()}
            for i in range(count):
                log.append(step + (i + 1) * CHECK_EVERY, **{name: value[i] for name, value in values.items()})
            checkpoint.save(folder / "checkpoints", int(state.step), state, {"log": log.sync()})
            progress.advance(count * CHECK_EVERY, f"select error {values['select_error'][-1]:.3f}")
    if not np.isfinite(float(state.best_error)):
        raise DataError("the encoder's error is not finite", where=str(folder), do="lower distill.learning_rate")
    return state
