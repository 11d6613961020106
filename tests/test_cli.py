"""Exit codes and messages of the command line."""

import errno
import os

import pytest
import tiny

from scaletot_jax.cli import OWN_OPTIONS, VERBS, main
from scaletot_jax.run import STAGES


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from scaletot_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.data.name = 'synthetic'\n    return config\n"
    )
    return path


def call(*arguments):
    try:
        return main(list(arguments))
    except SystemExit as exit_:
        return exit_.code


def test_help_teaches_every_verb(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)
    assert "examples:" in text and "Exit codes" in text


@pytest.mark.parametrize("arguments", [("--help",), ("score", "--help")])
def test_help_says_where_the_options_of_a_served_model_and_of_other_verbs_are(arguments, capsys):
    assert call(*arguments) == 0
    text = capsys.readouterr().out
    assert "score --model DIR --table FILE|FOLDER --out DIR" in text and "'scaletot score --model DIR --help'" in text
    assert "'scaletot VERB --help'" in text and all(verb in text.partition("\n\n")[0] for verb in OWN_OPTIONS)
    assert call("score", "--model", "DIR", "--help") == 0
    assert "--shard-rows" in capsys.readouterr().out


@pytest.mark.parametrize("verb", OWN_OPTIONS)
def test_a_verb_with_options_of_its_own_lists_them_and_stands_first(verb, recipe, capsys):
    assert call(verb, "--help") == 0
    assert f"usage: scaletot {verb}" in capsys.readouterr().out
    assert call("--config", str(recipe), verb) == 2
    assert f"scaletot {verb} --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "required"),
        (("fly", "--config", "x.py"), 2, "invalid choice"),
        (("run", "--config", "absent.py"), 2, "absent.py"),
        (("run", "--config", "RECIPE", "--config.sft.epoch=3"), 2, "did you mean sft.epochs"),
        (("run", "--config", "RECIPE", "--config.sft.epochs"), 2, "has no value"),
        (("run", "--config", "RECIPE", "--config.osipo.ratio=sequences"), 2, "osipo.ratio"),
        (("teach", "--config", "RECIPE", "--workdir", "EMPTY"), 4, "stage 'prepare' is not finished"),
    ],
)
def test_bad_usage_says_what_and_exits_non_zero(arguments, code, message, recipe, tmp_path, capsys):
    places = {"RECIPE": str(recipe), "EMPTY": str(tmp_path / "empty")}
    assert call(*(places.get(argument, argument) for argument in arguments)) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "refused a file"), (errno.EIO, "refused")]
)
def test_a_disk_that_fails_where_no_stage_looks_is_no_traceback(number, message, recipe, tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr("scaletot_jax.run.Run._acquire", fails)
    assert call("prepare", "--config", str(recipe), "--workdir", str(tmp_path / "run")) == 5
    assert message in capsys.readouterr().err


def test_plan_counts_before_anything_is_spent(recipe, tmp_path, capsys):
    """On the synthetic population with a tiny model: every stage has a line, and no stage but `prepare` has run."""
    weights = tmp_path / "lm"
    tiny.write_tiny_lm(weights)
    sizes = ["--config.data.limit=300", "--config.teacher.num_profiles=20", "--config.teacher.pilot_profiles=10"]
    workdir = tmp_path / "run"
    code = call("plan", "--config", str(recipe), "--workdir", str(workdir), f"--config.lm.weights={weights}", *sizes)
    text = capsys.readouterr().out
    assert code == 0, text
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert all(stage in rows for stage in STAGES)
    assert "20 profiles, pilot of 10" in rows["teach"]
    assert "300 rows" in rows["score"]
    assert "population: 300 rows" in text
    assert "  teacher.num_profiles = 20" in text
    assert [path.parent.name for path in workdir.glob("*/stage.json")] == ["prepare"]
