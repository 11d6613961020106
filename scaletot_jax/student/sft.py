"""Stage ``sft``: the student learns the teacher's chains from the profile alone.

Writes ``adapter.safetensors``, ``steps.jsonl``, and for a shorter student ``exit.safetensors``; ``scores.json`` holds the
held-out scores of the student before and after. Killed at any moment it continues from the last checkpoint and ends with
the same bytes.
"""

from __future__ import annotations

import functools

import jax
import numpy as np

from scaletot_jax.files import read_arrays, read_table, write_arrays
from scaletot_jax.lm.load import LoadedLM, load_model
from scaletot_jax.parallel.compile import shard_step
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.step_log import StepLog
from scaletot_jax.student.adapter import Adapter, adamw, save_adapter, start
from scaletot_jax.student.calibrate import exit_map
from scaletot_jax.student.data import batches, steps_in
from scaletot_jax.student.examples import Examples, blank_example, build_examples
from scaletot_jax.student.held_out import held_out_scores
from scaletot_jax.student.loop import keep, resume
from scaletot_jax.student.policy import Student, build_student, check_layers, shorten
from scaletot_jax.student.sft_step import SFTBatch, sft_step
from scaletot_jax.teacher.identity import identity_of_model


def sft(run: Run) -> Stage:
    """Trains the adapter on ``teach/chains.parquet`` and scores the student on held-out users."""
    sections = ("seed", "lm", "student", "mesh", "sft", "osipo.eval_profiles", "osipo.eval_chains")
    extra = identity_of_model(run.config)
    stage = run.stage("sft", sections=sections, needs=("prepare", "teach"), extra=extra)
    if stage.done:
        return stage
    population = open_population(run)
    loaded = load_model(run.config["lm"]["weights"])
    student = base_student(run, stage, population, loaded)
    examples = load_examples(run, population, student)
    with jax.set_mesh(make_mesh(**run.config["mesh"])):
        before = held_out_scores(run, stage, "base", student, population)
        lora = train(run, stage, student, examples)
        save_adapter(stage.path("adapter.safetensors"), lora)
        after = held_out_scores(run, stage, "sft", student.with_lora(lora), population)
    artifacts = ["adapter.safetensors", "steps.jsonl", "scores.json"]
    if run.config["student"]["num_layers"]:
        artifacts.append("exit.safetensors")
    summary = {
        "profiles": len(examples.keys),
        "chains": int(np.sum(examples.arrays.weights > 0)),
        "truncated_profiles": examples.truncated,
        "prompt_tokens": examples.arrays.prompts.shape[1],
        "chain_tokens": examples.arrays.chains.shape[2],
        "steps": steps_in(len(examples.keys), run.config["sft"]["batch_size"], run.config["sft"]["epochs"]),
        "layers": student.config.num_layers,
        "held_out": {"base": before, "sft": after},
    }
    stage.finish(artifacts, summary)
    return stage


def base_student(run: Run, stage: Stage, population: Population, loaded: LoadedLM) -> Student:
    """The untrained student; a shorter one is calibrated once, and the exit map is kept in the stage's folder."""
    num_layers = run.config["student"]["num_layers"]
    if not num_layers:
        return build_student(run, loaded.params, loaded.config, loaded.tokenizer)
    check_layers(loaded.config, num_layers)
    path = stage.path("exit.safetensors")
    if not path.exists():
        whole = build_student(run, loaded.params, loaded.config, loaded.tokenizer)
        arrays = load_examples(run, population, whole).arrays
        count = run.config["student"]["exit_texts"]
        tokens, valid = _joined(arrays, count)
        write_arrays(path, exit_map(loaded.params, loaded.config, num_layers, tokens, valid))
    return build_student(run, *shorten(loaded, num_layers, read_arrays(path)), loaded.tokenizer)


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


def train(run: Run, stage: Stage, student: Student, examples: Examples) -> Adapter:
    """The loop: restore, then batch → step → log → checkpoint until the last epoch ends."""
    settings = run.config["sft"]
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    total = steps_in(len(examples.keys), settings["batch_size"], settings["epochs"])
    optimizer = adamw(
        settings["learning_rate"],
        steps=total,
        warmup=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        clip_norm=settings["clip_norm"],
    )
    data = batches(
        examples.arrays,
        batch_size=settings["batch_size"],
        seed=run.config["seed"],
        epochs=settings["epochs"],
        blank=blank_example(examples.arrays),
    )
    step = functools.partial(
        sft_step,
        config=student.config,
        optimizer=optimizer,
        lora_scale=student.lora_scale,
        answer_weight=settings["answer_weight"],
        rules=rules,
    )
    state = start(student.lora, optimizer)
    like = SFTBatch(*(_repeat(array, settings["batch_size"]) for array in examples.arrays))
    jitted = shard_step(
        step,
        (state, student.params, student.grammar, like),
        ("parameters", "parameters", "replicated", "batch"),
        mesh=mesh,
        rules=rules,
    )
    state = jax.device_put(state, jitted.shardings[0])
    params = jax.device_put(student.params, jitted.shardings[1])
    state, done = resume(stage, state, {"data": data})
    log = StepLog(stage.path("steps.jsonl"), keep_through=done)
    with Progress("sft", total, "steps", done=done) as progress:
        for number in range(done + 1, total + 1):
            batch = next(data)
            batch = jax.device_put(batch, batch_shardings(batch, mesh, rules))
            state, metrics = jitted(state, params, student.grammar, batch)
            values = {name: float(value) for name, value in metrics.items()}
            log.append(number, **values)
            if number % settings["checkpoint_every"] == 0 or number == total:
                keep(stage, number, state, {"data": data})
            progress.advance(note=f"loss {values['loss']:.3f}")
    log.close()
    return jax.device_get(state.lora)


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
