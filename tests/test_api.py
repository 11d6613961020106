"""The page on the public API and what the packages export are the same, and nothing else is exported."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import scaletot_jax

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()


def listed(title):
    section = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return re.findall(r"`([\w.]+)`", " ".join(rows))


@pytest.mark.parametrize("package", ["scaletot_jax", "scaletot_jax.losses"])
def test_the_page_lists_what_a_package_exports_and_no_more(package):
    module = importlib.import_module(package)
    assert sorted(listed(f"`{package}`")) == sorted(module.__all__)
    found = {name for name in dir(module) if not name.startswith("_") and not inspect.ismodule(getattr(module, name))}
    assert found == {name for name in module.__all__ if not name.startswith("_")}
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        _ = module.nothing_of_that_name


def test_modules_named_on_the_page_have_what_it_names():
    names = listed("Modules that are used by their own names")
    assert len(names) == 13
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name


def test_importing_the_package_imports_nothing_heavy():
    assert set(scaletot_jax._LAZY) == set(scaletot_jax.__all__) - {"__version__"}
