"""The stages sft and osipo from the command line, in real processes: two equal one, and SIGTERM costs nothing."""

import json
import shutil
import signal
import time

import line
import numpy as np
import pytest
import tiny
from parallel import processes
from student.test_stages import teach_by_hand

from scaletot_jax.config import load_config
from scaletot_jax.errors import PreemptedError
from scaletot_jax.files import read_arrays
from scaletot_jax.profiles.prepare import prepare
from scaletot_jax.run import Run
from scaletot_jax.step_log import read_steps

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("pipeline")]

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
    tiny.write_tiny_lm(place / "tiny_lm", layers=1)
    with Run(place / "prepared", load_config(recipe).to_dict()) as run:
        prepare(run)
        teach_by_hand(run)
    return place


def start(place, name, verbs, *, count, slow=False):
    """Stages on a mesh of two devices, of one process or of two, in the run directory ``name``."""
    if not (place / name).exists():
        shutil.copytree(place / "prepared", place / name)
    arguments = [verbs, "--config", str(place / "line.py"), "--workdir", str(place / name), "--config.mesh.data=2"]
    arguments += ["--config.sft.batch_size=4", "--config.sft.epochs=2", "--config.osipo.updates=2"]
    arguments += ["--config.sft.remat=none", "--config.osipo.remat=none"]  # compiles faster
    environ = processes.environment(devices=2 // count, cache=place / f"cache{count}")
    environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # half the time to compile
    return processes.start((SLOW if slow else "") + VERBS, *arguments, processes=count, environ=environ)


def artifacts(folder, stage):
    record = json.loads((folder / stage / "stage.json").read_text())
    return {name: entry["sha256"] for name, entry in record["artifacts"].items()}


@pytest.fixture(scope="module")
def alone(place):
    [(code, _, err)] = processes.finish(start(place, "one", "sft,osipo", count=1))
    assert code == 0, err
    return place / "one"


def test_two_processes_equal_one(place, alone):
    done = processes.finish(start(place, "two", "sft,osipo", count=2))
    assert [code for code, _, _ in done] == [0, 0], done
    two = place / "two"
    for stage in ("sft", "osipo"):
        losses = [[row["loss"] for row in read_steps(folder / stage / "steps.jsonl")] for folder in (alone, two)]
        assert len(losses[0]) == len(losses[1]) >= 2
        np.testing.assert_allclose(losses[1], losses[0], atol=1e-6)
        one, other = (read_arrays(folder / stage / "adapter.safetensors") for folder in (alone, two))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(other[name], one[name], atol=1e-5)
        assert artifacts(two, stage).keys() == artifacts(alone, stage).keys()
    assert "sft: " in done[0][1] and "sft: " not in done[1][1]  # the first alone says where the result lies


def test_sigterm_saves_and_the_same_command_continues(place, alone):
    """The end is the undisturbed run's, byte for byte."""
    [process] = group = start(place, "preempted", "sft", count=1, slow=True)
    deadline = time.monotonic() + 120
    folder = place / "preempted" / "sft"
    while len(read_steps(folder / "steps.jsonl")) < 1:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    [(code, _, err)] = processes.finish(group)
    assert code == PreemptedError.exit_code == 75, err
    assert "told to stop" in err and "run the same command again" in err
    stopped = len(read_steps(folder / "steps.jsonl"))
    assert stopped < len(read_steps(alone / "sft" / "steps.jsonl"))
    assert (folder / "checkpoints" / str(stopped)).is_dir() and not (folder / "stage.json").exists()
    [(code, _, err)] = processes.finish(start(place, "preempted", "sft", count=1))
    assert code == 0, err
    assert artifacts(place / "preempted", "sft") == artifacts(alone, "sft")
