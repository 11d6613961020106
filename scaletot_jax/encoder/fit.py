"""Training one encoder in its folder: a checkpoint at a time, bit for bit after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.model import EncoderSpec, Inputs, init_params
from scaletot_jax.encoder.train import (
    CHECK_EVERY,
    STATES,
    Data,
    LossWeights,
    TrainState,
    draw_rows,
    init_state,
    make_optimizer,
    train_block,
)
from scaletot_jax.errors import DataError
from scaletot_jax.parallel import checkpoint
from scaletot_jax.progress import Progress
from scaletot_jax.step_log import StepLog


def fit_encoder(
    folder: Path,
    spec: EncoderSpec,
    inputs: Inputs,
    targets: Sequence[np.ndarray],
    part: np.ndarray,
    early: np.ndarray,
    settings: Mapping[str, Any],
    seed: int,
    *,
    weights: LossWeights = STATES,
    name: str = "encoder",
) -> TrainState:
    """Trains from the newest checkpoint of ``folder``, or from the start, to the last step; writes ``steps.jsonl``.

    Args:
      folder: of this encoder alone.
      spec: of the network.
      inputs: U encoded profiles.
      targets: for each segment [U, d_k]; NaN rows are not trained on.
      part: [U] ``train``, ``select`` (chooses the step to keep) or another word (left alone).
      early: bool [F], behavioural fields, which are also withheld together.
      settings: the configuration's ``distill`` section.
      seed: of weights, batches and field dropout.
      weights: of the parts of the loss.
      name: for the progress line.
    """
    known = np.all([np.isfinite(target).all(1) for target in targets], axis=0)

    def data(mask: np.ndarray) -> Data:
        rows = Inputs(*(jnp.asarray(column[mask]) for column in inputs))
        return Data(rows, tuple(jnp.asarray(target[mask], jnp.float32) for target in targets))

    train, select = data((part == "train") & known), data((part == "select") & known)
    checks = -(-settings["steps"] // CHECK_EVERY)
    every = max(1, settings["checkpoint_every"] // CHECK_EVERY)
    optimizer = make_optimizer(settings["learning_rate"], checks * CHECK_EVERY)
    state = init_state(init_params(spec, seed), optimizer)
    restored = checkpoint.restore(folder / "checkpoints", state)
    if restored is not None:
        state = TrainState(*restored.arrays)
    key = jax.random.fold_in(jax.random.key(seed), 5)
    steps = checks * CHECK_EVERY
    log = StepLog(folder / "steps.jsonl", keep_through=int(state.step))
    with Progress(f"distill: {name}", steps, "steps", done=int(state.step)) as progress:
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
            checkpoint.save(folder / "checkpoints", int(state.step), state, {})
            progress.advance(count * CHECK_EVERY, f"select error {values['select_error'][-1]:.3f}")
    log.close()
    if not np.isfinite(float(state.best_error)):
        raise DataError("the encoder's error is not finite", where=str(folder), do="lower distill.learning_rate")
    return state
