"""Runs a script on a disk that fills up: a small tmpfs over a folder, in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")


def run_on_small_disk(script: str, folder: Path, size: str) -> subprocess.CompletedProcess[str]:
    """Runs Python source with ``folder`` as its argument, over which a tmpfs of ``size`` lies; skips where none can."""
    command = f'mount -t tmpfs -o size={size} tmpfs "{folder}" && "{sys.executable}" -c "$SCRIPT" "{folder}"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        env={**os.environ, "SCRIPT": textwrap.dedent(script)},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no private tmpfs here: {done.stderr.strip()}")
    return done
