"""Stage ``distill``: the student's reasoning states become the targets of a light profile encoder.

1. Choose profiles: all that the teacher reasoned about, and up to ``distill.num_profiles`` more of the distill split.
2. Sample chains and store the states at the segment ends, block by block.
3. Choose the layer by a ridge probe of the days label, on distill-split users only.
4. Whiten with the training profiles' statistics, train the encoder, report the transfer on held-out groups: those that no
   training stage of the language model saw, and apart from them those of the teacher split.

No label trains the encoder: the probe only picks a layer. Users of head, val and test are never touched.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from scaletot_jax.encoder import blocks as store
from scaletot_jax.encoder.artifact import save_encoder, sha256_json
from scaletot_jax.encoder.label_skill import label_skill
from scaletot_jax.encoder.model import EncoderSpec, Inputs, check_inputs, describe, encode, init_params
from scaletot_jax.encoder.probe import candidate_layers, folds_of, ridge_probe
from scaletot_jax.encoder.selection import Profiles, choose_profiles, profile_table
from scaletot_jax.encoder.train import CHECK_EVERY, Data, TrainState, draw_rows, init_state, make_optimizer, train_block
from scaletot_jax.encoder.transfer import evidence_by_exposure, evidence_by_slice, slices_of
from scaletot_jax.encoder.whiten import fit_whitening, whiten
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.files import read_json, read_table, write_json, write_table
from scaletot_jax.parallel import checkpoint
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.step_log import StepLog
from scaletot_jax.student.policy import Student, load_student
from scaletot_jax.student.states import reasoning_states
from scaletot_jax.teacher.identity import identity_of_model

PROBE_PROFILES = 512  # distill-split profiles whose states are read at every candidate layer
MIN_PROBE = 30  # fewer say nothing about a layer
DEFAULT_FRACTION = 0.75


def distill(run: Run) -> Stage:
    """Writes ``encoder.safetensors``, ``encoder.json``, ``probe.json``, ``profiles.parquet``, ``steps.jsonl`` and the states.

    Resumable: states a block at a time, training a checkpoint at a time, bit for bit. The summary holds the evidence of
    transfer by segment, see :func:`scaletot_jax.encoder.transfer.evidence_by_exposure`.
    """
    stage = run.stage(
        "distill",
        sections=("seed", "lm", "student", "distill"),
        needs=("prepare", "teach", "sft", "osipo"),
        extra=identity_of_model(run.config),
    )
    if stage.done:
        return stage
    settings, seed = run.config["distill"], run.config["seed"]
    population = open_population(run)
    reasoned = read_table(run.finished("teach").path("chains.parquet"), columns=["exact_key"])["exact_key"].to_pylist()
    profiles = choose_profiles(
        population.table, reasoned, population.schema.labels.days.column, settings["num_profiles"], seed
    )
    parts = {name: int((profiles.part == name).sum()) for name in ("train", "select", "held_out")}
    if parts["train"] < 2 or not parts["select"]:
        raise DataError(
            "too few profiles to distil",
            where="distill",
            why=f"{parts}",
            do="raise teacher.num_profiles or distill.num_profiles",
        )
    student = load_student(run, "osipo")
    plan = store.plan_blocks(len(profiles.rows))
    layer = collect_states(
        stage, student, population, profiles, plan, chains=settings["chains"], wanted=settings["layer"], seed=seed
    )

    states = store.read_states(stage.directory, plan, layer).astype(np.float64)  # [U, N, K, D]
    train = profiles.part == "train"
    names = [segment.name for segment in student.spec.segments]
    whitening = [fit_whitening(states[train, :, k].mean(1), settings["whiten_dim"]) for k in range(len(names))]
    inputs = Inputs(*population.features.encode(population.table.take(pa.array(profiles.rows))))
    spec = describe(
        population.features, Inputs(*(column[train] for column in inputs)),
        segments=names, target_dims=[w.axes.shape[1] for w in whitening], dim=settings["dim"], width=settings["width"],
    )  # fmt: skip
    check_inputs(spec, inputs, where="prepare/population.parquet")
    targets = [whiten(w, states[:, :, k].mean(1)) for k, w in enumerate(whitening)]
    final = train_encoder(stage, spec, inputs, targets, profiles.part, population, settings, seed)

    features_sha256 = sha256_json(read_json(run.finished("prepare").path("features.json")))
    save_encoder(
        stage.directory, spec, final.best, whitening, layer=layer, chains=settings["chains"],
        features_sha256=features_sha256, schema_sha256=sha256_json(population.schema.to_dict()),
        statistics_sha256=sha256_json([{name: np.asarray(v).tolist() for name, v in w._asdict().items()} for w in whitening]),
    )  # fmt: skip
    write_table(stage.path("profiles.parquet"), profile_table(profiles))
    held_out = profiles.part == "held_out"
    encoded = encode(final.best, spec=spec, inputs=Inputs(*(column[held_out] for column in inputs)))
    trained_groups, trained_keys = language_model_training(run, population)
    trained = np.isin(profiles.groups.astype(str), trained_groups)
    unseen = held_out & ~trained
    evidence = (names, states, held_out & ~trained, train, whitening, encoded.rows(~trained[held_out]))
    chosen_rows = population.table.take(pa.array(profiles.rows))
    present = sum(chosen_rows[field.name].is_valid().to_numpy().astype(int) for field in population.fields)
    coarse = chosen_rows["coarse_key"].to_numpy(zero_copy_only=False)
    slices = slices_of(np.asarray(present), coarse, train | np.isin(profiles.keys.astype(str), trained_keys), unseen)
    summary = {
        "profiles": {
            "total": len(profiles.rows),
            **parts,
            "from_teacher": int((profiles.source == "teacher").sum()),
            "held_out_unseen_groups": int(unseen.sum()),
            "of_them_with_a_trained_profile": int(np.isin(profiles.keys[unseen].astype(str), trained_keys).sum()),
        },
        "chains": settings["chains"],
        "layer": layer,
        "probe": read_json(stage.path("probe.json")),
        "training": {
            "steps": int(final.step),
            "kept_step": int(final.best_step),
            "select_error": float(final.best_error),
        },
        "labels_used_for_training": False,
        "transfer": evidence_by_exposure(names, states, held_out, trained, train, whitening, encoded),
        "transfer_slices": evidence_by_slice(slices, *evidence),
        "label_skill": states_label_skill(states, profiles, seed),
    }
    artifacts = [
        "encoder.safetensors",
        "encoder.json",
        "probe.json",
        "profiles.parquet",
        "steps.jsonl",
        *(block.file for block in plan),
    ]
    stage.finish(artifacts, summary=summary)
    return stage


def states_label_skill(states: np.ndarray, profiles: Profiles, seed: int) -> dict[str, Any] | None:
    """What the states of distill-split profiles tell of their days label, out of fold; None where they are too few."""
    known = np.isfinite(profiles.labels)
    labels, folds = profiles.labels[known], folds_of(list(profiles.groups[known]), 5)
    if not _can_probe(labels, folds):
        return None
    flat = states[known].mean(1)
    probe = ridge_probe(flat.reshape(len(flat), -1), labels, folds)
    return label_skill(probe, labels, profiles.groups[known].astype(str), seed=seed).to_dict()


def language_model_training(run: Run, population: Population) -> tuple[np.ndarray, np.ndarray]:
    """Groups and exact keys of the rows that the teacher, and with its chains SFT, or OSIPO used, as those stages wrote them."""
    rows = [
        read_table(run.finished(stage).path(f"{name}.parquet"), columns=["row"])["row"].to_numpy()
        for stage, name in (("teach", "profiles"), ("osipo", "users"))
    ]
    used = population.table.take(pa.array(np.unique(np.concatenate(rows))))
    return tuple(np.unique(np.asarray(used[name].to_pylist(), str)) for name in ("group", "exact_key"))  # type: ignore[return-value]


def collect_states(
    stage: Stage,
    student: Student,
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
    # A profile's chains depend on the run's seed and on the profile alone, not on which others are distilled.
    stream = int(hashlib.sha256(f"{seed}:reasoning states".encode()).hexdigest()[:7], 16)
    ids = [int(key[:6], 16) for key in profiles.keys]
    done = len(plan) - len(store.missing_blocks(stage.directory, plan))
    chosen = 0
    with Progress("distill: states", len(plan), "blocks", done=done) as progress:
        for blocks in (head, tail):
            if blocks is tail:
                chosen = _choose_layer(stage, layers, head, profiles, probing, student.config.num_layers)
            for block in store.missing_blocks(stage.directory, blocks):
                rows = range(block.begin, block.end)
                found = reasoning_states(
                    student,
                    [texts[i] for i in rows],
                    chains=chains,
                    seed=stream,
                    layers=layers,
                    ids=[ids[i] for i in rows],
                )
                kept = layers if blocks is head else (chosen,)
                store.write_block(
                    stage.directory,
                    block,
                    {n: found.states[n] for n in kept},
                    {n: found.prompt_end[n] for n in kept},
                    found.answers,
                )
                progress.advance()
    return chosen


def train_encoder(
    stage: Stage,
    spec: EncoderSpec,
    inputs: Inputs,
    targets: list[np.ndarray],
    part: np.ndarray,
    population: Population,
    settings: dict[str, Any],
    seed: int,
) -> TrainState:
    """Trains from the newest checkpoint, or from the start, to the last step."""

    def data(mask: np.ndarray) -> Data:
        rows = Inputs(*(jnp.asarray(column[mask]) for column in inputs))
        return Data(rows, tuple(jnp.asarray(target[mask], jnp.float32) for target in targets))

    train, select = data(part == "train"), data(part == "select")
    early = jnp.asarray([population.schema.field(name).role == "early" for name in spec.fields])
    checks = -(-settings["steps"] // CHECK_EVERY)
    every = max(1, settings["checkpoint_every"] // CHECK_EVERY)
    optimizer = make_optimizer(settings["learning_rate"], checks * CHECK_EVERY)
    state = init_state(init_params(spec, seed), optimizer)
    restored = checkpoint.restore(stage.path("checkpoints"), state)
    if restored is not None:
        state = TrainState(*restored.arrays)
    key = jax.random.fold_in(jax.random.key(seed), 5)
    steps = checks * CHECK_EVERY
    log = StepLog(stage.path("steps.jsonl"), keep_through=int(state.step))
    with Progress("distill: encoder", steps, "steps", done=int(state.step)) as progress:
        while (step := int(state.step)) < steps:
            count = min(every, checks - step // CHECK_EVERY)
            rows = draw_rows(seed, step, count, len(train.targets[0]), settings["batch_size"])
            state, metrics = train_block(
                state, train, select, rows, early, key, spec=spec, optimizer=optimizer, rate=settings["field_dropout"]
            )
            values = {name: np.asarray(value) for name, value in metrics.items()}
            for i in range(count):
                log.append(step + (i + 1) * CHECK_EVERY, **{name: value[i] for name, value in values.items()})
            checkpoint.save(stage.path("checkpoints"), int(state.step), state, {})
            progress.advance(count * CHECK_EVERY, f"select error {values['select_error'][-1]:.3f}")
    log.close()
    if not np.isfinite(float(state.best_error)):
        raise DataError(
            "the encoder's error is not finite", where=str(stage.directory), do="lower distill.learning_rate"
        )
    return state


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
        if not _can_probe(labels, folds):
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


def _can_probe(labels: np.ndarray, folds: np.ndarray) -> bool:
    """Whether a probe of these labels [U] would say anything."""
    return len(labels) >= MIN_PROBE and len(np.unique(folds)) >= 2 and labels.std() > 0


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
