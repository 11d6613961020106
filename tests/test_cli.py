"""Exit codes and messages of the command line."""

import pytest

from scaletot_jax.cli import VERBS, main


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
