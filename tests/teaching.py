"""Run directories for tests of stage ``teach``: prepared once, copied, taught with overrides."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from scaletot_jax.config import load_config, override
from scaletot_jax.profiles.prepare import prepare
from scaletot_jax.run import Run, Stage
from scaletot_jax.teacher.scoring import Scorer
from scaletot_jax.teacher.store import Store
from scaletot_jax.teacher.teach import teach


def prepare_in(workdir: Path, recipe: Path) -> Path:
    """A run directory in which only ``prepare`` is done."""
    with Run(workdir, load_config(recipe).to_dict()) as run:
        prepare(run)
    return workdir


def teach_in(workdir: Path, recipe: Path, **overrides: Any) -> Stage:
    """Runs ``teach``; ``teacher__beam=3`` overrides ``teacher.beam``."""
    config = load_config(recipe)
    for key, value in overrides.items():
        override(config, key.replace("__", "."), str(value))
    with Run(workdir, config.to_dict()) as run:
        return teach(run)


def interrupt(monkeypatch: pytest.MonkeyPatch, batches: int, workdir: Path, recipe: Path) -> None:
    """Runs ``teach`` until it has stored so many batches, and then is interrupted."""
    put, count = Store.put, 0

    def dying(self: Store, entries: Any) -> None:
        nonlocal count
        count += 1
        if count > batches:
            raise KeyboardInterrupt
        put(self, entries)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dying)
        with pytest.raises(KeyboardInterrupt):
            teach_in(workdir, recipe)


def replay(
    monkeypatch: pytest.MonkeyPatch, taught: Path, workdir: Path, recipe: Path, artifacts: Iterable[str], *programs: str
) -> None:
    """Runs ``teach`` on a copy that has its store, but neither tables nor done-mark; no program of the model may run."""
    shutil.copytree(taught, workdir)
    for name in (*artifacts, "stage.json"):
        (workdir / "teach" / name).unlink()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was run again")

    for name in programs:
        monkeypatch.setattr(Scorer, name, never)
    teach_in(workdir, recipe)


def taught_copy(prepared: Path, workdir: Path, recipe: Path) -> Path:
    """An undisturbed run of ``teach`` from a prepared directory."""
    shutil.copytree(prepared, workdir)
    teach_in(workdir, recipe)
    return workdir


def digests(workdir: Path, artifacts: Iterable[str]) -> dict[str, str]:
    """SHA-256 of artifacts of ``teach``."""
    return {name: hashlib.sha256((workdir / "teach" / name).read_bytes()).hexdigest() for name in artifacts}
