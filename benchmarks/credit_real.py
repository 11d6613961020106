"""Does credit by segment help on real profiles? SFT, the supervised answer term alone, RLOO, OSIPO, GRPO: held-out users.

    python benchmarks/credit_real.py [--data complete_journey] [--workdir runs/credit_real] [--seeds 2] [--quick]
    SCALETOT_DATA=<folder> python benchmarks/credit_real.py --data oulad

The package's own stages: ``prepare``, ``teach`` and ``sft`` once, then stage ``osipo`` again and again on that one student,
once for every arm and seed. Arms differ in configuration keys alone; prompts, rollouts, updates, rates and outcomes are
the same, and the first rollouts of a seed are the same ones in every arm. ``answer`` is the control that decides: its
policy gradient is zero, so what it gains the chains have not earned. ``… alone`` has no answer term: there everything is
earned by the chains.

Before that, how much the answer depends on the chain: the variance of the outcome within a user, without which no
estimator has anything to work with, for the teacher's own chains and for the student after SFT at several temperatures.

Judged on labelled rows of val and test, whose users no stage has seen: RPS of the mean answer over a user's chains, RPS of a
single chain's answer (what a policy gradient improves), Spearman. Intervals: paired bootstrap by household or student over
the rows, of scores that are means over the seeds of an arm. A finished arm is kept in ``<workdir>/arms`` and an
interrupted one goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import time
from importlib import resources
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import yaml
from ml_collections import ConfigDict

from scaletot_jax.config import default_config, validate
from scaletot_jax.evaluation.bootstrap import bootstrap, percentile_interval
from scaletot_jax.evaluation.metrics import rps_rows, spearman
from scaletot_jax.files import read_arrays, read_json, read_table, write_arrays, write_bytes, write_json
from scaletot_jax.pipeline import run_all
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.profiles.split import TRAIN
from scaletot_jax.run import Run
from scaletot_jax.step_log import read_steps
from scaletot_jax.student.adapter import load_adapter
from scaletot_jax.student.labelled import base_rate, buckets_of, labelled_rows, pooled
from scaletot_jax.student.osipo_step import outcomes_of
from scaletot_jax.student.policy import EVALUATION_STREAM, Student, encode_prompts, load_student
from scaletot_jax.student.rollout import request_keys, sample_chains

NO_ANSWER = {"answer_weight": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "answer": {"outcome_weight": 0.0, "process_weight": 0.0},
    "rloo": {"process_weight": 0.0},
    "osipo": {},
    "rloo alone": {"process_weight": 0.0, **NO_ANSWER},
    "osipo alone": NO_ANSWER,
    "grpo": {
        "process_weight": 0.0,
        "baseline": "group_mean",
        "scale": "group_std",
        "min_scale": 1e-6,
        "ratio": "token",
        "aggregation": "sequence_mean",
        "clip_high": 0.2,
        "kl_weight": 0.04,
    },
}
PAIRS = (
    ("answer", "sft"),
    ("rloo", "answer"),
    ("osipo", "answer"),
    ("osipo", "rloo"),
    ("grpo", "rloo"),
    ("rloo alone", "sft"),
    ("osipo alone", "sft"),
    ("osipo alone", "rloo alone"),
)
STEMS = {
    "complete_journey": ["This household's habit of shopping here is", "As a shopper this household has been"],
    "oulad": ["The student's habit on the course site is", "On the course site the student has been"],
}
TEMPERATURES = (1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("complete_journey", "oulad"), default="complete_journey")
    parser.add_argument("--workdir", type=Path, default=None)
    parser.add_argument(
        "--judged", choices=("outlook", "habit"), default="outlook", help="the slot left to the teacher"
    )
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=1, help="of the policy stage; the student is one")
    parser.add_argument("--rows", type=int, default=256, help="held-out rows")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--layers", type=int, default=6, help="of the student, of SmolLM2's 30")
    parser.add_argument("--outcome", choices=("own", "pooled"), default="pooled")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the rollouts of every arm")
    parser.add_argument("--only", choices=("prefix", "probe"), help="stop after this part")
    parser.add_argument("--quick", action="store_true", help="a student of two layers, 2 updates: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.updates, options.rows, options.seeds = 2, 32, 1
        options.arms = "answer,rloo,osipo"
    tag = "quick" if options.quick else options.data
    workdir = options.workdir or Path("runs") / f"credit_real_{tag}"
    started = time.perf_counter()
    config = recipe(options)
    config.lm.chain_spec = str(write_spec(options.data, options.judged, workdir))
    # Arms differ in numbers more than in programs: what is compiled once serves the others.
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    run_all(config, workdir, stages=("prepare", "teach", "sft"))
    if options.only == "prefix":
        return
    arms = {name: ARMS[name] for name in options.arms.split(",")}
    # A seed of all arms before the next seed: what is interrupted is a whole comparison of fewer seeds.
    for seed in range(options.seeds if options.only != "probe" else 0):
        for name, changes in arms.items():
            train(workdir, config, name, seed, changes)
    with Run(workdir, config.to_dict()) as run:
        probed = probe(run, quick=options.quick)
    show_probe(probed)
    if options.only == "probe":
        return
    with Run(workdir, config.to_dict()) as run:
        result = judge(run, options, list(arms))
    show(result)
    line = {
        "benchmark": "credit_real",
        "data": options.data,
        "settings": {
            name: getattr(options, name)
            for name in ("judged", "layers", "seeds", "rows", "updates", "outcome", "temperature")
        },
        **result,
        "probe": probed,
        "seconds_of_this_run": round(time.perf_counter() - started, 1),
        "machine": harness.machine(),
        "versions": harness.versions("jax"),
    }
    print(json.dumps(line))


def recipe(options: argparse.Namespace) -> ConfigDict:
    """A student whose answer follows its chain: every profile is taught with every value of the judged
    slot, each with the answer that the teacher gives after it."""
    config = default_config()
    config.data.name = options.data
    config.lm.max_profile_tokens = 96
    config.teacher.num_profiles, config.teacher.pilot_profiles = (24, 16) if options.quick else (120, 120)
    config.teacher.answer = "chain"
    config.teacher.beam = config.teacher.candidates = {"outlook": 3, "habit": 4}[options.judged]
    config.teacher.max_refined_nodes = 0
    config.student.num_layers = 2 if options.quick else options.layers
    config.student.trainable = "full"
    config.sft.epochs = 1 if options.quick else 3
    config.sft.learning_rate = 3e-4
    config.sft.answer_weight = 2.0
    config.sft.eval_fraction = 0.1
    config.osipo.updates = options.updates
    config.osipo.prompts = 8
    config.osipo.rollouts = 4
    config.osipo.learning_rate = config.osipo.reward_learning_rate = 5e-4
    config.osipo.sft_weight = 0.0  # the replay costs a quarter of an update and is the same in every arm
    config.osipo.warmup_updates = 2
    config.osipo.checkpoint_every = 4
    config.osipo.eval_profiles = 32  # the stage's own scores; this script judges more rows
    config.osipo.outcome = options.outcome
    config.osipo.temperature = options.temperature
    return config


def write_spec(data: str, judged: str, workdir: Path) -> Path:
    """The data set's own specification with one judged slot; the rules stay, but for a habit that is judged.

    With several judged slots the beam keeps paths that differ in those that do not move the answer (on Complete Journey 191
    of 200 profiles had one outlook in both paths), so a student never sees two answers to one profile.
    """
    content = yaml.safe_load((resources.files("scaletot_jax") / "specs" / f"{data}.yaml").read_text())
    for segment in content["segments"]:
        for slot in segment["slots"]:
            if slot["name"] == judged == "habit":
                slot.pop("rule", None)
                slot |= {"source": "scored", "stems": STEMS[data]}
        segment["slots"] = [slot for slot in segment["slots"] if slot["source"] == "rule" or slot["name"] == judged]
    content["segments"] = [segment for segment in content["segments"] if segment["slots"]]
    path = workdir.absolute() / f"judged_{judged}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, yaml.safe_dump(content, sort_keys=False).encode())
    return path


def train(workdir: Path, config: ConfigDict, name: str, seed: int, changes: dict[str, Any]) -> None:
    """One run of stage ``osipo``; its folder is kept beside the others."""
    kept = arm_folder(workdir, name, seed)
    config = config.copy_and_resolve_references()  # ConfigDict(config) would share the sections
    config.osipo.seed = seed
    config.osipo.update(changes)
    validate(config)
    wanted = config.osipo.to_dict()
    if (kept / "settings.json").exists() and read_json(kept / "settings.json") == wanted:
        return
    shutil.rmtree(kept, ignore_errors=True)
    print(f"arm '{name}', seed {seed}", flush=True)
    run_all(config, workdir, on_change="redo", stages=("prepare", "teach", "sft", "osipo"))
    kept.parent.mkdir(exist_ok=True)
    shutil.rmtree(workdir / "osipo" / "checkpoints", ignore_errors=True)
    shutil.move(workdir / "osipo", kept)
    write_json(kept / "settings.json", wanted)


def arm_folder(workdir: Path, name: str, seed: int) -> Path:
    return workdir / "arms" / f"{name.replace(' ', '-')}-{seed}"


@functools.partial(jax.jit, static_argnames=("config", "lora_scale", "max_length"))
def _sample(params, lora, grammar, prompts, prompt_valid, keys, temperature, *, config, lora_scale, max_length):
    return sample_chains(
        params, config, grammar, prompts, prompt_valid, keys, max_length=max_length, temperature=temperature,
        lora=lora, lora_scale=lora_scale,
    )  # fmt: skip


def rollouts_of(student: Student, prompts, prompt_valid, *, chains: int, key, temperature: float, batch: int = 32):
    """Chains of U users in batches: a list of (rows, Rollouts); user u's depend on his place and the key alone."""
    out = []
    for begin in range(0, len(prompts), batch):  # batches of one shape, the last filled up and cut
        rows = np.arange(begin, min(begin + batch, len(prompts)))
        filled = np.resize(rows, batch)
        keys = request_keys(key, jnp.asarray(filled[:, None] * chains + np.arange(chains)))
        sampled = _sample(
            student.params, student.lora, student.grammar, prompts[filled], prompt_valid[filled], keys,
            jnp.float32(temperature), config=student.config, lora_scale=student.lora_scale,
            max_length=student.chain_length,
        )  # fmt: skip
        out.append((rows, jax.tree.map(lambda leaf: np.asarray(leaf)[: len(rows)], sampled)))  # noqa: B023
    return out


def probe(run: Run, *, quick: bool) -> dict[str, Any]:
    """How much the outcome varies within a user, for teacher chains by kind of answer and for the student after SFT."""
    kept = run.workdir / "probe.json"
    identity = run.finished("sft").result
    if kept.exists() and read_json(kept)["of"] == identity:
        return read_json(kept)
    population, student = open_population(run), load_student(run, "sft")
    everybody = labelled_rows(population, "teacher", student.spec, student.tokenizer, student.max_profile_tokens)
    chosen = np.random.default_rng(1).permutation(len(everybody.rows))[: 16 if quick else 64]
    users, shared = (
        labelled._replace(
            prompts=everybody.prompts[chosen],
            prompt_valid=everybody.prompt_valid[chosen],
            buckets=labelled.buckets[chosen],
        )
        for labelled in (everybody, pooled(everybody, population, student.spec))
    )
    rows = []
    for temperature in TEMPERATURES:
        key = jax.random.fold_in(jax.random.key(run.config["seed"]), EVALUATION_STREAM)
        sampled = rollouts_of(
            student, users.prompts, users.prompt_valid, chains=6, key=key, temperature=temperature
        )  # fmt: skip
        outcomes, means, entropies = [], [], []
        for numbers, part in sampled:
            outcomes.append(
                [np.asarray(outcomes_of(part, jnp.asarray(of[numbers]))) for of in (users.buckets, shared.buckets)]
            )
            means.append(np.asarray(part.answers) @ np.arange(student.spec.num_buckets))
            entropies.append(np.asarray(jnp.sum(part.entropy, axis=-1)))
        own, pool = (np.concatenate([pair[i] for pair in outcomes]) for i in (0, 1))
        mean = np.concatenate(means)
        rows.append(
            {
                "what": f"student after SFT, temperature {temperature:g}",
                "outcome_variance": float(own.var(axis=1).mean()),
                "pooled_outcome_variance": float(pool.var(axis=1).mean()),
                "within_over_between": float(mean.std(axis=1).mean() / mean.mean(axis=1).std()),
                "entropy": float(np.concatenate(entropies).mean()),
            }
        )
    rows = teacher_rows(run, population, student) + rows
    held = [row for row in read_steps(run.finished("sft").path("steps.jsonl")) if "eval_answer_loss" in row]
    out = {
        "of": identity,
        "rows": rows,
        "sft": {"eval_loss": held[-1]["eval_loss"], "eval_answer_loss": held[-1]["eval_answer_loss"]},
        "held_out": run.finished("sft").summary()["held_out"],
    }
    write_json(kept, out)
    return out


def teacher_rows(run: Run, population: Population, student: Student) -> list[dict[str, Any]]:
    """The same of the teacher's kept chains, as they are weighted."""
    chains = read_table(run.finished("teach").path("chains.parquet")).to_pylist()
    label = dict(zip(population.table["exact_key"].to_pylist(), buckets_of(population, student.spec).tolist()))
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in chains:
        if row["accepted"] and label[row["exact_key"]] >= 0:
            by_key.setdefault(row["exact_key"], []).append(row)
    places = np.arange(student.spec.num_buckets)
    out = []
    for kind in ("answer_chain", "answer_direct", "answer"):
        variance, centre, within = [], [], []
        for key, rows in by_key.items():
            weights = np.asarray([row["weight"] for row in rows])
            weights = weights / weights.sum()
            answers = np.asarray([row[kind] for row in rows])
            outcome = 1 - rps_rows(np.full(len(rows), label[key]), answers)
            mean = answers @ places
            variance.append(weights @ (outcome - weights @ outcome) ** 2)
            centre.append(weights @ mean)
            within.append(np.sqrt(weights @ (mean - weights @ mean) ** 2))
        name = f"as taught ({run.config['teacher']['answer']})" if kind == "answer" else kind.removeprefix("answer_")
        out.append(
            {
                "what": f"teacher's chains, answer {name}",
                "outcome_variance": float(np.mean(variance)),
                "within_over_between": float(np.mean(within) / np.std(centre)),
            }
        )
    return out


def show_probe(probed: dict[str, Any]) -> None:
    print("\n| chains | variance of the outcome within a user | of the pooled outcome | spread of the expected answer, within / between users | entropy, nats a chain |")  # fmt: skip
    print("|---|---|---|---|---|")
    for row in probed["rows"]:
        cells = [f"{row['outcome_variance']:.1e}"]
        cells.append(f"{row['pooled_outcome_variance']:.1e}" if "pooled_outcome_variance" in row else "")
        cells.append(f"{row['within_over_between']:.2f}")
        cells.append(f"{row['entropy']:.2f}" if "entropy" in row else "")
        print(f"| {row['what']} | " + " | ".join(cells) + " |")
    print(f"held-out loss of SFT: {probed['sft']}", flush=True)


def judge(run: Run, options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Scores of every arm on the same rows with the same keys."""
    population = open_population(run)
    student = load_student(run, "sft")
    spec = student.spec
    splits = np.asarray(population.table["split"].to_pylist())
    buckets = buckets_of(population, spec)
    rate = base_rate(buckets[np.isin(splits, TRAIN) & (buckets >= 0)], spec.num_buckets)
    rows = np.flatnonzero(np.isin(splits, ("val", "test")) & (buckets >= 0))
    if len(rows) > options.rows:
        rows = np.sort(np.random.default_rng(0).choice(rows, options.rows, replace=False))
    table = population.table.take(pa.array(rows))
    prompts, valid, _ = encode_prompts(student.tokenizer, population.renderer.texts(table), student.max_profile_tokens)
    truth, groups = buckets[rows], table["group"].to_numpy(zero_copy_only=False)
    days = spec.bucket_value[truth]
    key = jax.random.fold_in(jax.random.key(run.config["seed"]), EVALUATION_STREAM)

    def answers_of(student: Student, folder: Path) -> np.ndarray:
        """[U, M, Kb], kept beside the arm."""
        path = folder / f"answers_{len(rows)}.safetensors"
        if not path.exists():
            sampled = rollouts_of(student, prompts, valid, chains=4, key=key, temperature=1.0)
            answers = np.concatenate([part.answers for _, part in sampled])
            write_arrays(path, {"answers": answers})
        return np.asarray(read_arrays(path)["answers"], np.float64)

    systems: dict[str, list[np.ndarray]] = {"sft": [answers_of(student, run.workdir)]}
    logs: dict[str, dict[str, float]] = {}
    for name in names:
        systems[name] = []
        steps = []
        for seed in range(options.seeds):
            folder = arm_folder(run.workdir, name, seed)
            adapted = student.with_lora(load_adapter(folder / "adapter.safetensors"))
            systems[name].append(answers_of(adapted, folder))
            steps.append(read_json(folder / "stage.json")["summary"])
        keys = ("outcome_variance", "kl_last", "value_auc", "value_correlation", "zero_advantage_groups", "valid_rate")
        logs[name] = {k: float(np.mean([s[k] for s in steps if s[k] is not None] or [np.nan])) for k in keys}
    scores = {}
    for name, runs in systems.items():
        one = np.mean([np.mean([rps_rows(truth, a[:, m]) for m in range(a.shape[1])], axis=0) for a in runs], axis=0)
        pooled_rows = [rps_rows(truth, a.mean(axis=1)) for a in runs]
        scores[name] = {
            "chain": one,
            "mean": np.mean(pooled_rows, axis=0),
            "seeds": [float(r.mean()) for r in pooled_rows],
        }
        scores[name]["spearman"] = float(np.mean([spearman(days, a.mean(axis=1) @ spec.bucket_value) for a in runs]))
    scores["base rate"] = {kind: rps_rows(truth, np.tile(rate, (len(rows), 1))) for kind in ("chain", "mean")}
    statistics = {
        (name, kind): (lambda w, x=found[kind]: w @ x / w.sum(-1)) for name, found in scores.items() for kind in ("chain", "mean")
    }  # fmt: skip
    samples = bootstrap(statistics, groups, resamples=2000, seed=0)

    def difference(mine: str, other: str, kind: str) -> list[float]:
        estimate = float((scores[mine][kind] - scores[other][kind]).mean())
        return list(percentile_interval(estimate, samples[mine, kind] - samples[other, kind], 0.95))

    pairs = [(mine, other) for mine, other in PAIRS if mine in scores and other in scores]
    return {
        "held_out_rows": len(rows),
        "groups": len(set(groups.tolist())),
        "base_rate_rps": float(scores["base rate"]["mean"].mean()),
        "systems": {
            name: {
                "rps": float(found["mean"].mean()),
                "rps_single_chain": float(found["chain"].mean()),
                "spearman": found["spearman"],
                "rps_by_seed": found["seeds"],
                "against_base_rate": difference(name, "base rate", "mean"),
                "against_sft": difference(name, "sft", "mean"),
                **logs.get(name, {}),
            }
            for name, found in scores.items()
            if name != "base rate"
        },
        "differences": {
            f"{mine} - {other}": {kind: difference(mine, other, kind) for kind in ("mean", "chain")}
            for mine, other in pairs
        },
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"\n{result['held_out_rows']} held-out rows of {result['groups']} users; base rate RPS {result['base_rate_rps']:.4f}"
    )
    print("| student | RPS | of a single chain | Spearman | RPS by seed | outcome variance | KL | AUC(V, R) |")
    print("|---" * 8 + "|")
    for name, row in result["systems"].items():
        cells = [f"{row['rps']:.4f}", f"{row['rps_single_chain']:.4f}", f"{row['spearman']:.3f}"]
        cells.append(" ".join(f"{value:.4f}" for value in row["rps_by_seed"]))
        cells += [
            f"{row[k]:{f}}" if k in row else ""
            for k, f in (("outcome_variance", ".1e"), ("kl_last", ".2f"), ("value_auc", ".3f"))
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nRPS, first minus second, [95 %] (negative is better for the first)")
    print("| pair | mean answer | single chain |")
    print("|---|---|---|")
    for pair, found in result["differences"].items():
        cells = [f"{e:+.4f} [{low:+.4f}, {high:+.4f}]" for e, low, high in (found["mean"], found["chain"])]
        print(f"| {pair} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
