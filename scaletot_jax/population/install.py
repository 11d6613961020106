"""A served model takes the place of another: built aside, checked, then moved in with ``model.json`` last.

Whatever fails while a model is made (a kill, a full disk, a gate that does not agree, a number of users nobody reaches) leaves the
model that was there as it was. A kill within the moves leaves a directory without ``model.json``, which is no model to anybody.
Files are synced when they are built and the directory before and after ``model.json`` moves, so that a loss of power is a kill.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.export.interface import FILE, PROGRAMS
from scaletot_jax.files import disk_errors, read_json, sync_directory
from scaletot_jax.population.model import ENCODER, FILES, OPTIONAL

CARD = "README.md"
NAMES = frozenset({*FILES, *OPTIONAL, FILE, *PROGRAMS.values(), CARD, "model.json"})
_ASIDE = ".new."


@contextlib.contextmanager
def replaces(directory: str | Path, do: str) -> Iterator[Path]:
    """Yields an empty folder to build a model in; when the block ends well, its files become those of ``directory``.

    Args:
      directory: a new one, an empty one, or one of an earlier model, all of whose files are replaced. Other files in it stay.
      do: what to do where it holds other things, for the message.

    Raises:
      StaleRunError: the directory holds other things.
      ResourceError: the disk is full; the earlier model is still there.
    """
    directory = Path(directory)
    check_free(directory, do)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(f"{_ASIDE}*"):  # of a killed export
            shutil.rmtree(left, ignore_errors=True)
        aside = directory / f"{_ASIDE}{os.getpid()}"
        aside.mkdir()
        try:
            yield aside
            _move_in(aside, directory)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def check_free(directory: Path, do: str) -> None:
    """Raises StaleRunError where the directory holds files and is neither a served model nor a part of one."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if names and not (_is_model(directory, names) or any(name.startswith(_ASIDE) for name in names)):
        raise StaleRunError("the directory holds other things", where=str(directory), do=do)


def _is_model(directory: Path, names: set[str]) -> bool:
    """Whether nothing but a model's own files would go: the name of one of them says nothing, other tools write a model.json."""
    if set(FILES) <= names:  # whole, or its record went in an interrupted exchange
        return True
    if "model.json" not in names:
        return ENCODER[0] in names and names <= NAMES
    try:
        record = read_json(directory / "model.json")
        return "fingerprint" in record and ENCODER[0] in record["files"]
    except (DataError, UnicodeError, KeyError, TypeError):
        return False


def _move_in(aside: Path, directory: Path) -> None:
    new = sorted(path.name for path in aside.iterdir())
    (directory / "model.json").unlink(missing_ok=True)
    for name in NAMES - {*new, "model.json"}:
        (directory / name).unlink(missing_ok=True)
    sync_directory(directory)  # the old record is gone before a file of the new model is there
    for name in sorted(new, key=lambda name: name == "model.json"):
        if name == "model.json":
            sync_directory(directory)  # the others are there before the record that says so
        os.replace(aside / name, directory / name)
    sync_directory(directory)
    sync_directory(directory.parent)
