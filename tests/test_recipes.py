"""The shipped recipes by name."""

from pathlib import Path

import pytest

from scaletot_jax import recipes
from scaletot_jax.cli import main
from scaletot_jax.config import load_config
from scaletot_jax.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"


def test_a_name_is_the_file_in_the_checkout():
    assert recipes.folder() == CONFIGS
    assert recipes.names() == sorted(path.stem for path in CONFIGS.glob("*.py"))
    assert recipes.find("quickstart") == CONFIGS / "quickstart.py"
    assert load_config("oulad_shift") == load_config(CONFIGS / "oulad_shift.py")  # which itself reads oulad.py


def test_what_looks_like_a_path_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("quickstart.py", "./quickstart", "configs/quickstart", "nobody", CONFIGS / "quickstart.py"):
        assert recipes.find(path) == Path(path)
    (tmp_path / "oulad").mkdir()
    assert recipes.find("oulad") == CONFIGS / "oulad.py"  # a folder of that name is no recipe
    (tmp_path / "quickstart").write_text("mine")
    assert recipes.find("quickstart") == Path("quickstart")


def test_a_name_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match="quickstart") as caught:
        load_config("quikstart")
    assert all(name in str(caught.value) for name in recipes.names())


def test_the_verb_lists_every_recipe_with_a_line_about_it(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    for name in recipes.names():
        (found,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert len(found.split()) > 4
