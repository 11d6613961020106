"""Stage ``osipo``: the student's chains are improved by outcomes.

Every update draws prompts from a seeded permutation of the labelled rows of the teacher split, samples chains from the
current policy, and calls :func:`scaletot_jax.student.osipo_step.osipo_step`. Rollouts depend on the update's number and
the request alone, so a restart from any checkpoint repeats them bit by bit.

Writes ``adapter.safetensors`` (the policy), ``reward.safetensors`` (the reward model), ``users.parquet`` (whose labels
it learnt from), ``steps.jsonl`` and ``scores.json``.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from scaletot_jax.files import read_json, write_table
from scaletot_jax.lm.load import load_model
from scaletot_jax.parallel.compile import ShardedStep, shard_step
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.step_log import StepLog, read_steps
from scaletot_jax.student.adapter import Adapter, adamw, save_adapter, start
from scaletot_jax.student.data import batches
from scaletot_jax.student.examples import Examples
from scaletot_jax.student.held_out import held_out_scores
from scaletot_jax.student.labelled import Labelled, labelled_rows
from scaletot_jax.student.loop import keep, resume
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
from scaletot_jax.student.policy import ROLLOUT_STREAM, Student, load_student
from scaletot_jax.student.rollout import Rollouts, request_keys, sample_chains
from scaletot_jax.student.sft import load_examples
from scaletot_jax.student.sft_step import SFTBatch
from scaletot_jax.teacher.identity import identity_of_model

MIN_OUTCOME_VARIANCE = 1e-4  # mean variance within a user below which there is nothing to learn from
MAX_VALIDITY_LOSS = 0.05


def osipo(run: Run) -> Stage:
    """Runs the updates and scores the student on held-out users."""
    stage = run.stage(
        "osipo",
        sections=("seed", "lm", "student", "mesh", "osipo"),
        needs=("prepare", "teach", "sft"),
        extra=identity_of_model(run.config),
    )
    if stage.done:
        return stage
    population = open_population(run)
    student = load_student(run, "sft", loaded=load_model(run.config["lm"]["weights"]))
    users = labelled_rows(population, "teacher", student.spec, student.tokenizer, student.max_profile_tokens)
    examples = load_examples(run, population, student)
    with jax.set_mesh(make_mesh(**run.config["mesh"])):
        trained = population.table.take(pa.array(users.rows)).select(["row", "group"])
        write_table(stage.path("users.parquet"), trained)
        policy, reward, stopped = train(run, stage, student, users, examples)
        save_adapter(stage.path("adapter.safetensors"), policy)
        save_adapter(stage.path("reward.safetensors"), reward)
        scores = held_out_scores(run, stage, "osipo", student.with_lora(policy), population)
    steps = read_steps(stage.path("steps.jsonl"))
    earlier = read_json(run.finished("sft").path("scores.json"))
    summary = summarise(steps, stopped) | {
        "labelled_users": len(users.rows),
        "truncated_profiles": users.truncated,
        "held_out": {**earlier, "osipo": scores},
    }
    if not summary["osipo_signal"]:
        print(
            f"osipo: the outcome hardly varies within a user (mean variance {summary['outcome_variance']:.2e} < "
            f"{MIN_OUTCOME_VARIANCE:.0e}): the updates had no signal to learn from",
            file=sys.stderr,
        )
    artifacts = ["adapter.safetensors", "reward.safetensors", "users.parquet", "steps.jsonl", "scores.json"]
    stage.finish(artifacts, summary)
    return stage


def train(
    run: Run, stage: Stage, student: Student, users: Labelled, examples: Examples
) -> tuple[Adapter, Adapter, dict[str, int]]:
    """The loop: restore, then rollouts → update → log → checkpoint. Returns θ, φ, and the stop rules that fired."""
    settings = run.config["osipo"]
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    total, prompts, count = settings["updates"], settings["prompts"], settings["rollouts"]
    rows = OSIPOBatch(users.prompts, users.prompt_valid, None, users.buckets)  # type: ignore[arg-type]
    data = {
        "users": batches(rows, batch_size=prompts, seed=run.config["seed"], epochs=None),
        "replay": batches(examples.arrays, batch_size=prompts, seed=run.config["seed"], epochs=None),
    }
    sample = jax.jit(
        functools.partial(
            sample_chains, config=student.config, max_length=student.chain_length, lora_scale=student.lora_scale
        )
    )
    step, state, params = _prepare(run, student, users, examples, sample)
    key = jax.random.fold_in(jax.random.key(run.config["seed"]), ROLLOUT_STREAM)
    requests = jnp.arange(prompts * count).reshape(prompts, count)
    stopped: dict[str, int] = {}
    state, done = resume(stage, state, data, stopped)
    reference = jax.device_put(student.lora, step.shardings[2])
    log = StepLog(stage.path("steps.jsonl"), keep_through=done)
    with Progress("osipo", total, "updates", done=done) as progress:
        for update in range(done + 1, total + 1):
            batch, replay = next(data["users"]), next(data["replay"])
            batch = jax.device_put(batch, batch_shardings(batch, mesh, rules))
            replay = jax.device_put(replay, batch_shardings(replay, mesh, rules))
            keys = request_keys(jax.random.fold_in(key, update), requests)
            rollouts = sample(
                params=params,
                grammar=student.grammar,
                prompts=batch.prompts,
                prompt_valid=batch.prompt_valid,
                keys=keys,
                temperature=settings["temperature"],
                lora=state.policy.lora,
            )
            batch = batch._replace(rollouts=jax.device_put(rollouts, batch_shardings(rollouts, mesh, rules)))
            weight = 0.0 if stopped or update <= settings["warmup_updates"] else settings["process_weight"]
            state, metrics = step(state, params, reference, student.grammar, batch, replay, jnp.float32(weight))
            values = {name: float(value) for name, value in metrics.items()}
            log.append(update, **values)
            for rule in fired(values, settings["kl_limit"]):
                stopped.setdefault(rule, update)
            if update % settings["checkpoint_every"] == 0 or update == total:
                keep(stage, update, state, data, **stopped)
            progress.advance(note=f"outcome {values['outcome']:.3f}")
    log.close()
    return jax.device_get(state.policy.lora), jax.device_get(state.reward.lora), stopped


def fired(values: dict[str, float], kl_limit: float) -> list[str]:
    """Stop rules that an update breaks; from then on the process weight is 0, and OSIPO is RLOO.

    ``validity``: more than 5 points of chains without an end (the SFT policy has none under the grammar). ``kl``: the
    policy has moved more than ``kl_limit`` nats a chain from the SFT policy.
    """
    rules = []
    if values["valid_rate"] < 1 - MAX_VALIDITY_LOSS:
        rules.append("validity")
    if values["kl"] > kl_limit:
        rules.append("kl")
    return rules


def summarise(steps: list[dict[str, Any]], stopped: dict[str, int]) -> dict[str, Any]:
    """Means over the run, and whether there was a signal."""

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in steps]))

    pairs = sum(row["value_pairs"] for row in steps)
    ordered = sum(row["value_auc"] * row["value_pairs"] for row in steps)
    variance = mean("outcome_variance")
    return {
        "updates": len(steps),
        "outcome_first": steps[0]["outcome"],
        "outcome_last": steps[-1]["outcome"],
        "outcome_variance": variance,
        "osipo_signal": variance >= MIN_OUTCOME_VARIANCE,
        "valid_rate": mean("valid_rate"),
        "zero_advantage_groups": mean("zero_advantage_groups"),
        "clip_fraction": mean("clip_fraction"),
        "kl_last": steps[-1]["kl"],
        "structural_share": mean("structural_share"),
        "value_auc": ordered / pairs if pairs else None,
        "value_pairs": int(pairs),
        "value_correlation": mean("value_correlation"),
        "process_stopped": stopped,
    }


def _prepare(
    run: Run, student: Student, users: Labelled, examples: Examples, sample: Any
) -> tuple[ShardedStep, OSIPOState, Any]:
    """The jitted update, its first state and the base weights, placed on the mesh."""
    settings = run.config["osipo"]
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    prompts, count = settings["prompts"], settings["rollouts"]
    optimizers = {
        name: adamw(rate, steps=settings["updates"], warmup=0, weight_decay=0.0, clip_norm=settings["clip_norm"])
        for name, rate in (
            ("policy", settings["learning_rate"]),
            ("reward", settings["reward_learning_rate"]),
        )
    }
    options = OSIPOOptions(
        num_segments=student.spec.num_segments,
        lora_scale=student.lora_scale,
        **{
            name: settings[name]
            for name in (
                "temperature", "gamma", "beta", "min_scale", "clip_low", "clip_high", "ratio", "aggregation", "kl_weight",
                "answer_weight", "sft_weight",
            )
        },
    )  # fmt: skip
    update = functools.partial(
        osipo_step,
        config=student.config,
        options=options,
        policy_optimizer=optimizers["policy"],
        reward_optimizer=optimizers["reward"],
        rules=rules,
    )
    state = OSIPOState(start(student.lora, optimizers["policy"]), start(student.lora, optimizers["reward"]))
    struct = jax.ShapeDtypeStruct
    tokens = struct((prompts, users.prompts.shape[1]), jnp.int32)
    valid = struct(tokens.shape, jnp.bool_)
    keys = jax.eval_shape(lambda: request_keys(jax.random.key(0), jnp.zeros((prompts, count), jnp.int32)))
    rollouts: Rollouts = jax.eval_shape(
        sample, params=student.params, grammar=student.grammar, prompts=tokens, prompt_valid=valid, keys=keys,
        temperature=1.0, lora=student.lora,
    )  # fmt: skip
    batch = OSIPOBatch(tokens, valid, rollouts, struct((prompts,), jnp.int32))
    replay = SFTBatch(*(struct((prompts, *array.shape[1:]), array.dtype) for array in examples.arrays))
    jitted = shard_step(
        update,
        (state, student.params, student.lora, student.grammar, batch, replay, struct((), jnp.float32)),
        ("parameters", "parameters", "parameters", "replicated", "batch", "batch", "replicated"),
        mesh=mesh,
        rules=rules,
    )
    # θ and φ start from the same arrays, and the state is donated: each needs its own copy.
    state = jax.tree.map(jnp.copy, state)
    return jitted, jax.device_put(state, jitted.shardings[0]), jax.device_put(student.params, jitted.shardings[1])
