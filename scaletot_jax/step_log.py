"""The log of training steps: JSON lines that a kill can neither double nor tear, and that a checkpoint speaks for."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from scaletot_jax.errors import DataError
from scaletot_jax.files import disk_errors, write_bytes
from scaletot_jax.parallel.distributed import leads
from scaletot_jax.sinks import Sinks


class StepLog:
    """A JSON-lines log of training steps that survives a kill without doubled or torn lines.

    On opening, lines beyond ``keep_through`` (the step of the restored checkpoint) and a torn last line are dropped. Of
    several processes the first alone writes.

    Args:
      path: of the file.
      keep_through: the last step that is kept.
      stated: what :meth:`sync` said when that step was saved; None: unknown.
      sinks: where every line goes besides, its names after ``prefix``; they are the caller's to close.

    Raises:
      DataError: the lines that are kept are not those that were stated: a part of the log was lost or changed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        keep_through: int,
        stated: str | None = None,
        sinks: Sinks | None = None,
        prefix: str = "",
    ):
        self.path = Path(path)
        self._sinks, self._prefix = sinks, prefix
        kept = [row for row in read_steps(self.path) if row["step"] <= keep_through]
        text = "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in kept)
        self._hash = hashlib.sha256(text.encode())
        if stated not in (None, self._hash.hexdigest()):
            raise DataError(
                "a log of training steps is not the one that its checkpoint speaks of",
                where=str(self.path),
                why=f"lines up to step {keep_through} were lost or changed",
                do=f"delete {self.path.parent} and run the same command again: it is trained from its beginning",
            )
        write_bytes(self.path, text.encode())
        self._handle = open(self.path if leads() else os.devnull, "a")

    def append(self, step: int, **values: float) -> None:
        row = {"step": int(step), **{key: _finite(value) for key, value in values.items()}}
        line = json.dumps(row, sort_keys=True, allow_nan=False) + "\n"
        with disk_errors(self.path):
            self._handle.write(line)
            self._handle.flush()
        self._hash.update(line.encode())
        if self._sinks is not None:
            self._sinks.write(int(step), {self._prefix + key: row[key] for key in values})

    def sync(self) -> str:
        """Brings all lines to the disk and returns their digest, for the checkpoint of the last of these steps."""
        if leads():
            with disk_errors(self.path):
                os.fsync(self._handle.fileno())
        return self._hash.hexdigest()

    def close(self) -> None:
        self._handle.close()


def read_steps(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a step log; a torn last line is left out, and so is what follows a damaged one."""
    path = Path(path)
    rows = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                break
            rows.append(row)
    return rows


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
