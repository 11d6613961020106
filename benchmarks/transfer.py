"""How well different forms take over the student's states: share of the noise ceiling on unseen users, by cross-fitting.

    python benchmarks/transfer.py --workdir RUN [--folds 5] [--steps N] [--forms network,kernel,…] [--left-out FIELD --share .4]

RUN is a finished run (up to ``distill``). The distill split's groups are dealt to folds; each form is fitted on the other folds
and on the teacher split's profiles, with their own whitening, and says the states of the fold. So every profile of a user that no
training stage of the language model saw judges, once. Statistic: the mean over segments of R² / ceiling in the states' own units
(scaletot_jax/encoder/share.py), interval by group for these fits; besides, R², retrieval among all judged profiles, debiased
CKA, effective rank, and what the states say of the label. Nothing was chosen on these profiles but what the run chose.

``--left-out FIELD`` instead asks for values nobody distilled: a share of the field's values, by hash, is taken out of the fitted
profiles, those profiles judge, and the regression is fitted with values as strangers and with values compared by their words.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from harness import machine

from scaletot_jax.encoder import blocks as store
from scaletot_jax.encoder.cka import debiased_cka
from scaletot_jax.encoder.fit import fit_targets
from scaletot_jax.encoder.kernel import Words, fit_kernel, group_errors, predict_kernel
from scaletot_jax.encoder.model import Inputs, describe, encode
from scaletot_jax.encoder.selection import Profiles
from scaletot_jax.encoder.share import share_of_ceiling
from scaletot_jax.encoder.spread import pool_rows
from scaletot_jax.encoder.targets import whitened_targets
from scaletot_jax.encoder.transfer import noise_ceiling, retrieval, transfer_r2
from scaletot_jax.encoder.value_words import likeness, value_vectors
from scaletot_jax.encoder.whiten import Whitening, effective_rank, fit_whitening
from scaletot_jax.evaluation.bootstrap import bootstrap, percentile_interval
from scaletot_jax.files import read_json, read_table
from scaletot_jax.lm.load import load_model
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.profiles.split import unit_hash
from scaletot_jax.run import Run

FORMS = ("network", "ridge", "kernel", "network_on_kernel", "prompt_end")
PENALTIES = tuple(10.0**power for power in np.arange(-4, 3.1, 0.5))


class Distilled(NamedTuple):
    """What a run distilled: U profiles."""

    run: Run
    population: Population
    profiles: Profiles
    names: tuple[str, ...]
    states: np.ndarray  # [U, N, K, D] float64
    prompt_end: np.ndarray  # [U, D]
    layer: int
    inputs: Inputs
    dense: np.ndarray  # [U, P]
    early: np.ndarray  # bool [F]
    summary: dict[str, Any]


def open_distilled(workdir: Path) -> Distilled:
    """Reads the finished stage ``distill``."""
    run = Run(workdir, read_json(workdir / "config.json"), lock=False)
    stage, population = run.finished("distill"), open_population(run)
    table, record, summary = (
        read_table(stage.path("profiles.parquet")),
        read_json(stage.path("encoder.json")),
        stage.summary(),
    )
    columns = {name: np.asarray(table[name].to_pylist(), object) for name in ("exact_key", "group", "source", "part")}
    rows = table["row"].to_numpy()
    profiles = Profiles(
        rows, columns["exact_key"], columns["group"], columns["source"], columns["part"], np.full(len(rows), np.nan)
    )
    plan, layer = store.plan_blocks(*summary["profiles_by_student"]), record["layer"]
    space = population.features
    features = space.encode(population.table.take(pa.array(rows)))
    early = np.array([population.schema.field(field.name).role == "early" for field in space.fields])
    states = store.read_states(stage.directory, plan, layer).astype(np.float64)
    ends = store.read_states(stage.directory, plan, layer, "prompt_end").astype(np.float64)
    names = tuple(segment["name"] if isinstance(segment, dict) else segment for segment in record["spec"]["segments"])
    return Distilled(run, population, profiles, names, states, ends, layer, Inputs(*features), space.dense(features), early, summary)  # fmt: skip


def restore(whitening: Whitening, z: np.ndarray) -> np.ndarray:
    """Whitened [U, d] → states [U, D], in the span of the kept directions."""
    return whitening.mean + np.asarray(z, np.float64) @ np.linalg.pinv(whitening.axes)


def ridge_on(
    x: np.ndarray, train: np.ndarray, targets: np.ndarray, groups: np.ndarray, judged: np.ndarray
) -> np.ndarray:
    """Ridge of whitened targets [U, J] on features [U, P], each component with its own leave-one-group-out penalty."""
    mean, std = x[train].mean(0), x[train].std(0)
    x = np.where(std > 1e-8, (x - mean) / np.where(std > 1e-8, std, 1), 0) / np.sqrt(x.shape[1])
    gram = x[train] @ x[train].T
    middle = targets[train].mean(0)
    centred = targets[train] - middle
    penalty = np.asarray(PENALTIES)[group_errors(gram, centred, groups[train], PENALTIES).argmin(0)]
    values, vectors = np.linalg.eigh(gram)
    weights = vectors @ ((vectors.T @ centred) / (np.maximum(values, 0)[:, None] + penalty))
    return middle + x[judged] @ (x[train].T @ weights)


def fit_fold(
    d: Distilled, forms: tuple[str, ...], judged: np.ndarray, settings: dict[str, Any]
) -> dict[str, list[np.ndarray]]:
    """Form → for each segment the states [J, D] that it says of the judged profiles, having seen none of their groups."""
    seed = d.run.config["seed"]
    groups = d.profiles.groups.astype(str)
    apart = np.isin(groups, np.unique(groups[judged]))
    chooses = ~apart & (unit_hash(list(groups), seed, "transfer select") < 0.1)
    train = ~apart & ~chooses
    part = np.where(judged | apart, "held_out", np.where(chooses, "select", "train")).astype(object)
    chains = [d.states[:, :, k] for k in range(len(d.names))]
    out: dict[str, list[np.ndarray]] = {}

    def network(pool: int, form: str) -> None:
        targets = whitened_targets(d.names, chains, train, settings["whiten_dim"])
        spec = describe(
            d.population.features, Inputs(*(column[train] for column in d.inputs)), segments=targets.names,
            target_dims=[w.axes.shape[1] for w in targets.whitening], dim=settings["dim"], width=settings["width"],
        )  # fmt: skip
        profiles = d.profiles._replace(part=part)
        chosen = pool_rows(d.population.table, profiles, pool, seed) if pool else np.zeros(0, np.int64)
        extra = Inputs(*d.population.features.encode(d.population.table.take(pa.array(chosen))))
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit_targets(
                Path(folder), spec, profiles, d.inputs, targets, extra, d.early, {**settings, "pool": pool, "target": "states"},
                seed, mode="states",
            )  # fmt: skip
        said = encode(fitted.params, spec=spec, inputs=Inputs(*(column[judged] for column in d.inputs))).segments
        out[form] = [restore(w, np.asarray(z)) for w, z in zip(targets.whitening, said)]

    fits = ~apart  # the other forms need no profiles that choose a step
    targets = whitened_targets(d.names, chains, fits, settings["whiten_dim"])
    scales = [np.sqrt(w.variance) for w in targets.whitening]
    values = np.concatenate([value * scale for value, scale in zip(targets.values, scales)], 1)
    bounds = np.cumsum([len(scale) for scale in scales])[:-1]

    def keep(form: str, said: np.ndarray) -> None:
        parts = np.split(said, bounds, axis=1)
        out[form] = [restore(w, z / scale) for w, z, scale in zip(targets.whitening, parts, scales)]

    for form in forms:
        if form == "network":
            network(0, form)
        elif form == "network_on_kernel":
            network(settings["pool"] or 8000, form)
        elif form == "kernel":
            keep(form, by_kernel(d, fits, judged, values, None))
        else:
            keep(form, ridge_on(d.dense if form == "ridge" else d.prompt_end, fits, values, groups, judged))
    return out


def by_kernel(d: Distilled, fits: np.ndarray, judged: np.ndarray, values: np.ndarray, words: Words) -> np.ndarray:
    spec = describe(
        d.population.features, Inputs(*(column[fits] for column in d.inputs)), segments=d.names,
        target_dims=[1] * len(d.names), dim=8, width=8,
    )  # fmt: skip
    groups = d.profiles.groups.astype(str)
    fit = fit_kernel(spec, Inputs(*(column[fits] for column in d.inputs)), values[fits], groups[fits], words)
    return predict_kernel(fit, spec, Inputs(*(column[judged] for column in d.inputs)), words)


def judge(d: Distilled, judged: np.ndarray, said: dict[str, list[np.ndarray]], whiten_dim: int) -> dict[str, Any]:
    """Form → figures, in one basis for all: the leading directions of the judged profiles' chain means."""
    groups, out = d.profiles.groups[judged].astype(str), {}
    basis = [np.linalg.svd(d.states[judged, :, k].mean(1) - d.states[judged, :, k].mean((0, 1)), full_matrices=False)[2][:whiten_dim].T for k in range(len(d.names))]  # fmt: skip
    chains = [d.states[judged, :, k] @ axes for k, axes in enumerate(basis)]
    for form, states in said.items():
        predicted = [state @ axes for state, axes in zip(states, basis)]
        share = share_of_ceiling(chains, predicted, groups)
        means = [chain.mean(1) for chain in chains]
        r2 = [transfer_r2(mean, guess) for mean, guess in zip(means, predicted)]
        whole = [
            np.concatenate([(part - part.mean(0)) / part.std() for part in parts], 1) for parts in (means, predicted)
        ]
        out[form] = {
            "share": share.to_dict() if share else None, "r2": r2, "retrieval": retrieval(*whole), "cka": debiased_cka(*whole),
        }  # fmt: skip
    ceilings = [noise_ceiling(chain).mean_target for chain in chains]
    rank = [effective_rank(chain.mean(1)) for chain in chains]
    return {
        "forms": out,
        "ceilings": ceilings,
        "effective_rank": rank,
        "judged": int(judged.sum()),
        "groups": len(set(groups)),
    }


def cross_fit(d: Distilled, forms: tuple[str, ...], folds: int, settings: dict[str, Any]) -> dict[str, Any]:
    unseen = d.profiles.source == "distill"
    fold = np.minimum(
        (unit_hash(list(d.profiles.groups.astype(str)), 0, "transfer folds") * folds).astype(int), folds - 1
    )
    width = d.states.shape[-1]
    said = {form: [np.zeros((len(unseen), width)) for _ in d.names] for form in forms}
    trained = []
    for number in range(folds):
        judged = unseen & (fold == number)
        if not judged.any():
            continue
        trained.append(
            int((~np.isin(d.profiles.groups.astype(str), np.unique(d.profiles.groups[judged].astype(str)))).sum())
        )
        for form, states in fit_fold(d, forms, judged, settings).items():
            for whole, part in zip(said[form], states):
                whole[judged] = part
        print(f"fold {number + 1} of {folds}: {int(judged.sum())} judged, {trained[-1]} others", flush=True)
    found = judge(
        d, unseen, {form: [s[unseen] for s in states] for form, states in said.items()}, settings["whiten_dim"]
    )
    return found | {"fitted_on": trained}


def left_out(d: Distilled, field: str, share: float, seeds: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Values without a distilled profile: the regression with strangers against the one with words, R² and its paired difference."""
    column = d.population.table[field].take(pa.array(d.profiles.rows)).to_pylist()
    first = np.asarray([(v[0] if v else "") if isinstance(v, list) else str(v) for v in column], object)
    whole = [set(v) if isinstance(v, list) else {str(v)} for v in column]
    student = load_model(d.run.config["lm"]["weights"])
    tokenizer = student.tokenizer
    vectors = value_vectors(
        d.population.features, np.asarray(student.params["embed"]), lambda text: tokenizer.encode(text, control=False)
    )
    words = [likeness(found) for found in vectors]
    groups, out = d.profiles.groups.astype(str), []
    for seed in range(seeds):
        values = sorted(set(first))
        gone = {v for v, place in zip(values, unit_hash(values, seed, "left out")) if place < share}
        judged = np.isin(first.astype(str), sorted(gone)) & (d.profiles.source == "distill")
        fits = ~np.array([bool(v & gone) for v in whole]) & ~np.isin(groups, np.unique(groups[judged]))
        if judged.sum() < 20 or fits.sum() < 20:
            continue
        stats = [fit_whitening(d.states[fits][:, :, k].mean(1), settings["whiten_dim"]) for k in range(len(d.names))]
        targets = [(d.states[:, :, k].mean(1) - w.mean) @ w.axes * np.sqrt(w.variance) for k, w in enumerate(stats)]
        bounds = np.cumsum([t.shape[1] for t in targets])[:-1]
        errors = {}
        for name, how in (("strangers", None), ("words", words)):
            said = np.split(by_kernel(d, fits, judged, np.concatenate(targets, 1), how), bounds, axis=1)
            errors[name] = [((t[judged] - z) ** 2).sum(1) for t, z in zip(targets, said)]
        spread = [((t[judged] - t[judged].mean(0)) ** 2).sum(1) for t in targets]

        one = np.ones((1, int(judged.sum())))
        functions = {name: mean_r2(error, spread) for name, error in errors.items()}
        samples = bootstrap(functions, groups[judged], resamples=1000, seed=0)
        point = {name: float(function(one)[0]) for name, function in functions.items()}
        gain = percentile_interval(point["words"] - point["strangers"], samples["words"] - samples["strangers"], 0.95)
        out.append({
            "left_out": len(gone), "of": len(values), "train": int(fits.sum()), "judge": int(judged.sum()), **point,
            "difference": gain.to_dict(),
        })  # fmt: skip
    return out


def mean_r2(errors: list[np.ndarray], spread: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Weights [R, U] → mean over segments of 1 − Σ w error / Σ w spread."""
    return lambda w: np.mean([1 - (w @ e) / (w @ s) for e, s in zip(errors, spread)], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="of the networks (default: the run's)")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--left-out", default="", metavar="FIELD")
    parser.add_argument("--share", type=float, default=0.4, help="of the field's values that are left out")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the values left out")
    options = parser.parse_args()
    d = open_distilled(options.workdir)
    settings = {**d.run.config["distill"], **({"steps": options.steps} if options.steps else {})}
    record: dict[str, Any] = {
        "benchmark": "transfer", "table": d.population.schema.name, "layer": d.layer, "chains": d.states.shape[1],
        "label_skill": d.summary["label_skill"], "slot_probe": d.summary["slot_probe"], "machine": machine(),
    }  # fmt: skip
    if options.left_out:
        record["left_out"] = left_out(d, options.left_out, options.share, options.seeds, settings)
        for row in record["left_out"]:
            print(row)
    else:
        record |= cross_fit(d, tuple(options.forms.split(",")), options.folds, settings)
        show(record)
    print(json.dumps(record))


def show(record: dict[str, Any]) -> None:
    print(f"{record['judged']} profiles of {record['groups']} groups judge; fitted on {record['fitted_on']}")
    print(f"ceilings {np.round(record['ceilings'], 2)}, effective rank {np.round(record['effective_rank'], 1)}")
    print(f"label from the states: {record['label_skill']}")
    for form, found in record["forms"].items():
        share, r2 = found["share"], " ".join(f"{value:.2f}" for value in found["r2"])
        said = f"{share['estimate']:.2f} [{share['low']:.2f}, {share['high']:.2f}]" if share else "none"
        print(f"{form:20} share {said:22} R² {r2}  {found['retrieval']}  CKA {found['cka']}")


if __name__ == "__main__":
    main()
