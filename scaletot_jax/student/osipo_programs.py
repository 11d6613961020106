"""The programs of stage ``osipo`` on its mesh: the updates, their first state, and what is in flight between them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaletot_jax.parallel.compile import ShardedStep, shard_step
from scaletot_jax.parallel.distributed import place
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings
from scaletot_jax.run import Run
from scaletot_jax.student.adapter import adamw, start
from scaletot_jax.student.examples import Examples
from scaletot_jax.student.full import compute_copy
from scaletot_jax.student.labelled import Labelled
from scaletot_jax.student.osipo_step import (
    Judged,
    OSIPOBatch,
    OSIPOOptions,
    OSIPOState,
    osipo_again,
    osipo_first,
    osipo_step,
)
from scaletot_jax.student.policy import Student
from scaletot_jax.student.policy_update import answer_targets
from scaletot_jax.student.rollout import Rollouts, request_keys
from scaletot_jax.student.sft_step import SFTBatch


class Flight(NamedTuple):
    """Rollouts that are to serve further updates."""

    batch: OSIPOBatch
    judged: Judged


class Programs(NamedTuple):
    """What the loop of the stage needs.

    Attributes:
      first: the jitted update on fresh rollouts, ``(state, params, reference, grammar, batch, replay, process weight)``.
      again: the update on rollouts that have served one, ``(state, params, grammar, batch, judged, replay)``; None where
        they serve one alone.
      flight: shapes and places of a :class:`Flight`; None where there is none.
      state, params: the first state and the base weights, on the mesh.
    """

    first: ShardedStep
    again: ShardedStep | None
    flight: Any
    state: OSIPOState
    params: Any


def prepare(run: Run, student: Student, users: Labelled, examples: Examples, sample: Any) -> Programs:
    """Compiles nothing yet, but places the state and the base weights.

    Args:
      sample: jitted :func:`scaletot_jax.student.rollout.sample_chains`, for the shapes of its rollouts.
    """
    settings = run.config["osipo"]
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    prompts, count = settings["prompts"], settings["rollouts"]
    dtype = jnp.dtype(run.config["student"]["compute_dtype"])
    params = compute_copy(student.params, student.config, dtype)
    optimizers = {
        name: adamw(
            rate,
            steps=steps,
            warmup=settings["warmup_steps"],
            weight_decay=0.0,
            clip_norm=settings["clip_norm"],
            schedule=settings["schedule"],
        )
        for name, rate, steps in (
            ("policy", settings["learning_rate"], settings["updates"]),
            # φ learns once a batch of rollouts.
            ("reward", settings["reward_learning_rate"], -(-settings["updates"] // settings["epochs"])),
        )
    }
    drawn = prompts * -(-settings["updates"] // settings["epochs"])  # by all batches of rollouts
    labels = min(drawn, len(users.rows))  # a label that is drawn again says nothing new
    options = OSIPOOptions(
        num_segments=student.spec.num_segments,
        lora_scale=student.lora_scale,
        scale=None if settings["scale"] == "none" else settings["scale"],
        answer_anchor=settings["answer_prior"] / labels,
        replay_answer_weight=run.config["sft"]["answer_weight"],
        **{
            name: settings[name]
            for name in (
                "temperature", "estimator", "outcome_weight", "baseline", "gamma", "beta", "min_scale", "clip_low", "clip_high", "ratio",
                "aggregation", "kl_weight", "answer_weight", "sft_weight",
            )
        },
    )  # fmt: skip
    shared = {
        "config": student.config,
        "options": options,
        "policy_optimizer": optimizers["policy"],
        "accumulate": settings["accumulate"],
        "compute_dtype": dtype,
        "rules": rules,
        "remat": settings["remat"],
    }
    several = settings["epochs"] > 1
    update = functools.partial(osipo_first if several else osipo_step, reward_optimizer=optimizers["reward"], **shared)
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
    targets = jax.eval_shape(functools.partial(answer_targets, anchor=options.answer_anchor), batch, rollouts.answers)
    judged = Judged(*(struct(rollouts.tokens.shape, jnp.float32),) * 3, struct((), jnp.float32), targets)
    flight = Flight(batch, judged)
    lies = batch_shardings(flight, mesh, rules)
    jitted = shard_step(
        update,
        (state, params, student.lora, student.grammar, batch, replay, struct((), jnp.float32)),
        ("parameters", "parameters", "parameters", "replicated", "batch", "batch", "replicated"),
        mesh=mesh,
        rules=rules,
        kept=(lies.judged,) if several else (),
    )
    # θ and φ start from the same arrays, and the state is donated: each needs its own copy.
    state = place(jax.tree.map(jnp.copy, state), jitted.shardings[0])
    params = place(params, jitted.shardings[1])
    if not several:
        return Programs(jitted, None, None, state, params)
    again = shard_step(
        functools.partial(osipo_again, **shared),
        (state, params, student.grammar, batch, judged, replay),
        ("parameters", "parameters", "replicated", "batch", "batch", "batch"),
        mesh=mesh,
        rules=rules,
    )
    placed = jax.tree.map(lambda leaf, where: struct(leaf.shape, leaf.dtype, sharding=where), flight, lies)
    return Programs(jitted, again, placed, state, params)
