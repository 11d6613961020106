"""The shipped recipes by name: ``--config quickstart`` is ``configs/quickstart.py``, in a checkout and after ``pip install`` alike.

In the repository the recipes are the folder ``configs/`` beside the package. A wheel carries that folder inside the package
(``package_dir`` in ``setup.py``); an editable installation uses the repository's own.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path


def folder() -> Path:
    """Where the recipes of this installation lie."""
    inside = Path(__file__).with_name("configs")
    return inside if inside.is_dir() else inside.parents[1] / "configs"


def names() -> list[str]:
    """The shipped recipes, in alphabetical order."""
    return sorted(path.stem for path in folder().glob("*.py") if not path.stem.startswith("_"))


def find(config: str | Path) -> Path:
    """The file behind ``--config``: a file that exists is itself, and a bare name is a shipped recipe where there is one."""
    path = Path(config)
    bare = str(config) == path.name and not path.suffix
    return folder() / f"{config}.py" if bare and not path.is_file() and str(config) in names() else path


def summary(name: str) -> str:
    """The first line of a recipe's docstring; the recipe is read, not run."""
    text = ast.get_docstring(ast.parse((folder() / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def main(arguments: Sequence[str]) -> int:
    """``scaletot recipes``: lists them."""
    parser = argparse.ArgumentParser(
        prog="scaletot recipes", description="The recipes that --config takes by name, each a Python file to copy."
    )
    parser.parse_args(arguments)
    for name in names():
        print(f"{name:<20}{summary(name)}")
    print(f"\nin {folder()}")
    return 0
