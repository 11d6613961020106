"""Placebos of the distilled encoder: the same network, trained by the same code on the same profiles, on other targets.

A gain of ẑ may be put down to reasoning only where ẑ beats the encoder that was trained on labels alone, on shuffled states,
on random projections of the profile and on prompt ends (:mod:`scaletot_jax.encoder.targets`). Stage ``distill`` trains one
for each mode in ``distill.placebos`` and leaves it in ``distill/placebos/MODE/`` in the format of
:mod:`scaletot_jax.encoder.artifact`::

    for mode, encoder in load_placebos(run).items():
        z = embed(encoder, features)          # scaletot_jax.encoder.embed: [U, E] for every row, like the distilled ẑ
        z_static = embed(encoder, features, withheld=early)

With ``distill.target = MODE`` the whole line (score, evaluate, export) runs on that encoder instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.encoder import blocks as store
from scaletot_jax.encoder.artifact import Encoder, load_encoder, save_encoder, sha256_json
from scaletot_jax.encoder.fit import Fitted
from scaletot_jax.encoder.model import EncoderSpec
from scaletot_jax.encoder.targets import Targets, label_targets, random_targets, shuffled_targets, whitened_targets
from scaletot_jax.files import read_json, seal, sealed
from scaletot_jax.run import Run, Stage

FOLDER = "placebos"


class Source(NamedTuple):
    """What targets are made of; of U distilled profiles."""

    directory: Path  # of the stage, where the states lie
    plan: list[store.Block]
    layer: int
    segments: tuple[str, ...]
    part: np.ndarray  # [U] "train", "select" or "held_out"
    dense: np.ndarray  # [U, P] dense profile features
    labels: dict[str, np.ndarray]  # column → [U]
    dim: int  # most whitened directions
    seed: int


def make_targets(mode: str, source: Source) -> Targets:
    """The targets of a mode, one of ``config_limits.TARGETS``."""
    train = source.part == "train"
    if mode == "labels":
        return label_targets(source.labels, train)
    if mode == "random":
        return random_targets(source.segments, source.dense, train, source.dim, source.seed)
    kind = "states" if mode == "shuffled" else mode
    found = store.read_states(source.directory, source.plan, source.layer, kind)
    chains = [found[:, None]] if kind == "prompt_end" else [found[:, :, k] for k in range(len(source.segments))]
    names = ("prompt_end",) if kind == "prompt_end" else source.segments
    targets = whitened_targets(names, chains, train, source.dim)
    return shuffled_targets(targets, source.part, source.seed) if mode == "shuffled" else targets


def train_placebos(
    stage: Stage,
    source: Source,
    spec: EncoderSpec,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    train: Callable[[Path, EncoderSpec, Targets, str], Fitted],
) -> dict[str, Any]:
    """Trains those of ``settings["placebos"]`` that are not there yet; one that was interrupted goes on.

    Args:
      stage: ``distill``.
      source: of the targets.
      spec: of the main encoder; a placebo differs in its segment heads alone, which are not served.
      identity: facts for ``encoder.json``.
      settings: the configuration's ``distill`` section.
      train: (folder, spec, targets, mode) → fitted, the same code as for the main encoder.

    Returns:
      mode → what training said of itself.
    """
    records = {}
    for mode in settings["placebos"]:
        folder = stage.path(FOLDER) / mode
        files = [folder / f"encoder.{kind}" for kind in ("safetensors", "json")]
        if not all(map(sealed, files)):
            targets = make_targets(mode, source)
            widths = [w.axes.shape[1] for w in targets.whitening]
            own = EncoderSpec.from_dict({**spec.to_dict(), "segments": targets.names, "target_dims": widths})
            fitted = train(folder, own, targets, mode)
            save_encoder(folder, own, fitted.params, targets.whitening, target=mode, training=fitted.record, **identity)
            for path in files:
                seal(path)
        records[mode] = read_json(folder / "encoder.json")["training"]
    return records


def load_placebos(run: Run) -> dict[str, Encoder]:
    """Mode → encoder, in the order of ``distill.placebos``.

    Raises:
      StaleRunError: an encoder was trained with another feature space, or its file was changed.
    """
    stage = run.finished("distill")
    features = sha256_json(read_json(run.finished("prepare").path("features.json")))
    found = {}
    for mode in run.config["distill"]["placebos"]:
        stage.check_artifacts(only=f"{FOLDER}/{mode}/encoder.json")
        found[mode] = load_encoder(stage.path(FOLDER) / mode, features_sha256=features)
    return found
