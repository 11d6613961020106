"""Stage ``distill``: the student's reasoning states become the targets of a light profile encoder.

1. Choose profiles: all that the teacher reasoned about, and up to ``distill.num_profiles`` more of the distill split.
2. Sample chains and store the states at the segment ends, block by block.
3. Choose the layer by a ridge probe of the days label, on distill-split users only.
4. Whiten with the training profiles' statistics, train the encoder, report the transfer on held-out groups: those that no
   training stage of the language model saw, and apart from them those of the teacher split.
5. Train the placebos of ``distill.placebos``, each with the same code on the same profiles, see
   :mod:`scaletot_jax.encoder.placebos`.

With ``distill.target = states`` no label trains the encoder: the probe only picks a layer. No state and no label of users of
head, val and test is ever read; profiles of the head split may stand, without their labels, among those that the states are spread
over (:mod:`scaletot_jax.encoder.spread`).
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.encoder import blocks as store
from scaletot_jax.encoder.artifact import save_encoder, sha256_json
from scaletot_jax.encoder.collect import collect_states
from scaletot_jax.encoder.fit import Fitted, fit_targets
from scaletot_jax.encoder.label_skill import label_skill
from scaletot_jax.encoder.model import Encoded, EncoderSpec, Inputs, check_inputs, describe, encode
from scaletot_jax.encoder.placebos import FOLDER, Source, make_targets, train_placebos
from scaletot_jax.encoder.probe import can_probe, folds_of, ridge_probe
from scaletot_jax.encoder.selection import Profiles, choose_profiles, profile_table
from scaletot_jax.encoder.share import goal, share_of_ceiling
from scaletot_jax.encoder.slot_probe import probe_slots
from scaletot_jax.encoder.spread import pool_rows
from scaletot_jax.encoder.student_folds import OWN, deal, fold_student
from scaletot_jax.encoder.targets import Targets
from scaletot_jax.encoder.transfer import TRAINED, UNSEEN, evidence_by_exposure, evidence_by_slice, slices_of
from scaletot_jax.encoder.value_words import value_vectors
from scaletot_jax.encoder.whiten import whiten
from scaletot_jax.errors import DataError
from scaletot_jax.files import read_json, read_table, write_table
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.run import Run, Stage
from scaletot_jax.sinks import Sinks, open_sinks
from scaletot_jax.student.policy import Student, load_student
from scaletot_jax.teacher.identity import identity_of_model


def distill(run: Run) -> Stage:
    """Writes ``encoder.safetensors``, ``encoder.json``, ``probe.json``, ``profiles.parquet``, ``steps.jsonl``, the states, and
    ``placebos/MODE/`` with an encoder each.

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
    fold = deal(profiles, settings["student_folds"], seed)
    order = np.argsort(fold, kind="stable")
    fold, profiles = fold[order], Profiles(*(column[order] for column in profiles))
    student = load_student(run, settings["student"])
    counts = [int(count) for count in np.unique(fold, return_counts=True)[1]]
    plan = store.plan_blocks(*counts)

    @lru_cache(maxsize=1)
    def student_of(number: int) -> Student:
        return student if number == OWN else fold_student(run, stage, profiles, fold == number, number)

    layer = collect_states(
        stage, student, lambda begin: student_of(int(fold[begin])), population, profiles, plan,
        chains=settings["chains"], wanted=settings["layer"], seed=seed,
    )  # fmt: skip

    train = profiles.part == "train"
    space = population.features
    features = space.encode(population.table.take(pa.array(profiles.rows)))
    inputs = Inputs(*features)
    source = Source(
        stage.directory, plan, layer, tuple(segment.name for segment in student.spec.segments), profiles.part,
        space.dense(features), labels_of(population, profiles), settings["whiten_dim"], seed,
    )  # fmt: skip
    targets = make_targets(settings["target"], source)
    names, whitening = list(targets.names), list(targets.whitening)
    spec = describe(
        space, Inputs(*(column[train] for column in inputs)),
        segments=names, target_dims=[w.axes.shape[1] for w in whitening], dim=settings["dim"], width=settings["width"],
    )  # fmt: skip
    check_inputs(spec, inputs, where="prepare/population.parquet")
    early = np.array([population.schema.field(name).role == "early" for name in spec.fields])
    chosen = (
        pool_rows(population.table, profiles, settings["pool"], seed) if settings["pool"] else np.zeros(0, np.int64)
    )
    pool = Inputs(*space.encode(population.table.take(pa.array(chosen))))

    vectors = None
    if settings["value_init"] == "words":
        tokenize = partial(student.tokenizer.encode, control=False)
        vectors = value_vectors(space, np.asarray(student.params["embed"]), tokenize)

    def fit(folder: Path, spec: EncoderSpec, targets: Targets, mode: str, sinks: Sinks | None = None) -> Fitted:
        return fit_targets(
            folder, spec, profiles, inputs, targets, pool, early, settings, seed,
            mode=mode, vectors=vectors, sinks=sinks,
        )  # fmt: skip

    with open_sinks(run.workdir, "distill", run.config) as sinks:  # placebos are not reported
        final = fit(stage.directory, spec, targets, settings["target"], sinks)
    identity = {
        "layer": layer,
        "chains": settings["chains"],
        "features_sha256": sha256_json(read_json(run.finished("prepare").path("features.json"))),
        "schema_sha256": sha256_json(population.schema.to_dict()),
    }
    save_encoder(
        stage.directory, spec, final.params, whitening, target=settings["target"], training=final.record, **identity
    )
    placebos = train_placebos(stage, source, spec, identity, settings, fit)
    write_table(stage.path("profiles.parquet"), profile_table(profiles))
    held_out = profiles.part == "held_out"
    everyone = encode(final.params, spec=spec, inputs=inputs)
    encoded = everyone.rows(held_out)
    trained_groups, trained_keys = language_model_training(run, population)
    trained = np.isin(profiles.groups.astype(str), trained_groups)
    unseen = held_out & ~trained
    evidence = (names, targets.chains, held_out & ~trained, train, whitening, encoded.rows(~trained[held_out]))
    chosen_rows = population.table.take(pa.array(profiles.rows))
    present = sum(chosen_rows[field.name].is_valid().to_numpy().astype(int) for field in population.fields)
    coarse = chosen_rows["coarse_key"].to_numpy(zero_copy_only=False)
    slices = slices_of(np.asarray(present), coarse, train | np.isin(profiles.keys.astype(str), trained_keys), unseen)
    told = settings["target"] != "labels"  # of labels there is no ceiling
    skill = states_label_skill(store.read_states(stage.directory, plan, layer).astype(np.float64), profiles, seed)
    summary = {
        "profiles": {
            "total": len(profiles.rows),
            **parts,
            "from_teacher": int((profiles.source == "teacher").sum()),
            "held_out_unseen_groups": int(unseen.sum()),
            "of_them_with_a_trained_profile": int(np.isin(profiles.keys[unseen].astype(str), trained_keys).sum()),
        },
        "chains": settings["chains"],
        "student_folds": settings["student_folds"],
        "profiles_by_student": counts,
        "layer": layer,
        "probe": read_json(stage.path("probe.json")),
        "training": final.record,
        "target": settings["target"],
        "placebos": placebos,
        "labels_used_for_training": settings["target"] == "labels",
        "transfer": evidence_by_exposure(names, targets.chains, held_out, trained, train, whitening, encoded)
        if told
        else {},
        "transfer_slices": evidence_by_slice(slices, *evidence) if told else {},
        "transfer_goal": goal_by_exposure(targets, everyone, profiles, held_out, trained, skill, seed) if told else {},
        "slot_probe": probe_slots(
            np.asarray(everyone.embedding),
            store.read_slots(stage.directory, plan),
            profiles.groups.astype(str),
            train,
            unseen,
            [slot.name for slot in student.spec.slots],
            seed=seed,
        ),
        "label_skill": skill,
    }
    artifacts = [
        "encoder.safetensors",
        "encoder.json",
        "probe.json",
        "profiles.parquet",
        "steps.jsonl",
        *(f"{FOLDER}/{mode}/encoder.{kind}" for mode in settings["placebos"] for kind in ("safetensors", "json")),
        *(block.file for block in plan),
    ]
    stage.finish(artifacts, summary=summary)
    return stage


def labels_of(population: Population, profiles: Profiles) -> dict[str, np.ndarray]:
    """Mean of each label over a profile's rows of the teacher and distill splits, column → [U]; NaN where there is none.

    Only the placebo of labels reads them.
    """
    table = population.table
    row_of = {key: i for i, key in enumerate(profiles.keys)}
    place = np.array([row_of.get(key, -1) for key in table["exact_key"].to_pylist()])
    split = np.asarray(table["split"].to_pylist(), object)
    out = {}
    for column in population.schema.labels.columns:
        y = table[column].cast(pa.float64()).to_numpy()
        used = (place >= 0) & ((split == "teacher") | (split == "distill")) & np.isfinite(y)
        count = np.bincount(place[used], minlength=len(row_of))
        total = np.bincount(place[used], weights=y[used], minlength=len(row_of))
        out[column] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out


def goal_by_exposure(
    targets: Targets,
    encoded: Encoded,
    profiles: Profiles,
    held_out: np.ndarray,
    trained: np.ndarray,
    skill: dict[str, Any] | None,
    seed: int,
) -> dict[str, Any]:
    """:func:`scaletot_jax.encoder.share.goal` for held-out groups that the language model never saw, and for the others."""
    scales = [np.sqrt(w.variance) for w in targets.whitening]
    chains = [whiten(w, chain) * scale for w, chain, scale in zip(targets.whitening, targets.chains, scales)]
    predicted = [np.asarray(z, np.float64) * scale for z, scale in zip(encoded.segments, scales)]
    out = {}
    for name, chosen in ((UNSEEN, held_out & ~trained), (TRAINED, held_out & trained)):
        groups = profiles.groups[chosen].astype(str)
        share = share_of_ceiling([c[chosen] for c in chains], [p[chosen] for p in predicted], groups, seed=seed)
        out[name] = goal(share, skill)
    return out


def states_label_skill(states: np.ndarray, profiles: Profiles, seed: int) -> dict[str, Any] | None:
    """What the states of distill-split profiles tell of their days label, out of fold; None where they are too few."""
    known = np.isfinite(profiles.labels)
    labels, folds = profiles.labels[known], folds_of(list(profiles.groups[known]), 5)
    if not can_probe(labels, folds):
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
