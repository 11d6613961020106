"""The whole line, end to end, from the command line: it works, it does nothing twice, and a kill changes nothing."""

import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import line
import pyarrow.parquet as pq
import pytest

from scaletot_jax.config import load_config
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.run import STAGES, Run

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("pipeline")]

SOAK = bool(os.environ.get("SCALETOT_SOAK"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return line.undisturbed(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def place(whole):
    return whole.place


@pytest.fixture(scope="module")
def recipe(whole):
    return whole.recipe


@pytest.fixture(scope="module")
def undisturbed(whole):
    return whole.workdir, whole.done


def test_every_stage_leaves_its_artifacts(undisturbed):
    workdir, done = undisturbed
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
    _, done = undisturbed
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_a_second_run_redoes_nothing(undisturbed, recipe, place):
    workdir, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("stage.json")}
    assert len(before) == 8
    again = line.run(recipe, workdir, place / "cache")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("stage.json")} == before


def test_a_changed_configuration_is_refused_and_named(undisturbed, recipe, place):
    workdir, _ = undisturbed
    refused = line.run(recipe, workdir, place / "cache", "--config.sft.learning_rate=0.5")
    assert refused.returncode == 4
    assert "config.sft.learning_rate: 0.001 -> 0.5" in refused.stderr


def test_no_identifier_reaches_a_prompt_or_the_report(undisturbed, recipe):
    workdir, _ = undisturbed
    with Run(workdir, load_config(recipe).to_dict(), lock=False) as run:
        population = open_population(run)
    table = population.table
    identifiers = {*table["user_id"].to_pylist(), *table["group"].to_pylist()}
    prompts = population.renderer.texts(table)
    page = "".join((workdir / "report" / f"{name}.html").read_text() for name in ("report", "explorer"))
    assert len(prompts) == table.num_rows and all(prompts)
    assert not [name for name in identifiers if name in page or any(name in prompt for prompt in prompts)]


def test_the_code_of_the_tutorial_runs_on_a_finished_run(undisturbed, capsys):
    workdir, _ = undisturbed
    page = (Path(__file__).resolve().parents[1] / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        assert "runs/quickstart" in block
        exec(compile(block.replace("runs/quickstart", str(workdir)), "tutorial.md", "exec"), {})
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["verdict"]["sentence"] in capsys.readouterr().out


def test_the_objects_of_the_api_page_show_a_finished_run(undisturbed, recipe):
    workdir, _ = undisturbed
    page = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "found[0].tree" in block]
    code = code.replace("configs/quickstart.py", str(recipe)).replace("runs/quickstart", str(workdir))
    names: dict = {}
    exec(compile(code, "api.md", "exec"), names)
    sentence = json.loads((workdir / "metrics.json").read_text())["verdict"]["sentence"]
    assert "<" in names["found"][0].tree._repr_html_()
    assert html.escape(sentence, quote=False)[:40] in names["evaluation"](workdir, names["config"])._repr_html_()


@pytest.mark.parametrize("verb", ["prepare", "sft", "score", "evaluate"])
def test_a_single_verb_refuses_a_configuration_that_does_not_fit(undisturbed, recipe, place, verb):
    """Each reads something of a stage before it, or is that stage itself."""
    workdir, _ = undisturbed
    before = line.results(workdir)
    refused = line.run(recipe, workdir, place / "cache", "--config.seed=7", verb=verb)
    assert refused.returncode == 4, refused.stdout + refused.stderr
    assert "seed: 0 -> 7" in refused.stderr
    assert line.results(workdir) == before


def test_the_audit_finds_nothing_in_a_run_of_ours(undisturbed, recipe, place):
    workdir, _ = undisturbed
    copy = place / "audited"
    shutil.copytree(workdir, copy)
    done = line.run(recipe, copy, place / "cache", verb="audit")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((copy / "audit.json").read_text())["findings"]
    assert len(found) == 10 and {finding["status"] for finding in found[:-1]} == {"clean"}
    assert found[-1]["status"] == "told" and "reasoned profiles of" in found[-1]["detail"]


def test_the_whole_line_comes_out_again_from_its_record(undisturbed, place):
    """Every number and file of every stage."""
    workdir, _ = undisturbed
    again = place / "again"
    done = line.reproduce(workdir, again, place / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((again / "reproduction.json").read_text())
    assert found["reproduced"] and found["tolerance"] == 0 and found["other"] == [] and found["same"] > 10_000
    assert {path.parent.name for path in again.glob("*/stage.json")} == set(STAGES)
    refused = line.reproduce(again, workdir, place / "cache")
    assert refused.returncode == 4 and "it has no reproducing.json" in refused.stderr


@pytest.mark.parametrize("attempt", range(10 if SOAK else 1))
def test_kill_9_at_random_moments_changes_no_byte(undisturbed, recipe, place, attempt):
    """Some kills a run, each in another stage, at a random moment of it."""
    workdir, _ = undisturbed
    expected = line.results(workdir)
    assert len(expected) > 20
    rng = random.Random(20241 + attempt)
    disturbed = place / f"disturbed{attempt}"
    for stage in sorted(rng.sample(STAGES[:-1], 5 if SOAK else 3), key=STAGES.index):
        took = json.loads((workdir / stage / "timing.json").read_text())["seconds_of_last_process"]
        delay = rng.uniform(0, min(2.0, 0.25 * took))  # compiled programs are cached: the stage is faster than it was
        process = subprocess.Popen(
            line.command(recipe, disturbed),
            env=line.environment(place / "cache"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 600
        while not (disturbed / stage / "owner.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        assert process.poll() is None, f"the run ended before it could be killed in '{stage}'"
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed in or after '{stage}', {delay:.1f} s after it began")
    done = line.run(recipe, disturbed, place / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert line.results(disturbed) == expected
