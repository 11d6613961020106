"""Every notebook: the pair agrees, nothing is stored in it, and its install cell neither installs jax nor asks an index for us."""

import re
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


@each_notebook
def test_the_hardware_is_stated(source):
    text = "\n".join(cell.source for cell in jupytext.read(source).cells if cell.cell_type == "markdown")
    assert "**Hardware.**" in text
