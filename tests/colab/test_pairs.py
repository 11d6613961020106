"""Every notebook: the pair agrees, nothing is stored in it, and its install cell neither installs jax nor asks an index for us."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

COLAB = Path(__file__).resolve().parents[2] / "colab"
SOURCES = sorted(COLAB.glob("*.py"))
each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def test_there_are_notebooks_and_each_has_its_pair():
    assert len(SOURCES) >= 3
    assert {path.stem for path in SOURCES} == {path.stem for path in COLAB.glob("*.ipynb")}


@each_notebook
def test_the_pair_agrees(source):
    made, stored = jupytext.read(source), nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(stored)

    def content(notebook):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]

    assert content(made) == content(stored), f"run: jupytext --update --to ipynb colab/{source.name}"


@each_notebook
def test_no_output_is_stored(source):
    for cell in nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@each_notebook
def test_the_install_cell_leaves_jax_alone(source):
    (cell,) = [cell.source for cell in jupytext.read(source).cells if "def install_on_colab" in cell.source]
    installs = re.findall(r"subprocess\.run\(\[(.*?)\]", cell)
    assert installs and all('"--no-deps"' in words for words in installs)
    assert "if jax_versions() != before" in cell
    required = re.findall(r'"([\w.-]+)(?:\[[\w,]+\])?[=><]=', cell)
    assert not [name for name in required if re.match("jax|scaletot", name)]


@pytest.mark.parametrize(
    "source", [path for path in SOURCES if "LIGHT" in path.read_text()], ids=lambda path: path.stem
)
def test_what_is_missing_or_too_old_is_installed_and_nothing_else(source, monkeypatch):
    (cell,) = [cell.source for cell in jupytext.read(source).cells if "def install_on_colab" in cell.source]
    here = {"flax": "0.8.0", "pyarrow": None, "jax": "0.10.2", "jaxlib": "0.10.2"}  # the others are new

    def version(name):
        found = here.get(name, "999")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    ran = []
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    names: dict = {}
    exec(compile(cell, str(source), "exec"), names)
    names["present"] = lambda module: True
    assert [word.partition(">")[0] for word in names["install_on_colab"]()] == ["flax", "pyarrow"]
    assert len(ran) == 1 and "--no-deps" in ran[0]
    here["jax"] = "0.9.9"
    with pytest.raises(RuntimeError, match="newer runtime"):
        names["install_on_colab"]()


@each_notebook
def test_the_hardware_is_stated(source):
    text = "\n".join(cell.source for cell in jupytext.read(source).cells if cell.cell_type == "markdown")
    assert "**Hardware.**" in text
    assert "v5e-1" in text and re.search(r"\d (MiB )?of \d+\.\d+ GiB", text)  # the compiler's figure
