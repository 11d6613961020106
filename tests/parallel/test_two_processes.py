"""The stages sft and osipo from the command line, in real processes: two equal one, and SIGTERM costs nothing."""

import json
import os
import shutil
import signal
import time

import line
import numpy as np
import pytest
import quick_compile
import tiny
from parallel import processes
from student.test_stages import teach_by_hand

from scaletot_jax import cli
from scaletot_jax.config import load_config
from scaletot_jax.encoder.score import read_embeddings
from scaletot_jax.errors import PreemptedError
from scaletot_jax.files import read_arrays, read_json
from scaletot_jax.profiles.prepare import prepare
from scaletot_jax.run import Run
from scaletot_jax.step_log import read_steps

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("pipeline")]

SOAK = bool(os.environ.get("SCALETOT_SOAK"))
VERBS = """
import sys
from scaletot_jax.cli import main
verbs, *arguments = sys.argv[1:]
for verb in verbs.split(","):
    code = main([verb, *arguments])
    if code:
        sys.exit(code)
"""

# Steps of milliseconds leave nobody the time to send a signal.
SLOW = """
import time
from scaletot_jax.student.loop import Keeper
inner = Keeper.after
def after(*arguments, **options):
    time.sleep(0.3)
    inner(*arguments, **options)
Keeper.after = after
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    recipe = line.write_recipe(place)
    tiny.write_tiny_lm(place / "tiny_lm", layers=2)
    with Run(place / "prepared", load_config(recipe).to_dict()) as run:
        prepare(run)
        teach_by_hand(run)
    return place


CHANGES = {
    "mesh.data": "2", "sft.batch_size": "4", "sft.epochs": "2", "osipo.updates": "2", "osipo.eval_profiles": "8",
    "sft.remat": "none", "osipo.remat": "none", "student.num_layers": "1", "student.exit_texts": "8",
}  # fmt: skip


def arguments(place, name):
    """Stages on a mesh of two devices, in the run directory ``name``."""
    if not (place / name).exists():
        shutil.copytree(place / "prepared", place / name)
    changes = [f"--config.{key}={value}" for key, value in CHANGES.items()]
    return ["--config", str(place / "line.py"), "--workdir", str(place / name), *changes]


def here(place, name, *verbs):
    """In this process."""
    for verb in verbs:
        assert cli.main([verb, *arguments(place, name)]) == 0


@pytest.fixture(scope="module", autouse=True)
def quick(place):
    with quick_compile.here(place / "cache"):
        yield


def artifacts(folder, stage):
    record = json.loads((folder / stage / "stage.json").read_text())
    return {name: entry["sha256"] for name, entry in record["artifacts"].items()}


@pytest.fixture(scope="module")
def alone(place):
    here(place, "one", "sft", "osipo", "distill", "score")
    return place / "one"


def start_two(place, verbs, name):
    environ = processes.environment(cache=place / "cache2") | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return processes.start(SLOW + VERBS, verbs, *arguments(place, name), processes=2, environ=environ)


def wait_for_step(log, number, group):
    deadline = time.monotonic() + 180
    while len(read_steps(log)) < number:
        assert all(process.poll() is None for process in group) and time.monotonic() < deadline, processes.finish(group)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def two(place):
    """Two processes, of which the first, which leads, is killed amid OSIPO, in the long count before that the second amid SFT."""
    name, verbs = "two", "sft,osipo,distill,score"
    for stage, killed in (("sft", 1), ("osipo", 0))[not SOAK :]:
        group = start_two(place, verbs, name)
        wait_for_step(place / name / stage / "steps.jsonl", 1, group)
        group[killed].kill()
        codes = [code for code, _, _ in processes.finish(group)]
        assert codes.pop(killed) == -signal.SIGKILL
        # JAX aborts where its own thread finds out first.
        assert codes[0] in (PreemptedError.exit_code, -signal.SIGABRT)
        assert not (place / name / stage / "stage.json").exists()
    group = start_two(place, verbs, name)
    done = processes.finish(group)
    assert [code for code, _, _ in done] == [0, 0], done
    return place / name, [out for _, out, _ in done]


def test_two_processes_equal_one_although_one_was_killed(alone, two):
    two, outputs = two
    for stage in ("sft", "osipo"):
        losses = [[row["loss"] for row in read_steps(folder / stage / "steps.jsonl")] for folder in (alone, two)]
        assert len(losses[0]) == len(losses[1]) >= 2
        np.testing.assert_allclose(losses[1], losses[0], atol=1e-6)
        one, other = (read_arrays(folder / stage / "adapter.safetensors") for folder in (alone, two))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(other[name], one[name], atol=1e-5)
        assert artifacts(two, stage).keys() == artifacts(alone, stage).keys()
        scores, others = (read_json(folder / stage / "scores.json") for folder in (alone, two))
        assert scores.keys() == others.keys()
        for which in scores:
            np.testing.assert_allclose(others[which]["rps"], scores[which]["rps"], atol=1e-6)
    assert "sft: " in outputs[0] and "sft: " not in outputs[1]  # the first alone says where the result lies


def test_everybody_is_scored_as_by_one(alone, two):
    one, other = (read_embeddings(folder / "score") for folder in (alone, two[0]))
    assert len(one) == 400
    np.testing.assert_allclose(other, one, atol=1e-2)


def test_sigterm_saves_and_the_same_command_continues(place, alone):
    """The end is the undisturbed run's, byte for byte."""
    environ = processes.environment() | quick_compile.environment(place / "cache")
    group = processes.start(SLOW + VERBS, "sft", *arguments(place, "preempted"), processes=1, environ=environ)
    [process] = group
    folder = place / "preempted" / "sft"
    wait_for_step(folder / "steps.jsonl", 1, group)
    process.send_signal(signal.SIGTERM)
    [(code, _, err)] = processes.finish(group)
    assert code == PreemptedError.exit_code == 75, err
    assert "told to stop" in err and "run the same command again" in err
    stopped = len(read_steps(folder / "steps.jsonl"))
    assert stopped < len(read_steps(alone / "sft" / "steps.jsonl"))
    assert (folder / "checkpoints" / str(stopped)).is_dir() and not (folder / "stage.json").exists()
    here(place, "preempted", "sft")
    assert artifacts(place / "preempted", "sft") == artifacts(alone, "sft")
