"""The whole line, end to end, from the command line: it works, it does nothing twice, and a kill changes nothing."""

import json
import os
import random
import signal
import subprocess
import time

import line
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.pipeline

SOAK = bool(os.environ.get("SCALETOT_SOAK"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("line")


@pytest.fixture(scope="module")
def recipe(place):
    return line.write_recipe(place)


@pytest.fixture(scope="module")
def undisturbed(place, recipe):
    started = time.monotonic()
    done = line.run(recipe, place / "undisturbed", place / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "undisturbed", time.monotonic() - started, done


def test_every_stage_leaves_its_artifacts(undisturbed):
    workdir, _, done = undisturbed
    assert "verdict: " in done.stdout
    assert "report.html" in done.stdout
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["verdict"]["sentence"] in done.stdout
    for name in ("config.json", "env.json", "report/report.html", "teach/chains.parquet", "teach/nodes.parquet"):
        assert (workdir / name).exists(), name
    population = pq.read_table(workdir / "prepare" / "population.parquet")
    parts = sorted((workdir / "score").glob("part-*.parquet"))
    assert len(parts) > 1
    scored = [row for part in parts for row in pq.read_table(part)["row"].to_pylist()]
    assert scored == population["row"].to_pylist()


def test_piped_output_is_quiet_and_colourless(undisturbed):
    _, _, done = undisturbed
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_a_second_run_redoes_nothing(undisturbed, recipe, place):
    workdir, _, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("stage.json")}
    assert len(before) == 8
    again = line.run(recipe, workdir, place / "cache")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("stage.json")} == before


def test_a_changed_configuration_is_refused_and_named(undisturbed, recipe, place):
    workdir, _, _ = undisturbed
    refused = line.run(recipe, workdir, place / "cache", "--config.sft.learning_rate=0.5")
    assert refused.returncode == 4
    assert "config.sft.learning_rate: 0.001 -> 0.5" in refused.stderr


def test_no_identifier_reaches_a_prompt_or_the_report(undisturbed):
    workdir, _, _ = undisturbed
    users = pq.read_table(workdir / "prepare" / "population.parquet", columns=["user_id"])["user_id"].to_pylist()
    page = (workdir / "report" / "report.html").read_text()
    assert not [user for user in users if user in page]


def test_kill_9_at_random_moments_changes_no_byte(undisturbed, recipe, place):
    """Five kills (fifty under SCALETOT_SOAK), each at a random moment of what is left of the run."""
    workdir, seconds, _ = undisturbed
    expected = line.results(workdir)
    assert len(expected) > 8
    rng = random.Random(20241)
    rounds = 10 if SOAK else 1
    for attempt in range(rounds):
        disturbed = place / f"disturbed{attempt}"
        kills = 0
        while kills < 5:
            process = subprocess.Popen(
                line.command(recipe, disturbed),
                env=line.environment(place / "cache"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(timeout=rng.uniform(0.1, 0.6) * seconds)
                break  # it finished before the kill: nothing is left to disturb
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        done = line.run(recipe, disturbed, place / "cache")
        assert done.returncode == 0, done.stdout + done.stderr
        assert kills >= 2
        assert line.results(disturbed) == expected
        print(f"killed {kills} times, same {len(expected)} files")
