"""The log of training steps: JSON lines that a kill can neither double nor tear."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

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
      sinks: where every line goes besides, its names after ``prefix``; they are the caller's to close.
    """

    def __init__(self, path: str | Path, *, keep_through: int, sinks: Sinks | None = None, prefix: str = ""):
        self.path = Path(path)
        self._sinks, self._prefix = sinks, prefix
        kept = [row for row in read_steps(self.path) if row["step"] <= keep_through]
        text = "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in kept)
        write_bytes(self.path, text.encode())
        self._handle = open(self.path if leads() else os.devnull, "a")

    def append(self, step: int, **values: float) -> None:
        row = {"step": int(step), **{key: _finite(value) for key, value in values.items()}}
        with disk_errors(self.path):
            self._handle.write(json.dumps(row, sort_keys=True, allow_nan=False) + "\n")
            self._handle.flush()
        if self._sinks is not None:
            self._sinks.write(int(step), {self._prefix + key: row[key] for key in values})

    def close(self) -> None:
        self._handle.close()


def read_steps(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a step log; a torn last line is left out."""
    path = Path(path)
    rows = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
