"""A wheel and an sdist have everything, and what is installed from them works far from the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("scaletot_jax", "configs", "benchmarks", "colab", "docs", "examples", "launch", "tests")
FILES = (
    "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile",
    "mkdocs.yml",
)  # fmt: skip
BUILD = "from setuptools import build_meta; print(build_meta.{0}({1!r}))"

pytestmark = pytest.mark.xdist_group("packaging")


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def build(tree: Path, what: str, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(what, str(out))], cwd=tree, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def tree(place):
    """The repository without what is ignored, so that a build leaves nothing behind and finds nothing of an older one."""
    if tuple(map(int, metadata.version("setuptools").split(".")[:2])) < (70, 1) and not os.environ.get("CI"):
        pytest.skip("setuptools before 70.1 builds no wheel; make install brings a newer one")
    tree = place / "tree"
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def unpacked(place, tree):
    wanted = files_under(tree)
    with tarfile.open(build(tree, "build_sdist", place)) as archive:
        archive.extractall(place / "sdist", filter="data")
    (folder,) = (place / "sdist").iterdir()
    return folder, wanted


@pytest.fixture(scope="module")
def wheel(place, unpacked):
    return build(unpacked[0], "build_wheel", place)


@pytest.fixture(scope="module")
def installed(place, wheel):
    """The wheel in a folder of its own; the dependencies are those of the tests."""
    target = place / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index",
         "--no-compile", "--target", str(target), str(wheel)],
        check=True, timeout=300,
    )  # fmt: skip
    return target


def test_the_sdist_is_the_repository(unpacked):
    folder, wanted = unpacked
    made = {"PKG-INFO", "setup.cfg"}
    found = {name for name in files_under(folder) if name not in made and ".egg-info/" not in name}
    assert found == wanted


def test_the_wheel_is_the_package_with_its_data_and_the_recipes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (about,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert f"Version: {metadata.version('scaletot_jax')}\n" in archive.read(about).decode()
    package = {path.relative_to(ROOT) for path in (ROOT / "scaletot_jax").rglob("*") if path.is_file()}
    code = {path.as_posix() for path in package if "__pycache__" not in path.parts}
    assert names == code | {f"scaletot_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    for kind in ("schemas/synthetic.yaml", "specs/synthetic.yaml", "py.typed", "configs/quickstart.py"):
        assert f"scaletot_jax/{kind}" in names
    assert {Path(name).suffix for name in names} == {".py", ".yaml", ".css", ".js", ".typed"}


def call(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    cwd.mkdir(exist_ok=True)
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "scaletot"), *arguments],
        cwd=cwd, env=environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_an_installed_wheel_lists_its_recipes_and_runs_one_outside_the_checkout(installed, place):
    cwd = place / "elsewhere"
    asked = call(installed, cwd, "--help")
    assert asked.returncode == 0 and "scaletot run  --config quickstart" in asked.stdout, asked.stderr
    listed = call(installed, cwd, "recipes")
    assert f"in {installed / 'scaletot_jax' / 'configs'}" in listed.stdout, listed.stderr
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert names == {line.split()[0] for line in listed.stdout.splitlines()[:-2]}
    # A recipe that reads another one, the synthetic population's schema from the package, and a stage that runs.
    small = ["--config.data.name=synthetic", "--config.data.limit=300", "--config.data.low_activity=false"]
    done = call(installed, cwd, "prepare", "--config", "oulad_low_activity", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (cwd / "runs" / "oulad_low_activity" / "prepare" / "population.parquet").is_file()
