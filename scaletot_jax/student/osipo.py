"""Stage ``osipo``: the student's chains are improved by outcomes.

Prompts are drawn from a seeded permutation of the labelled rows of the teacher split, chains are sampled from the current
policy, and ``osipo.epochs`` updates follow (:mod:`scaletot_jax.student.osipo_step`). Rollouts depend on the update's number
and the request alone, so a restart from any checkpoint repeats them bit by bit; where they serve several updates, the
checkpoint holds those in flight with what the first update found out about them.

Writes ``adapter.safetensors`` (the policy), ``reward.safetensors`` (the reward model), ``users.parquet`` (whose labels
it learnt from), ``steps.jsonl`` and ``scores.json``.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from scaletot_jax.files import read_json, write_table
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.parallel.distributed import gather, leads, place
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.sinks import open_sinks
from scaletot_jax.step_log import read_steps
from scaletot_jax.student.adapter import Adapter, save_adapter
from scaletot_jax.student.clock import Clock
from scaletot_jax.student.data import batches
from scaletot_jax.student.examples import Examples, hold_out
from scaletot_jax.student.held_out import held_out_scores
from scaletot_jax.student.labelled import Labelled, labelled_rows, pooled
from scaletot_jax.student.loop import Keeper, check_finite
from scaletot_jax.student.osipo_programs import Flight, prepare
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOState
from scaletot_jax.student.policy import ROLLOUT_STREAM, Student, load_split, load_student, split
from scaletot_jax.student.rollout import request_keys, sample_chains
from scaletot_jax.student.sft import load_examples
from scaletot_jax.student.sft_step import SFTBatch
from scaletot_jax.student.switch_off import auc_interval, never_judged, no_better_than_chance
from scaletot_jax.student.throughput import FORWARD, LORA, count_work, model_flops
from scaletot_jax.teacher.identity import identity_of_model

MIN_OUTCOME_VARIANCE = 1e-4  # variance within a user, in the median update, below which there is nothing to learn from
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
    with jax.set_mesh(make_mesh(**run.config["mesh"])):
        loaded = load_split(run, jnp.dtype(run.config["student"]["compute_dtype"]))
        student = split(load_student(run, "sft", loaded=loaded))
        del loaded  # a shorter student, or one trained as a whole, has parameters of its own
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
        scores = held_out_scores(run, stage, "osipo", split(student.with_lora(policy)), population)
    steps = read_steps(stage.path("steps.jsonl"))
    earlier = read_json(run.finished("sft").path("scores.json"))
    summary = summarise(steps, stopped) | {
        "labelled_users": len(users.rows),
        "truncated_profiles": users.truncated,
        "held_out": {**earlier, "osipo": scores},
    }
    summary["worse_than_sft"] = worse_than_sft(summary["held_out"])
    if not summary["osipo_signal"]:
        print(
            f"osipo: the outcome hardly varies within a user (variance {summary['outcome_variance_median']:.2e} < "
            f"{MIN_OUTCOME_VARIANCE:.0e} in the median update): most updates had no signal to learn from",
            file=sys.stderr,
        )
    if summary["process_signal"] is False:
        print(
            f"osipo: the process reward has not been shown to order the chains of one user better than chance (AUC {summary['value_auc']:.3f} "
            f"[{summary['value_auc_low']:.3f}, {summary['value_auc_high']:.3f}] over {summary['value_pairs']:,} pairs)",
            file=sys.stderr,
        )
    if summary["worse_than_sft"]:
        print(f"osipo: {summary['worse_than_sft']}", file=sys.stderr)
    artifacts = ["adapter.safetensors", "reward.safetensors", "users.parquet", "steps.jsonl", "scores.json"]
    stage.finish(artifacts, summary)
    return stage


def worse_than_sft(held_out: Mapping[str, Any]) -> str | None:
    """A sentence where the updates lowered the student's skill on held-out profiles (1 − RPS / RPS of the base rate); else None."""
    before, after = (held_out.get(name, {}).get("skill") for name in ("sft", "osipo"))
    if before is None or after is None or after >= before:
        return None
    return (
        f"the updates lowered the student's held-out skill from {before:+.3f} to {after:+.3f} ({held_out['osipo']['users']} users; "
        "chance is not told apart): larger batches (osipo.prompts) or fewer updates may help, and distill.student=sft takes the "
        "states of the student before them"
    )


def train(
    run: Run, stage: Stage, student: Student, users: Labelled, examples: Examples
) -> tuple[Adapter, Adapter, dict[str, int]]:
    """The loop: restore, then rollouts → update → log → checkpoint. Returns θ, φ, and the stop rules that fired."""
    settings = run.config["osipo"]
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    total, prompts, count = settings["updates"], settings["prompts"], settings["rollouts"]
    epochs = settings["epochs"]
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
    step, again, flight, state, params = prepare(run, student, users, examples, sample)
    key = jax.random.fold_in(jax.random.key(seed), ROLLOUT_STREAM)
    requests = jnp.arange(prompts * count).reshape(prompts, count)
    keeper = Keeper(stage, run.config["checkpoint"])
    if leads() and (note := never_judged(settings)) is not None:
        print(f"osipo: {note}", file=sys.stderr)
    stopped: dict[str, int] = {}
    unit, done = keeper.resume(_unit(state, flight), data, stopped)
    state, flight = unit if flight is not None else (unit, None)
    reference = place(student.lora, step.shardings[2])
    grammar = place(student.grammar, step.shardings[3])
    convention = "2ND + 4ND + 4ND on rollouts and 4ND on the replay, rollouts apart"
    with (
        open_sinks(run.workdir, "osipo", run.config) as sinks,
        closing(keeper.log(sinks)) as log,
        closing(Clock(stage, mesh, done=done, convention=convention, sinks=sinks)) as clock,
        Progress("osipo", total, "updates", done=done) as progress,
        keeper,
    ):
        history = [row for row in read_steps(log.path) if row["step"] <= done]
        for update in range(done + 1, total + 1):
            served = (update - 1) % epochs  # updates that these rollouts have served
            taught = next(data["replay"])
            replay = place(taught, batch_shardings(taught, mesh, rules))
            sampling = time.monotonic()
            if served == 0:
                batch = next(data["users"])
                batch = place(batch, batch_shardings(batch, mesh, rules))
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
                warming = (update - 1) // epochs < settings["warmup_updates"]
                weight = 0.0 if stopped or warming else settings["process_weight"]
                found = step(state, params, reference, grammar, batch, replay, jnp.float32(weight))
                state, metrics = found[0], found[-1]
                flight = None if epochs == 1 else Flight(batch, found[1])
            else:
                clock.start()
                assert again is not None and flight is not None
                batch, judged = flight
                state, metrics = again(state, params, grammar, batch, judged, replay)
            values = {name: float(value) for name, value in metrics.items()}
            if epochs > 1:
                values["epoch"] = served + 1
            sampled = clock.started - sampling
            work = update_work(
                student.config, batch.prompt_valid, batch.rollouts.valid, taught, settings["sft_weight"], served=served
            )
            speed = clock.stop(update, *work, rollout_seconds=sampled)
            log.append(update, **values)
            check_finite(stage, update, values)
            history.append({"step": update, **values})
            for rule in fired(history, settings["kl_limit"], settings["auc_pairs"]):
                stopped.setdefault(rule, update)
            due = update % settings["checkpoint_every"] == 0 or update == total
            keeper.after(update, _unit(state, flight), data, due=due, record=stopped)
            progress.advance(
                note=f"loss {values['loss']:.3f}, {speed}" if served else f"outcome {values['outcome']:.3f}, {speed}"
            )
    return gather(state.policy.lora), gather(state.reward.lora), stopped


def _unit(state: OSIPOState, flight: Flight | None) -> Any:
    """What a checkpoint holds: the state, and the rollouts in flight where they serve several updates."""
    return state if flight is None else (state, flight)


def fired(history: Sequence[Mapping[str, Any]], kl_limit: float, auc_pairs: int) -> list[str]:
    """Stop rules that the updates so far break; from the next batch of rollouts on the process weight is 0: RLOO.

    ``validity``: more than 5 points of chains without an end (the SFT policy has none under the grammar). ``kl``: the
    policy has moved more than ``kl_limit`` nats a chain from the SFT policy. ``chance``: over ``auc_pairs`` pairs the
    reward model's values did not order chains better than chance, see :mod:`scaletot_jax.student.switch_off`.

    Args:
      history: rows of the step log, the newest last.
    """
    rules, values = [], history[-1]
    if values.get("valid_rate", 1.0) < 1 - MAX_VALIDITY_LOSS:  # of fresh rollouts alone
        rules.append("validity")
    if values["kl"] > kl_limit:
        rules.append("kl")
    if no_better_than_chance(history, auc_pairs):
        rules.append("chance")
    return rules


def update_work(
    config: LMConfig, prompt_valid: Any, chain_valid: Any, replay: SFTBatch, sft_weight: float, *, served: int = 0
) -> tuple[int, float]:
    """Real tokens of an update, the rollouts' counted once, and its model FLOPs (:mod:`scaletot_jax.student.throughput`).

    Args:
      served: updates that the rollouts have served before; from the second on the policy's pass is the only one over them.
    """
    rolled = count_work(gather(prompt_valid), gather(chain_valid), vocabulary=False)
    flops = sum(model_flops(config, rolled, factor) for factor in ((LORA,) if served else (FORWARD, LORA, LORA)))
    if sft_weight > 0:
        counted = replay.chain_valid & (replay.weights > 0)[..., None]
        flops += model_flops(config, count_work(replay.prompt_valid, counted, vocabulary=True), LORA)
    return rolled.tokens, flops


def summarise(steps: list[dict[str, Any]], stopped: dict[str, int]) -> dict[str, Any]:
    """Means over the run, and whether there was a signal."""

    fresh = [row for row in steps if "outcome" in row]  # the first update of each batch of rollouts

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in steps if name in row]))

    judged = auc_interval([row for row in fresh if row["process_weight"]] or fresh)
    # The first updates may vary much and the rest not at all: a mean would hide that.
    median = float(np.median([row["outcome_variance"] for row in fresh]))
    return {
        "updates": len(steps),
        "batches": len(fresh),
        "outcome_first": fresh[0]["outcome"],
        "outcome_last": fresh[-1]["outcome"],
        "outcome_variance": mean("outcome_variance"),
        "outcome_variance_median": median,
        "osipo_signal": median >= MIN_OUTCOME_VARIANCE,
        "valid_rate": mean("valid_rate"),
        "zero_advantage_groups": mean("zero_advantage_groups"),
        "clip_fraction": mean("clip_fraction"),
        "kl_last": steps[-1]["kl"],
        "structural_share": mean("structural_share"),
        "value_auc": judged.auc if judged else None,
        "value_auc_low": judged.low if judged else None,
        "value_auc_high": judged.high if judged else None,
        "value_pairs": judged.pairs if judged else 0,
        "process_signal": judged.low > 0.5 if judged and any(row["process_weight"] for row in fresh) else None,
        "value_correlation": mean("value_correlation"),
        "process_stopped": stopped,
    }
