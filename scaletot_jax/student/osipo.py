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
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from scaletot_jax.files import read_json, write_table
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.load import load_model
from scaletot_jax.parallel.compile import ShardedStep, shard_step
from scaletot_jax.parallel.distributed import gather, place
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.step_log import StepLog, read_steps
from scaletot_jax.student.adapter import Adapter, adamw, save_adapter, start
from scaletot_jax.student.clock import Clock
from scaletot_jax.student.data import batches
from scaletot_jax.student.examples import Examples, hold_out
from scaletot_jax.student.full import compute_copy
from scaletot_jax.student.held_out import held_out_scores
from scaletot_jax.student.labelled import Labelled, labelled_rows, pooled
from scaletot_jax.student.loop import Keeper
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
from scaletot_jax.student.policy import ROLLOUT_STREAM, Student, load_student
from scaletot_jax.student.rollout import Rollouts, request_keys, sample_chains
from scaletot_jax.student.sft import load_examples
from scaletot_jax.student.sft_step import SFTBatch
from scaletot_jax.student.switch_off import auc_interval, no_better_than_chance
from scaletot_jax.student.throughput import FORWARD, LORA, count_work, model_flops
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
    if run.config["osipo"]["outcome"] == "pooled":
        users = pooled(users, population, student.spec)
    # Profiles on which SFT measured its loss stay unseen here, too.
    examples, _ = hold_out(
        load_examples(run, population, student), run.config["sft"]["eval_fraction"], run.config["seed"]
    )
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
    seed = (run.config["seed"] + settings["seed"]) % 2**32
    data = {
        "users": batches(rows, batch_size=prompts, seed=seed, epochs=None),
        "replay": batches(examples.arrays, batch_size=prompts, seed=seed, epochs=None),
    }
    sample = jax.jit(
        functools.partial(
            sample_chains, config=student.config, max_length=student.chain_length, lora_scale=student.lora_scale
        )
    )
    step, state, params = _prepare(run, student, users, examples, sample)
    key = jax.random.fold_in(jax.random.key(seed), ROLLOUT_STREAM)
    requests = jnp.arange(prompts * count).reshape(prompts, count)
    keeper = Keeper(stage, run.config["checkpoint"])
    stopped: dict[str, int] = {}
    state, done = keeper.resume(state, data, stopped)
    reference = place(student.lora, step.shardings[2])
    grammar = place(student.grammar, step.shardings[3])
    log = StepLog(stage.path("steps.jsonl"), keep_through=done)
    history = [row for row in read_steps(log.path) if row["step"] <= done]
    clock = Clock(
        stage, mesh, done=done, convention="2ND + 4ND + 4ND on rollouts and 4ND on the replay, rollouts apart"
    )
    with Progress("osipo", total, "updates", done=done) as progress, keeper:
        for update in range(done + 1, total + 1):
            batch, taught = next(data["users"]), next(data["replay"])
            batch = place(batch, batch_shardings(batch, mesh, rules))
            replay = place(taught, batch_shardings(taught, mesh, rules))
            sampling = time.monotonic()
            keys = request_keys(jax.random.fold_in(key, update), requests)
            rollouts = sample(
                params=params,
                grammar=grammar,
                prompts=batch.prompts,
                prompt_valid=batch.prompt_valid,
                keys=place(keys, batch_shardings(keys, mesh, rules)),
                temperature=settings["temperature"],
                lora=state.policy.lora,
            )
            batch = batch._replace(rollouts=place(rollouts, batch_shardings(rollouts, mesh, rules)))
            jax.block_until_ready(batch)
            clock.start()
            weight = 0.0 if stopped or update <= settings["warmup_updates"] else settings["process_weight"]
            state, metrics = step(state, params, reference, grammar, batch, replay, jnp.float32(weight))
            values = {name: float(value) for name, value in metrics.items()}
            sampled = clock.started - sampling
            work = update_work(student.config, batch.prompt_valid, batch.rollouts.valid, taught, settings["sft_weight"])
            speed = clock.stop(update, *work, rollout_seconds=sampled)
            log.append(update, **values)
            history.append({"step": update, **values})
            for rule in fired(history, settings["kl_limit"], settings["auc_pairs"]):
                stopped.setdefault(rule, update)
            due = update % settings["checkpoint_every"] == 0 or update == total
            keeper.after(update, state, data, due=due, record=stopped)
            progress.advance(note=f"outcome {values['outcome']:.3f}, {speed}")
    log.close()
    clock.close()
    return gather(state.policy.lora), gather(state.reward.lora), stopped


def fired(history: Sequence[Mapping[str, Any]], kl_limit: float, auc_pairs: int) -> list[str]:
    """Stop rules that the updates so far break; from then on the process weight is 0, and OSIPO is RLOO.

    ``validity``: more than 5 points of chains without an end (the SFT policy has none under the grammar). ``kl``: the
    policy has moved more than ``kl_limit`` nats a chain from the SFT policy. ``chance``: over ``auc_pairs`` pairs the
    reward model's values did not order chains better than chance, see :mod:`scaletot_jax.student.switch_off`.

    Args:
      history: rows of the step log, the newest last.
    """
    rules, values = [], history[-1]
    if values["valid_rate"] < 1 - MAX_VALIDITY_LOSS:
        rules.append("validity")
    if values["kl"] > kl_limit:
        rules.append("kl")
    if no_better_than_chance(history, auc_pairs):
        rules.append("chance")
    return rules


def update_work(
    config: LMConfig, prompt_valid: Any, chain_valid: Any, replay: SFTBatch, sft_weight: float
) -> tuple[int, float]:
    """Real tokens of an update, the rollouts' counted once, and its model FLOPs (:mod:`scaletot_jax.student.throughput`)."""
    rolled = count_work(gather(prompt_valid), gather(chain_valid), vocabulary=False)
    flops = sum(model_flops(config, rolled, factor) for factor in (FORWARD, LORA, LORA))
    if sft_weight > 0:
        counted = replay.chain_valid & (replay.weights > 0)[..., None]
        flops += model_flops(config, count_work(replay.prompt_valid, counted, vocabulary=True), LORA)
    return rolled.tokens, flops


def summarise(steps: list[dict[str, Any]], stopped: dict[str, int]) -> dict[str, Any]:
    """Means over the run, and whether there was a signal."""

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in steps]))

    judged = auc_interval([row for row in steps if row["process_weight"]] or steps)
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
        "value_auc": judged.auc if judged else None,
        "value_auc_low": judged.low if judged else None,
        "value_auc_high": judged.high if judged else None,
        "value_pairs": judged.pairs if judged else 0,
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
    dtype = jnp.dtype(run.config["student"]["compute_dtype"])
    params = compute_copy(student.params, student.config, dtype)
    optimizers = {
        name: adamw(
            rate,
            steps=settings["updates"],
            warmup=settings["warmup_steps"],
            weight_decay=0.0,
            clip_norm=settings["clip_norm"],
            schedule=settings["schedule"],
        )
        for name, rate in (
            ("policy", settings["learning_rate"]),
            ("reward", settings["reward_learning_rate"]),
        )
    }
    options = OSIPOOptions(
        num_segments=student.spec.num_segments,
        lora_scale=student.lora_scale,
        scale=None if settings["scale"] == "none" else settings["scale"],
        **{
            name: settings[name]
            for name in (
                "temperature", "outcome_weight", "baseline", "gamma", "beta", "min_scale", "clip_low", "clip_high", "ratio", "aggregation", "kl_weight",
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
        accumulate=settings["accumulate"],
        compute_dtype=dtype,
        rules=rules,
        remat=settings["remat"],
    )
    state = OSIPOState(start(student.lora, optimizers["policy"]), start(student.lora, optimizers["reward"]))
    struct = jax.ShapeDtypeStruct
    tokens = struct((prompts, users.prompts.shape[1]), jnp.int32)
    valid = struct(tokens.shape, jnp.bool_)
    keys = jax.eval_shape(lambda: request_keys(jax.random.key(0), jnp.zeros((prompts, count), jnp.int32)))
    rollouts: Rollouts = jax.eval_shape(
        sample, params=params, grammar=student.grammar, prompts=tokens, prompt_valid=valid, keys=keys,
        temperature=1.0, lora=student.lora,
    )  # fmt: skip
    batch = OSIPOBatch(tokens, valid, rollouts, struct((prompts, *users.buckets.shape[1:]), users.buckets.dtype))
    replay = SFTBatch(*(struct((prompts, *array.shape[1:]), array.dtype) for array in examples.arrays))
    jitted = shard_step(
        update,
        (state, params, student.lora, student.grammar, batch, replay, struct((), jnp.float32)),
        ("parameters", "parameters", "parameters", "replicated", "batch", "batch", "replicated"),
        mesh=mesh,
        rules=rules,
    )
    # θ and φ start from the same arrays, and the state is donated: each needs its own copy.
    state = jax.tree.map(jnp.copy, state)
    return jitted, place(state, jitted.shardings[0]), place(params, jitted.shardings[1])
