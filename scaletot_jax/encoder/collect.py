"""Collecting the reasoning states of the distilled profiles, and the choice of the layer they are read at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.encoder import blocks as store
from scaletot_jax.encoder.probe import can_probe, candidate_layers, folds_of, ridge_probe
from scaletot_jax.encoder.selection import Profiles
from scaletot_jax.errors import ConfigError
from scaletot_jax.files import write_json
from scaletot_jax.profiles.prepare import Population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Stage
from scaletot_jax.student.policy import Student
from scaletot_jax.student.states import profile_ids, reasoning_states, state_stream

PROBE_PROFILES = 512  # distill-split profiles whose states are read at every candidate layer
DEFAULT_FRACTION = 0.75


def collect_states(
    stage: Stage,
    student: Student,
    others: Callable[[int], Student],
    population: Population,
    profiles: Profiles,
    plan: list[store.Block],
    *,
    chains: int,
    wanted: str,
    seed: int,
) -> int:
    """Makes the blocks of states that are not there yet and returns the layer used.

    The first blocks hold every candidate layer, for the probe; those after the choice hold the chosen one.

    Args:
      stage: keeps the blocks.
      student: the run's own.
      others: begin of a block → the student of its profiles, asked for where a block is made.
      population, profiles, plan: which texts, in which blocks.
      chains: a profile.
      wanted: ``distill.layer``.
      seed: of the chains.
    """
    layers = (
        candidate_layers(student.config.num_layers)
        if wanted == "auto"
        else (_fraction_layer(wanted, student.config.num_layers),)
    )
    probing = min(PROBE_PROFILES, int((profiles.source == "distill").sum()))
    if len(layers) == 1:
        probing = 0
    head = [block for block in plan if block.begin < probing]
    tail = [block for block in plan if block.begin >= probing]
    texts = population.renderer.texts(population.table.take(pa.array(profiles.rows)))
    ids = profile_ids(profiles.keys)
    missing = set(store.missing_blocks(stage.directory, plan))
    done = len(plan) - len(missing)
    chosen = 0
    with Progress("distill: states", len(plan), "blocks", done=done) as progress:
        for blocks in (head, tail):
            if blocks is tail:
                chosen = _choose_layer(stage, layers, head, profiles, probing, student.config.num_layers)
            for block in filter(missing.__contains__, blocks):
                rows = range(block.begin, block.end)
                found = reasoning_states(
                    student if blocks is head else others(block.begin),
                    [texts[i] for i in rows],
                    chains=chains,
                    seed=state_stream(seed),
                    layers=layers,
                    ids=[ids[i] for i in rows],
                )
                kept = layers if blocks is head else (chosen,)
                store.write_block(stage.directory, block, found, kept)
                progress.advance()
    return chosen


def _choose_layer(
    stage: Stage, layers: tuple[int, ...], head: list[store.Block], profiles: Profiles, probing: int, num_layers: int
) -> int:
    """The layer with the best probe; its evidence goes to ``probe.json``."""
    record: dict[str, Any] = {"candidates": list(layers), "profiles": probing, "label_users": "distill split"}
    if len(layers) == 1:
        record |= {"layer": layers[0], "reason": "set by distill.layer" if num_layers > 1 else "the only layer"}
    else:
        known = np.arange(len(profiles.rows)) < probing
        labels, folds = profiles.labels[known], folds_of(list(profiles.groups[known]), 5)
        if not can_probe(labels, folds):
            layer = min(layers, key=lambda n: (abs(n - DEFAULT_FRACTION * num_layers), n))
            record |= {
                "layer": layer,
                "reason": f"{probing} labelled profiles of the distill split cannot tell layers apart",
            }
        else:
            scores = {}
            for layer in layers:
                states = store.read_states(stage.directory, head, layer)[:probing].mean(1)
                scores[layer] = ridge_probe(states.reshape(len(states), -1), labels, folds).r2
            best = max(layers, key=lambda n: (scores[n], -n))
            record |= {
                "layer": best,
                "reason": "best cross-validated R² of the days label",
                "r2": {str(n): scores[n] for n in layers},
            }
    write_json(stage.path("probe.json"), record)
    return record["layer"]


def _fraction_layer(text: str, num_layers: int) -> int:
    try:
        fraction = float(text)
    except ValueError as error:
        raise ConfigError(
            "distill.layer must be 'auto' or a fraction of the depth", where="distill.layer", why=repr(text)
        ) from error
    if not 0 < fraction <= 1:
        raise ConfigError("distill.layer must lie in (0, 1]", where="distill.layer", why=repr(text))
    return max(1, int(np.ceil(fraction * num_layers - 1e-9)))
