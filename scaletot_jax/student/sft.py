"""Stage ``sft``: the student learns the teacher's chains from the profile alone.

Writes ``adapter.safetensors`` (``student.safetensors`` where all parameters are trained), ``steps.jsonl``, and for a
shorter student ``exit.safetensors``; ``scores.json`` holds the held-out scores of the student before and after, and
``timing.jsonl`` what the clock says. Killed at any moment it continues from the last checkpoint and ends with
the same bytes.
"""

from __future__ import annotations

import functools
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.files import read_arrays, read_table, seal, sealed, write_arrays
from scaletot_jax.lm.load import LoadedLM
from scaletot_jax.parallel.compile import ShardedStep, shard_step
from scaletot_jax.parallel.distributed import agree, barrier, gather, place
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.sinks import open_sinks
from scaletot_jax.student.adapter import TrainState, adamw, cast, save_adapter, start
from scaletot_jax.student.calibrate import exit_map
from scaletot_jax.student.clock import Clock
from scaletot_jax.student.data import batches, steps_in
from scaletot_jax.student.examples import Examples, blank_example, build_examples, hold_out
from scaletot_jax.student.full import FullState, compute_copy, decayed, full_sft_step, save_parameters, start_full
from scaletot_jax.student.held_out import held_out_scores
from scaletot_jax.student.loop import Keeper, check_finite
from scaletot_jax.student.policy import Student, build_student, check_layers, load_split, shorten, split
from scaletot_jax.student.sft_step import SFTBatch, loss_weight, sft_part, sft_step
from scaletot_jax.student.throughput import FULL, LORA, count_work, model_flops
from scaletot_jax.teacher.identity import identity_of_model


def sft(run: Run) -> Stage:
    """Trains the adapter on ``teach/chains.parquet`` and scores the student on held-out users."""
    sections = ("seed", "lm", "student", "mesh", "sft", "osipo.eval_profiles", "osipo.eval_chains")
    extra = identity_of_model(run.config)
    stage = run.stage("sft", sections=sections, needs=("prepare", "teach"), extra=extra)
    if stage.done:
        return stage
    population = open_population(run)
    full, dtype = run.config["student"]["trainable"] == "full", jnp.dtype(run.config["student"]["compute_dtype"])

    def score(name: str, student: Student) -> dict[str, Any]:
        multiplied = student.with_params(compute_copy(student.params, student.config, dtype))
        return held_out_scores(run, stage, name, multiplied, population)

    with jax.set_mesh(make_mesh(**run.config["mesh"])):
        # A frozen base is held as it is multiplied, trained parameters as their float32 master.
        student = base_student(run, stage, population, load_split(run, jnp.float32 if full else dtype))
        examples, held = hold_out(
            load_examples(run, population, student), run.config["sft"]["eval_fraction"], run.config["seed"]
        )
        before = score("base", student)
        weights, kept = train(run, stage, student, examples, held)
        if full:
            trained, written = student.with_params(weights), "student.safetensors"
            save_parameters(stage.path(written), weights)
        else:
            trained, written = student.with_lora(weights), "adapter.safetensors"
            save_adapter(stage.path(written), gather(weights))
        after = score("sft", trained)
    artifacts = [written, "steps.jsonl", "scores.json"]
    if run.config["student"]["num_layers"]:
        artifacts.append("exit.safetensors")
    summary = {
        "profiles": len(examples.keys),
        "evaluation_profiles": len(held.keys) if held else 0,
        "chains": int(np.sum(examples.arrays.weights > 0)),
        "truncated_profiles": examples.truncated,
        "prompt_tokens": examples.arrays.prompts.shape[1],
        "chain_tokens": examples.arrays.chains.shape[2],
        "steps": steps_in(len(examples.keys), run.config["sft"]["batch_size"], run.config["sft"]["epochs"]),
        "kept_step": kept,
        "layers": student.config.num_layers,
        "held_out": {"base": before, "sft": after},
    }
    stage.finish(artifacts, summary)
    return stage


def base_student(run: Run, stage: Stage, population: Population, loaded: LoadedLM) -> Student:
    """The untrained student on the mesh; a shorter one is calibrated once, and the exit map is kept in the stage's folder."""
    num_layers = run.config["student"]["num_layers"]
    if not num_layers:
        return split(build_student(run, loaded.params, loaded.config, loaded.tokenizer))
    check_layers(loaded.config, num_layers)
    path = stage.path("exit.safetensors")
    if not agree(sealed(path)):
        whole = build_student(run, loaded.params, loaded.config, loaded.tokenizer)
        arrays = load_examples(run, population, whole).arrays
        count = run.config["student"]["exit_texts"]
        tokens, valid = _joined(arrays, count)
        write_arrays(path, exit_map(loaded.params, loaded.config, num_layers, tokens, valid))
        seal(path)
    barrier("exit map")
    return split(build_student(run, *shorten(loaded, num_layers, read_arrays(path)), loaded.tokenizer))


def load_examples(run: Run, population: Population, student: Student) -> Examples:
    """The teacher's chains as training arrays."""
    chains = read_table(run.finished("teach").path("chains.parquet"))
    keys = population.table["exact_key"].to_pylist()
    wanted = set(chains["exact_key"].to_pylist())
    first = {key: row for row, key in reversed(list(enumerate(keys))) if key in wanted}
    texts = population.renderer.texts(population.table.take(list(first.values())))
    return build_examples(
        chains, dict(zip(first, texts)), student.chain, student.tokenizer, max_profile_tokens=student.max_profile_tokens
    )


def train(
    run: Run, stage: Stage, student: Student, examples: Examples, held: Examples | None = None
) -> tuple[Any, int]:
    """The loop: restore, then batch → step → log → checkpoint until the last epoch ends.

    Args:
      held: examples kept out of the training; their loss is logged at every checkpoint.

    Returns:
      What was trained, on the mesh: the adapter, or the parameters where ``student.trainable`` is ``full``; and the step
      it is from: the last one, or with ``sft.keep = best`` the checkpoint with the lowest evaluation loss.
    """
    settings = run.config["sft"]
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    size, full = settings["batch_size"], run.config["student"]["trainable"] == "full"
    total = steps_in(len(examples.keys), size, settings["epochs"])
    data = batches(
        examples.arrays, batch_size=size, seed=run.config["seed"], epochs=settings["epochs"],
        blank=blank_example(examples.arrays),
    )  # fmt: skip
    step, state, frozen, part = _prepare(run, student, examples, total)
    keeper = Keeper(stage, run.config["checkpoint"])
    state, done = keeper.resume(state, {"data": data})
    with (
        open_sinks(run.workdir, "sft", run.config) as sinks,
        closing(keeper.log(sinks)) as log,
        closing(Clock(stage, mesh, done=done, convention="6ND" if full else "4ND", sinks=sinks)) as clock,
        Progress("sft", total, "steps", done=done) as progress,
        keeper,
    ):
        for number in range(done + 1, total + 1):
            clock.start()
            arrays = next(data)
            batch = place(arrays, batch_shardings(arrays, mesh, rules))
            state, metrics = step(state, *frozen, batch)
            values = {name: float(value) for name, value in metrics.items()}
            real = arrays.weights > 0  # the last batch of an epoch is filled up with profiles that have no chain
            work = count_work(
                arrays.prompt_valid & real.any(1)[:, None], arrays.chain_valid & real[..., None], vocabulary=True
            )
            speed = clock.stop(number, work.tokens, model_flops(student.config, work, FULL if full else LORA))
            due = number % settings["checkpoint_every"] == 0 or number == total
            if due and held is not None:
                values |= evaluate(part, state[0], frozen, held, size, mesh)
            log.append(number, **values)
            check_finite(stage, number, values)
            keeper.after(number, state, {"data": data}, due=due, metric=values.get("eval_loss"))
            progress.advance(note=f"loss {values['loss']:.3f}, {speed}")
    kept = total
    if settings["keep"] == "best" and (best := keeper.best(state)) is not None:
        state, kept = best
    return state[0], kept


def evaluate(
    part: Any, weights: Any, frozen: tuple[Any, ...], held: Examples, batch_size: int, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Loss on examples that are not trained on, in nats a token: ``eval_loss``, and ``eval_answer_loss`` at the answer.

    Args:
      part: jitted ``(weights, *frozen, batch) -> (sum, its weight, sums)``.
      batch_size: rows at a time; the last batch is filled up with rows of weight 0.
    """
    totals = np.zeros(4)
    rows = batches(held.arrays, batch_size=batch_size, seed=0, epochs=1, blank=blank_example(held.arrays))
    for batch in rows:
        batch = place(batch, batch_shardings(batch, mesh, ShardingRules()))
        total, weight, sums = part(weights, *frozen, batch)
        totals += [float(value) for value in (total, weight, sums["answer"], sums["answers"])]
    return {"eval_loss": totals[0] / max(totals[1], 1e-9), "eval_answer_loss": totals[2] / max(totals[3], 1e-9)}


def _prepare(
    run: Run, student: Student, examples: Examples, total: int
) -> tuple[ShardedStep, TrainState | FullState, tuple[Any, ...], Any]:
    """The jitted step ``(state, *frozen, batch)``, its first state, what stays as it is, and the evaluation of a batch."""
    settings, how = run.config["sft"], run.config["student"]
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    full, dtype = how["trainable"] == "full", jnp.dtype(how["compute_dtype"])
    optimizer = adamw(
        settings["learning_rate"],
        steps=total,
        warmup=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        clip_norm=settings["clip_norm"],
        schedule=settings["schedule"],
        decayed=decayed(student.params, student.config) if full else None,
    )
    shared = {"config": student.config, "rules": rules, "answer_weight": settings["answer_weight"]}
    options = shared | {
        "optimizer": optimizer,
        "accumulate": settings["accumulate"],
        "compute_dtype": dtype,
        "remat": settings["remat"],
    }
    like = SFTBatch(*(_repeat(array, settings["batch_size"]) for array in examples.arrays))

    def part(
        lora: Any, params: Any, grammar: Any, batch: SFTBatch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        total, sums = sft_part(lora, params, grammar, batch, jnp.float32(1), lora_scale=student.lora_scale, **shared)
        return total, loss_weight(grammar, batch, settings["answer_weight"]), sums

    if full:
        state: TrainState | FullState = start_full(student.params, optimizer)
        jitted = shard_step(
            functools.partial(full_sft_step, **options),
            (state, student.grammar, like),
            ("parameters", "replicated", "batch"),
            mesh=mesh,
            rules=rules,
        )
        frozen: tuple[Any, ...] = (place(student.grammar, jitted.shardings[1]),)
        judge = jax.jit(
            lambda params, *rest: part(None, compute_copy(params, student.config, dtype), *rest)  # type: ignore[arg-type]
        )
    else:
        state = start(student.lora, optimizer)
        params = compute_copy(student.params, student.config, dtype)
        jitted = shard_step(
            functools.partial(sft_step, lora_scale=student.lora_scale, **options),
            (state, params, student.grammar, like), ("parameters", "parameters", "replicated", "batch"),
            mesh=mesh, rules=rules,
        )  # fmt: skip
        frozen = (place(params, jitted.shardings[1]), place(student.grammar, jitted.shardings[2]))
        judge = jax.jit(lambda lora, *rest: part(cast(lora, dtype), *rest))
    return jitted, place(state, jitted.shardings[0]), frozen, judge


def _joined(arrays: SFTBatch, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and first chain of the first ``count`` examples as plain right-padded rows."""
    rows = range(min(count, len(arrays.prompts)))
    ids = [
        np.concatenate([arrays.prompts[e][arrays.prompt_valid[e]], arrays.chains[e, 0][arrays.chain_valid[e, 0]]])
        for e in rows
    ]
    length = max(map(len, ids))
    tokens, valid = np.zeros((len(ids), length), np.int32), np.zeros((len(ids), length), bool)
    for row, values in enumerate(ids):
        tokens[row, : len(values)], valid[row, : len(values)] = values, True
    return tokens, valid


def _repeat(array: np.ndarray, batch_size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype)
