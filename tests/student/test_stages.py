"""The stages sft and osipo on the synthetic population with a tiny model and made-up chains."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import tiny
from safetensors.numpy import load_file

from scaletot_jax.chains.spec import load_spec
from scaletot_jax.config import default_config
from scaletot_jax.files import read_table, write_table
from scaletot_jax.profiles.prepare import prepare
from scaletot_jax.run import Run
from scaletot_jax.step_log import read_steps
from scaletot_jax.student.policy import load_student
from scaletot_jax.student.states import reasoning_states

PROFILES = 12


def configuration(weights):
    config = default_config()
    config.data.name = "synthetic"
    config.data.limit = 200
    config.lm.weights = str(weights)
    config.lm.max_profile_tokens = 60
    config.student.lora_rank = 2
    config.student.num_layers = 2
    config.student.exit_texts = 8
    config.sft.epochs = 2
    config.sft.batch_size = 4
    config.sft.accumulate = 2
    config.sft.eval_fraction = 0.2
    config.sft.learning_rate = 1e-2
    config.sft.checkpoint_every = 2
    config.osipo.updates = 4
    config.osipo.prompts = 2
    config.osipo.accumulate = 2
    config.osipo.rollouts = 3
    config.osipo.warmup_updates = 1
    config.osipo.checkpoint_every = 1
    config.osipo.eval_profiles = 12
    return config.to_dict()


def teach_by_hand(run):
    """What the teacher would write, from a seeded generator."""
    stage = run.stage("teach", sections=("teacher",), needs=("prepare",))
    table = read_table(run.finished("prepare").path("population.parquet"))
    keys = sorted(set(table.filter(pc.equal(table["split"], "teacher"))["exact_key"].to_pylist()))[:PROFILES]
    spec, rng, rows = load_spec("synthetic"), np.random.default_rng(0), []
    for number, key in enumerate(keys):
        for rank in range(1 + number % 2):
            distributions = [rng.dirichlet(np.ones(len(slot.values))) for slot in spec.slots]
            rows.append(
                {
                    "exact_key": key,
                    "rank": rank,
                    "weight": 1.0 / (1 + rank),
                    "values": [slot.values[int(np.argmax(p))] for slot, p in zip(spec.slots, distributions)],
                    "distributions": [p.tolist() for p in distributions],
                    "answer": rng.dirichlet(np.ones(spec.num_buckets)).tolist(),
                    "accepted": number != 3,
                }
            )
    write_table(stage.path("chains.parquet"), pa.Table.from_pylist(rows))
    stage.finish(["chains.parquet"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("student")
    config = configuration(tiny.write_tiny_lm(place / "lm", layers=3))
    (place / "config.json").write_text(json.dumps(config))
    with Run(place / "prepared", config) as run:
        prepare(run)
        teach_by_hand(run)
    return place, config


PROGRAM = """
import json, os, sys
from scaletot_jax.run import Run
import scaletot_jax.student.loop as loop
name, folder, config, stop = sys.argv[1:]
saved = 0
if int(stop):
    import scaletot_jax.parallel.checkpoint as checkpoint
    inner = checkpoint.Checkpoints.save
    def save(units, *arguments, **options):
        global saved
        inner(units, *arguments, **options)
        saved += 1
        if saved == int(stop):
            units.wait()
            os._exit(9)
    checkpoint.Checkpoints.save = save
if os.environ.get("EVER_WORSE"):
    import scaletot_jax.student.sft as sft_stage
    calls = []
    sft_stage.evaluate = lambda *rest: calls.append(0) or {"eval_loss": float(os.environ["EVER_WORSE"]) + len(calls)}
import importlib
with Run(folder, json.load(open(config))) as run:
    getattr(importlib.import_module("scaletot_jax.student." + name), name)(run)
"""


def stage(place, folder, name, *, stop=0, config="config.json"):
    """Runs a stage in a process of its own; with ``stop`` the process dies right after that many checkpoints."""
    environ = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, "-c", PROGRAM, name, str(folder), str(place / config), str(stop)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == (9 if stop else 0), done.stderr
    return done


def artifacts(folder, name):
    record = json.loads((folder / name / "stage.json").read_text())
    return {artifact: entry["sha256"] for artifact, entry in record["artifacts"].items()}, record["summary"]


@pytest.fixture(scope="module")
def undisturbed(prepared):
    place, config = prepared
    folder = place / "undisturbed"
    shutil.copytree(place / "prepared", folder)
    stage(place, folder, "sft")
    stage(place, folder, "osipo")
    return folder, config


def test_summaries(undisturbed):
    folder, _ = undisturbed
    _, sft = artifacts(folder, "sft")
    assert sft["profiles"] == PROFILES - 3 and sft["layers"] == 2 and sft["steps"] == 5
    assert sft["evaluation_profiles"] == 2
    assert set(sft["held_out"]) == {"base", "sft"}
    _, osipo = artifacts(folder, "osipo")
    assert set(osipo["held_out"]) == {"base", "sft", "osipo"}
    scores = osipo["held_out"]
    assert all(0 < score["rps"] < 1 and score["valid_rate"] == 1 and score["users"] == 12 for score in scores.values())
    assert len({score["rps"] for score in scores.values()}) == 3
    assert len({score["base_rate_rps"] for score in scores.values()}) == 1
    assert osipo["updates"] == 4 and osipo["valid_rate"] == 1 and osipo["osipo_signal"] in (True, False)


def test_sft_loss_falls_and_osipo_logs_every_update(undisturbed):
    folder, _ = undisturbed
    logged = read_steps(folder / "sft" / "steps.jsonl")
    losses = [row["loss"] for row in logged]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.3
    held = {row["step"]: row["eval_loss"] for row in logged if "eval_loss" in row}
    assert list(held) == [2, 4, 5] and held[5] < held[2] and held[5] != losses[-1]
    rows = read_steps(folder / "osipo" / "steps.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["process_weight"] > 0 for row in rows] == [False, True, True, True]
    assert rows[0]["kl"] == 0 and rows[-1]["kl"] > 0


def test_the_clock_keeps_its_times_apart(undisturbed):
    folder, _ = undisturbed
    for name, count in (("sft", 5), ("osipo", 4)):
        rows = read_steps(folder / name / "timing.jsonl")
        assert [row["step"] for row in rows] == list(range(1, count + 1))
        assert all(row["tokens"] > 0 and row["model_flops"] > 0 for row in rows)
        assert all(row["model_flops_utilisation"] is None for row in rows)  # no peak is known for a CPU
        assert "timing.jsonl" not in artifacts(folder, name)[0]
        assert not any("second" in key for row in read_steps(folder / name / "steps.jsonl") for key in row)


def test_all_parameters(prepared):
    """SFT of all parameters writes a whole student, and OSIPO trains adapters on it."""
    place, config = prepared
    config = {
        **config,
        "student": {**config["student"], "trainable": "full"},
        "osipo": {**config["osipo"], "updates": 1},
    }
    (place / "full.json").write_text(json.dumps(config))
    folder = place / "full"
    shutil.copytree(place / "prepared", folder)
    for name in ("sft", "osipo"):
        stage(place, folder, name, config="full.json")
    assert "student.safetensors" in artifacts(folder, "sft")[0]
    assert not (folder / "sft" / "adapter.safetensors").exists()
    (row,) = read_steps(folder / "osipo" / "steps.jsonl")
    assert row["kl"] == 0 and row["grad_norm"] > 0  # a fresh adapter is the reference
    with Run(folder, config, lock=False) as run:
        base, sft, osipo = (load_student(run, which) for which in ("base", "sft", "osipo"))
    moved = np.abs(np.asarray(sft.params["layers"]["down"]) - np.asarray(base.params["layers"]["down"])).max()
    assert moved > 1e-3 and not np.asarray(sft.lora["q_b"]).any() and np.asarray(osipo.lora["q_b"]).any()
    np.testing.assert_array_equal(osipo.params["exit"]["weight"], sft.params["exit"]["weight"])


def test_the_best_checkpoint_can_be_the_result(prepared, monkeypatch):
    """Where every evaluation is worse than the one before, the result is the student of the first."""
    place, config = prepared
    config = json.loads(json.dumps(config))
    config["sft"]["keep"] = "best"
    (place / "best.json").write_text(json.dumps(config))
    monkeypatch.setenv("EVER_WORSE", "1")
    folder = place / "best"
    shutil.copytree(place / "prepared", folder)
    stage(place, folder, "sft", config="best.json", stop=1)
    first = restore_arrays(folder / "sft" / "checkpoints")
    monkeypatch.setenv("EVER_WORSE", "2")
    stage(place, folder, "sft", config="best.json")
    assert artifacts(folder, "sft")[1]["kept_step"] == 2
    kept = load_file(folder / "sft" / "adapter.safetensors")
    assert kept.keys() == first.keys() and all(np.array_equal(kept[name], first[name]) for name in kept)


def restore_arrays(directory):
    """The adapter of the newest checkpoint."""
    with ocp.CheckpointManager(directory.absolute()) as manager:
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))
    return {name: np.asarray(value) for name, value in found["arrays"]["lora"].items()}


@pytest.mark.parametrize("name,stops", [("sft", (1, 2)), ("osipo", (1, 1))])
def test_resume_is_bitwise(prepared, undisturbed, name, stops):
    """Killed after the first checkpoint, then again after later ones: the same adapter, log and scores, byte for byte."""
    place, _ = prepared
    folder = place / f"disturbed-{name}"
    shutil.copytree(undisturbed[0], folder)
    expected = artifacts(folder, name)
    shutil.rmtree(folder / name)
    for stop in stops:
        stage(place, folder, name, stop=stop)
        with open(folder / name / "steps.jsonl", "a") as handle:
            handle.write('{"loss": 1.0, "step": 999}\n{"torn')  # what a kill between two checkpoints may leave
    stage(place, folder, name)
    assert artifacts(folder, name) == expected


def test_a_damaged_newest_checkpoint_costs_its_steps_alone(prepared, undisturbed):
    place, _ = prepared
    folder = place / "damaged"
    shutil.copytree(undisturbed[0], folder)
    expected = artifacts(folder, "osipo")
    shutil.rmtree(folder / "osipo")
    stage(place, folder, "osipo", stop=3)
    newest = folder / "osipo" / "checkpoints" / "3"
    for file in Path(newest / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    done = stage(place, folder, "osipo")
    assert "checkpoints/3 is damaged" in done.stderr
    assert artifacts(folder, "osipo") == expected


def test_states_of_the_trained_student(undisturbed):
    folder, config = undisturbed
    with Run(folder, config, lock=False) as run:
        student = load_student(run, "osipo")
    texts = ["age: 34 years\nplan: free\n", "plan: premium\ninterests: music\n", "age: 70 years\n"]
    found = reasoning_states(student, texts, chains=2, seed=1, layers=(1, 2), batch_size=2)
    segments, width = student.spec.num_segments, student.config.hidden_size
    assert found.states[1].shape == (3, 2, segments, width) and found.prompt_end[2].shape == (3, width)
    np.testing.assert_allclose(found.answers.sum(-1), 1, rtol=1e-5)
    again = reasoning_states(student, texts[2:], chains=2, seed=1, layers=(1, 2), ids=[2], batch_size=2)
    np.testing.assert_allclose(again.states[2][0], found.states[2][2], atol=1e-4)


def test_states_are_those_of_the_plain_model_at_the_closing_tokens(undisturbed):
    """The residual stream of one unpadded sequence, read where the parser says that each segment closes."""
    import jax
    import jax.numpy as jnp

    from scaletot_jax.chains.parser import parse
    from scaletot_jax.lm.model import forward
    from scaletot_jax.student.policy import encode_prompts
    from scaletot_jax.student.rollout import request_keys, sample_chains

    folder, config = undisturbed
    with Run(folder, config, lock=False) as run:
        student = load_student(run, "sft")
    text = "age: 34 years\nplan: free\n"
    found = reasoning_states(student, [text], chains=2, seed=5, layers=(1, 2), batch_size=1)
    tokens, valid, _ = encode_prompts(student.tokenizer, [text], student.max_profile_tokens)
    keys = request_keys(jax.random.key(5), jnp.arange(2)[None])
    rollouts = sample_chains(
        student.params, student.config, student.grammar, tokens, valid, keys,
        max_length=student.chain_length, lora=student.lora, lora_scale=student.lora_scale,
    )  # fmt: skip
    close = student.chain.close_token
    for n in range(2):
        chain = np.asarray(rollouts.tokens)[0, n][np.asarray(rollouts.valid)[0, n]]
        sequence = np.concatenate([tokens[0][valid[0]], chain])[None]
        out = forward(
            student.params, student.config, sequence, lora=student.lora, lora_scale=student.lora_scale,
            collect_layers=(1, 2),
        )  # fmt: skip
        places = valid[0].sum() + np.flatnonzero(chain == close)
        assert len(places) == student.spec.num_segments
        parsed = parse(student.chain, chain)
        said = [slot.values[i] for slot, i in zip(student.spec.slots, found.slots[0, n])]
        assert said == parsed.values
        for layer, states in zip((1, 2), out.layers):
            np.testing.assert_allclose(found.states[layer][0, n], states[0][places], atol=1e-4)
            for k, pooled in enumerate(found.pooled[layer][0, n]):
                content = valid[0].sum() + np.flatnonzero(parsed.segment_ids == k)
                np.testing.assert_allclose(pooled, states[0][content].mean(0), atol=1e-4)
            np.testing.assert_allclose(found.prompt_end[layer][0], states[0][valid[0].sum() - 1], atol=1e-4)
