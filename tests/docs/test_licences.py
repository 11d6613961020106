"""Every declared dependency stands on the page of licences, with one; and `make audit` is a report, never a gate."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
from email.message import Message
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "licences.md").read_text()


def load_tool():
    spec = importlib.util.spec_from_file_location("licences", ROOT / "docs" / "licences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture
def declared(monkeypatch):
    """What setup.py hands to setuptools: name → the extras that ask for it."""
    found = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: found.update(keywords))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    out = {}
    for extra, requirements in {"core": found["install_requires"], **found["extras_require"]}.items():
        for text in requirements:
            out.setdefault(re.match(r"[\w.-]+", text)[0], set()).add(extra)
    return out


def test_every_declared_dependency_is_listed_with_its_extras_and_a_licence(declared):
    section = PAGE.split("## Declared")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([\w.-]+) \| (.*) \|$", section, flags=re.MULTILINE))
    del rows["package"]
    assert {name: set(row.split(" | ")[0].split(", ")) for name, row in rows.items()} == {
        **declared, **{name: {"demo"} for name in tool.DEMO},
    }  # fmt: skip
    for name, row in rows.items():
        _, licence, version = row.split(" | ")
        assert licence not in ("", "not stated", "not looked at"), name
        assert re.match(r"\d", version), name


def about(**fields):
    message = Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MIT OR Apache-2.0", "License": "other"}, "MIT OR Apache-2.0"),
        ({"License": "a long text", "Classifier": ["License :: OSI Approved :: MIT License", "Typing :: Typed"]}, "MIT License"),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "License :: OSI Approved :: BSD License"]}, "MIT License, BSD License"),
        ({"License": "\n   Apache License\n  Version 2.0"}, "Apache License"),
        ({"Classifier": "License :: OSI Approved"}, "OSI Approved"),
        ({}, "not stated"),
    ],
)  # fmt: skip
def test_a_licence_is_what_the_metadata_says(fields, expected):
    assert tool.licence(about(**fields)) == expected


def test_the_page_keeps_the_row_of_a_package_that_is_not_installed_here():
    old = "| absent-package | core | Their Licence | 1.2 |\n"
    text = tool.page(["absent-package>=1", 'numpy; extra == "x"', 'other-absent; extra == "y"'], old)
    assert "| absent-package | core | Their Licence | 1.2 |" in text
    assert "| other-absent | y | not looked at |  |" in text
    assert re.search(r"^\| numpy \| x \| BSD[^|]* \| \d", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("python", "told"),
    [
        ('[ "$1" = -c ] && exit 1; exit 9', "nothing was looked up"),  # it is not installed
        ('[ "$1" = -c ] && exit 0; echo found; exit 1', "found"),  # it found something, or reached nobody
        ("exit 0", "nothing known of the packages that could be looked up"),
    ],
)
def test_make_audit_reports_and_never_fails(tmp_path, python, told):
    if shutil.which("make") is None and not os.environ.get("CI"):
        pytest.skip("make is not installed")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "python"
    program.write_text(f"#!/bin/sh\n{python}\n")
    program.chmod(0o755)
    (tmp_path / ".made").touch()
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), "audit", f"VENV={tmp_path}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert told in done.stdout
