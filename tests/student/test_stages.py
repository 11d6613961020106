"""The stages sft and osipo on the synthetic population with a tiny model and made-up chains."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import quick_compile
import tiny
from safetensors.numpy import load_file

import scaletot_jax.student.osipo as osipo_stage
import scaletot_jax.student.sft as sft_stage
from scaletot_jax.chains.spec import load_spec
from scaletot_jax.config import default_config
from scaletot_jax.encoder.selection import Profiles
from scaletot_jax.encoder.student_folds import fold_student
from scaletot_jax.files import read_json, read_table, write_table
from scaletot_jax.lm import placement
from scaletot_jax.lm.load import load_model
from scaletot_jax.parallel.checkpoint import Checkpoints
from scaletot_jax.profiles.prepare import prepare
from scaletot_jax.run import Run
from scaletot_jax.sinks import Sinks
from scaletot_jax.step_log import read_steps
from scaletot_jax.student import held_out
from scaletot_jax.student.loop import Keeper
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
    config.osipo.prompts = 4
    config.osipo.remat = "none"  # compiles faster
    config.osipo.rollouts = 2
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
    place = [table["exact_key"].to_pylist().index(key) for key in keys]
    taught = (
        table.select(["exact_key", "group"]).take(pa.array(place)).append_column("row", pa.array(place, pa.int64()))
    )
    write_table(stage.path("profiles.parquet"), taught)
    stage.finish(["chains.parquet", "profiles.parquet"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("student")
    config = configuration(tiny.write_tiny_lm(place / "lm", layers=3))
    with Run(place / "prepared", config) as run:
        prepare(run)
        teach_by_hand(run)
    return place, config


@pytest.fixture(scope="module", autouse=True)
def quick(prepared):
    with quick_compile.here(prepared[0] / "cache"):
        yield


class Killed(BaseException):
    """Stands for the end of the process right after a checkpoint."""


def stage(folder, config, name, *, stop=0):
    """Runs a stage; with ``stop`` it ends right after that many checkpoints. Returns how its sinks were closed."""
    save, saved = Checkpoints.save, []
    close, failures = Sinks.close, []

    def counted(units, *arguments, **options):
        save(units, *arguments, **options)
        saved.append(0)
        if len(saved) == stop:
            units.wait()
            raise Killed

    def closed(sinks, *, failed=False):
        close(sinks, failed=failed)
        failures.append(failed)

    with pytest.MonkeyPatch.context() as patch, Run(folder, config) as run:
        patch.setattr(Checkpoints, "save", counted)
        patch.setattr(Sinks, "close", closed)
        try:
            {"sft": sft_stage.sft, "osipo": osipo_stage.osipo}[name](run)
        except Killed:
            assert stop
        else:
            assert not stop
    return failures


KILLED = """
import json, os, sys
from scaletot_jax.parallel.checkpoint import Checkpoints
from scaletot_jax.run import Run
from scaletot_jax.student.osipo import osipo
from scaletot_jax.student.sft import sft
folder, config, name, stop = sys.argv[1:]
save, saved = Checkpoints.save, []
def counted(units, *arguments, **options):
    save(units, *arguments, **options)
    saved.append(0)
    if len(saved) == int(stop):
        units.wait()
        os._exit(9)
Checkpoints.save = counted
with Run(folder, json.loads(config)) as run:
    {"sft": sft, "osipo": osipo}[name](run)
"""


def killed(folder, config, name, *, stop):
    """The same in a process of its own, which dies there without a word."""
    environ = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environ |= quick_compile.environment(folder.parent / "cache")
    command = [sys.executable, "-c", KILLED, str(folder), json.dumps(config), name, str(stop)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 9, done.stderr


def changed(config, **sections):
    """The configuration with some keys of some sections changed."""
    return config | {name: config[name] | keys for name, keys in sections.items()}


def copied(source, place, without=()):
    """A copy of a run directory without the work of some stages."""
    shutil.copytree(source, place)
    for name in without:
        shutil.rmtree(place / name)
    return place


def artifacts(folder, name):
    record = json.loads((folder / name / "stage.json").read_text())
    return {artifact: entry["sha256"] for artifact, entry in record["artifacts"].items()}, record["summary"]


@pytest.fixture(scope="module")
def undisturbed(prepared):
    place, config = prepared
    folder = copied(place / "prepared", place / "undisturbed")
    stage(folder, config, "sft")
    stage(folder, config, "osipo")
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
    assert (
        osipo["updates"] == osipo["batches"] == 4
        and osipo["valid_rate"] == 1
        and osipo["osipo_signal"] in (True, False)
    )


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
    # Every update is on policy by the trainer's own arithmetic, and the sampler's differs by rounding alone.
    assert all(row["ratio"] == 1 and row["clip_fraction"] == row["old_kl"] == 0 for row in rows)
    assert all(row["sampler_gap"] < 1e-5 for row in rows)


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
    config = changed(config, student={"trainable": "full"})
    folder = copied(place / "prepared", place / "full")
    for name in ("sft", "osipo"):
        stage(folder, config, name)
    assert "student.safetensors" in artifacts(folder, "sft")[0]
    assert not (folder / "sft" / "adapter.safetensors").exists()
    row = read_steps(folder / "osipo" / "steps.jsonl")[0]
    assert row["kl"] == 0 and row["grad_norm"] > 0  # a fresh adapter is the reference
    with Run(folder, config, lock=False) as run:
        base, sft, osipo = (load_student(run, which) for which in ("base", "sft", "osipo"))
    moved = np.abs(np.asarray(sft.params["layers"]["down"]) - np.asarray(base.params["layers"]["down"])).max()
    assert moved > 1e-3 and not np.asarray(sft.lora["q_b"]).any() and np.asarray(osipo.lora["q_b"]).any()
    np.testing.assert_array_equal(osipo.params["exit"]["weight"], sft.params["exit"]["weight"])


def test_the_best_checkpoint_can_be_the_result(prepared, monkeypatch):
    """Where every evaluation is worse than the one before, the result is the student of the first."""
    place, config = prepared
    config, losses = changed(config, sft={"keep": "best"}), iter(range(9))
    monkeypatch.setattr(sft_stage, "evaluate", lambda *_: {"eval_loss": float(next(losses))})
    folder = copied(place / "prepared", place / "best")
    stage(folder, config, "sft", stop=1)
    first = restore_arrays(folder / "sft" / "checkpoints")
    stage(folder, config, "sft")
    assert artifacts(folder, "sft")[1]["kept_step"] == 2
    kept = load_file(folder / "sft" / "adapter.safetensors")
    assert kept.keys() == first.keys() and all(np.array_equal(kept[name], first[name]) for name in kept)


def restore_arrays(directory):
    """The adapter of the newest checkpoint."""
    with ocp.CheckpointManager(directory.absolute()) as manager:
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))
    return {name: np.asarray(value) for name, value in found["arrays"]["lora"].items()}


def torn(folder, name):
    """Adds to the log what a kill between two checkpoints may leave."""
    with open(folder / name / "steps.jsonl", "a") as handle:
        handle.write('{"loss": 1.0, "step": 999}\n{"torn')


def test_sft_resumes_bitwise(prepared, undisturbed):
    """Killed after the first checkpoint, then again after the third: the same adapter, log and scores, byte for byte.

    The second time it is an error, after which the trackers are closed as of a stage that failed.
    """
    place, config = prepared
    folder = copied(undisturbed[0], place / "sft", without=["sft"])
    killed(folder, config, "sft", stop=1)
    torn(folder, "sft")
    assert stage(folder, config, "sft", stop=2) == [True]
    torn(folder, "sft")
    assert stage(folder, config, "sft") == [False]
    assert artifacts(folder, "sft") == artifacts(undisturbed[0], "sft")


def test_osipo_resumes_bitwise_and_a_damaged_checkpoint_costs_its_steps_alone(prepared, undisturbed, capfd):
    place, config = prepared
    folder = copied(undisturbed[0], place / "osipo", without=["osipo"])
    stage(folder, config, "osipo", stop=1)
    torn(folder, "osipo")
    assert stage(folder, config, "osipo", stop=2) == [True]
    for file in Path(folder / "osipo" / "checkpoints" / "3" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    stage(folder, config, "osipo")
    assert "checkpoints/3 is damaged" in capfd.readouterr().err
    assert artifacts(folder, "osipo") == artifacts(undisturbed[0], "osipo")


@pytest.fixture(scope="module")
def several(prepared, undisturbed):
    """Five updates on two batches of rollouts: three on the first, two on the second."""
    place, config = prepared
    config = changed(config, osipo={"updates": 5, "epochs": 3, "learning_rate": 1e-2})
    folder = copied(undisturbed[0], place / "several", without=["osipo"])
    stage(folder, config, "osipo")
    return folder, config


def test_several_updates_on_the_same_rollouts(several):
    folder, _ = several
    rows = read_steps(folder / "osipo" / "steps.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 1, 2]
    assert [row["process_weight"] > 0 for row in rows] == [False, False, False, True, True]  # fixed with the rollouts
    for row in rows:
        fresh = row["epoch"] == 1
        assert (row["ratio"] == 1 and row["old_kl"] == 0) == fresh and row["old_kl"] >= 0
        # What the rollouts and the reward model say is said once, and their pairs are counted once.
        assert all((name in row) == fresh for name in ("outcome", "valid_rate", "value_pairs", "reward_loss"))
    assert min(rows[1]["old_kl"], rows[2]["old_kl"]) > 0 and rows[1]["surrogate"] < rows[0]["surrogate"]
    summary = artifacts(folder, "osipo")[1]
    assert summary["updates"] == 5 and summary["batches"] == 2
    assert summary["outcome_last"] == rows[3]["outcome"] and summary["kl_last"] == rows[4]["kl"]
    assert summary["value_pairs"] == rows[3]["value_pairs"]


def test_resume_is_bitwise_inside_several_updates(prepared, several):
    """Killed after the second update on the first rollouts, and again after the first on the second ones."""
    place, _ = prepared
    folder = copied(several[0], place / "several-killed", without=["osipo"])
    killed(folder, several[1], "osipo", stop=2)
    torn(folder, "osipo")
    for stop in (2, 0):
        stage(folder, several[1], "osipo", stop=stop)
    assert artifacts(folder, "osipo") == artifacts(several[0], "osipo")


def test_on_a_mesh_no_device_ever_holds_a_whole_matrix(prepared, undisturbed, monkeypatch):
    """Eight devices, from the weights' file to the last held-out score: losses, scores and adapters are those of one."""
    place, config = prepared
    config = changed(config, mesh={"data": 2, "fsdp": 2, "tensor": 2}, sft={"accumulate": 1})
    seen, before = [], jax.live_arrays()  # of other tests; kept, so that nothing new can be taken for one of them
    others = set(map(id, before))

    def look():
        for array in jax.live_arrays():
            if array.shape in shapes and id(array) not in others:
                seen.append(array.shape)
                assert max(shard.data.size for shard in array.addressable_shards) == array.size // 4, array.sharding

    def watch(owner, name):
        inner = getattr(owner, name)

        def watched(*arguments, **options):
            look()
            out = inner(*arguments, **options)
            look()
            return out

        monkeypatch.setattr(owner, name, watched)

    one = load_model(config["lm"]["weights"]).params
    shapes = {one["embed"].shape}
    # Not k and v: a shard of a larger matrix has their shape.
    large = [leaf.shape[1:] for leaf in one["layers"].values() if leaf[0].size >= one["layers"]["q"][0].size]
    shapes |= {(count, *shape) for count in (2, 3) for shape in large}
    del one
    for owner, name in (
        (placement, "_stack"),
        (held_out, "answer_distributions"),
        (Keeper, "resume"),
        (Keeper, "after"),
    ):
        watch(owner, name)
    monkeypatch.setattr(placement, "SMALL", 0)  # a layer at a time, as large models are read
    folder, alone = copied(place / "prepared", place / "mesh"), undisturbed[0]
    (folder / "sft").mkdir()  # the least squares of the exit map would magnify the rounding
    shutil.copy(alone / "sft" / "exit.safetensors", folder / "sft")
    stage(folder, config, "sft")
    losses = [[row["loss"] for row in read_steps(where / "sft" / "steps.jsonl")] for where in (folder, alone)]
    ours, theirs = (load_file(where / "sft" / "adapter.safetensors") for where in (folder, alone))
    gaps = [*np.abs(np.diff(losses, axis=0))[0], max(np.abs(ours[leaf] - theirs[leaf]).max() for leaf in theirs)]
    ours, theirs = (read_json(where / "sft" / "scores.json") for where in (folder, alone))
    gaps += [abs(ours[which]["rps"] - theirs[which]["rps"]) for which in ("base", "sft")]
    # Adam turns the rounding of small gradients into steps; with plain SGD the parameters agree to 1e-5 (tests/parallel).
    assert gaps[0] < 1e-6 and gaps[-2] < 1e-6 and max(gaps) < 1e-4, gaps

    def train(run, stage, student, *_):  # its steps are those of tests/parallel, and take long to compile
        look()
        (stage.path("steps.jsonl")).write_text((alone / "osipo" / "steps.jsonl").read_text())
        return jax.device_get(student.lora), jax.device_get(student.lora), {}

    monkeypatch.setattr(osipo_stage, "train", train)
    stage(folder, config, "osipo")
    ours = read_json(folder / "osipo" / "scores.json")
    np.testing.assert_allclose(ours["osipo"]["rps"], theirs["sft"]["rps"], atol=1e-4)
    assert set(seen) == shapes


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


def test_the_student_of_a_fold_is_trained_by_these_very_stages(prepared, undisturbed):
    folder, config = undisturbed
    with Run(copied(folder, prepared[0] / "folds"), config) as run:
        taught = read_table(run.workdir / "teach" / "profiles.parquet")
        rows, keys, groups = (np.asarray(taught[name].to_pylist(), object) for name in ("row", "exact_key", "group"))
        kind = np.full(len(keys), "teacher", object)
        profiles = Profiles(
            rows.astype(np.int64), keys, groups, kind, np.full(len(keys), "train", object), np.zeros(len(keys))
        )
        members = np.arange(len(keys)) < 4
        outer = run.stage("distill", sections=("seed",))
        student, own = fold_student(run, outer, profiles, members, 0), load_student(run, "osipo")
        inner = outer.path("student_folds") / "0"
        learnt = set(read_table(inner / "teach" / "chains.parquet")["exact_key"].to_pylist())
        assert learnt and learnt <= set(keys) and not learnt & set(keys[members])
        split = read_table(inner / "prepare" / "population.parquet")
        used = split.take(read_table(inner / "osipo" / "users.parquet")["row"])
        assert not set(used["group"].to_pylist()) & set(groups[members])
        pairs = list(zip(jax.tree.leaves(student.lora), jax.tree.leaves(own.lora)))
        assert any(not np.array_equal(a, b) for a, b in pairs)  # another student, of the same base
        np.testing.assert_array_equal(student.params["embed"], own.params["embed"])
        before = {path: path.stat().st_mtime_ns for path in inner.rglob("*.safetensors")}
        again = fold_student(run, outer, profiles, members, 0)  # found trained
        assert before == {path: path.stat().st_mtime_ns for path in inner.rglob("*.safetensors")}
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(student.lora), jax.tree.leaves(again.lora)))
