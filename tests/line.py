"""A small recipe of the whole line for tests: the synthetic population and a tiny random language model."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import tiny

RECIPE = '''"""The whole line in seconds, for tests."""

from scaletot_jax.config import default_config


def get_config():
    config = default_config()
    config.data.name = "synthetic"
    config.data.limit = 400
    config.lm.weights = {weights!r}
    config.lm.max_profile_tokens = 96
    config.teacher.num_profiles = 24
    config.teacher.pilot_profiles = 16
    config.teacher.batch_size = 4
    config.student.lora_rank = 4
    config.sft.epochs = 1
    config.sft.checkpoint_every = 2
    config.osipo.updates = 3
    config.osipo.prompts = 2
    config.osipo.rollouts = 4
    config.osipo.warmup_updates = 1
    config.osipo.eval_profiles = 16
    config.distill.num_profiles = 24
    config.distill.placebos = ("labels",)
    config.distill.chains = 2
    config.distill.dim = 8
    config.distill.whiten_dim = 8
    config.distill.width = 16
    config.distill.steps = 60
    config.distill.batch_size = 16
    config.distill.checkpoint_every = 20
    config.score.batch_size = 64
    config.score.shard_rows = 150
    config.head.seeds = 2
    config.head.steps = 60
    config.head.penalties = (1e-2, 1e-1)
    config.head.width = 8
    config.evaluate.bootstrap = 100
    config.report.chains = 2
    return config
'''


def write_recipe(folder: Path) -> Path:
    """Makes the tiny model and the recipe in ``folder`` and returns the recipe's path."""
    weights = folder / "tiny_lm"
    tiny.write_tiny_lm(weights)
    recipe = folder / "line.py"
    recipe.write_text(RECIPE.format(weights=str(weights)))
    return recipe


def command(recipe: Path, workdir: Path, *extra: str, verb: str = "run") -> list[str]:
    program = [sys.executable, "-m", "scaletot_jax.cli", verb]
    return [*program, "--config", str(recipe), "--workdir", str(workdir), *extra]


def environment(cache: Path) -> dict[str, str]:
    """One CPU device, programs that are compiled quickly, once for the processes of a test, and one thread of BLAS: baselines'
    figures depend on their number in the last bit, and a process that forks has one."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("XLA_FLAGS")}
    environ.update(
        JAX_PLATFORMS="cpu",
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_DISABLE_MOST_OPTIMIZATIONS="true",
        HF_HUB_OFFLINE="1",
        OPENBLAS_NUM_THREADS="1",
    )
    return environ


def run(recipe: Path, workdir: Path, cache: Path, *extra: str, verb: str = "run") -> subprocess.CompletedProcess:
    return subprocess.run(
        command(recipe, workdir, *extra, verb=verb), env=environment(cache), capture_output=True, text=True, timeout=900
    )


def reproduce(workdir: Path, into: Path, cache: Path) -> subprocess.CompletedProcess:
    """Does a run again from its record; of its compiled programs ``cache`` has all."""
    program = [sys.executable, "-m", "scaletot_jax.cli", "reproduce", str(workdir), "--workdir", str(into)]
    return subprocess.run(program, env=environment(cache), capture_output=True, text=True, timeout=900)


class Undisturbed(NamedTuple):
    """A finished run of the whole line; ``place`` also holds the recipe's model and, in ``cache``, its programs."""

    place: Path
    recipe: Path
    workdir: Path
    done: subprocess.CompletedProcess


@functools.cache
def undisturbed(base: Path) -> Undisturbed:
    """One such run for all tests of a process, below ``base``: ``tmp_path_factory.getbasetemp()``."""
    place = base / "line"
    place.mkdir(exist_ok=True)
    recipe = write_recipe(place)
    done = run(recipe, place / "undisturbed", place / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    return Undisturbed(place, recipe, place / "undisturbed", done)


def results(workdir: Path) -> dict[str, str]:
    """SHA-256 of everything a run promises to reproduce: every table, record and array, and the page."""
    kinds = ("*.parquet", "*.json", "*.safetensors", "*.jsonl", "report.html")
    found = {
        path
        for kind in kinds
        for path in workdir.rglob(kind)
        if path.stem != "timing"
        and not any(part.startswith((".", "checkpoint", "tfds")) for part in path.relative_to(workdir).parts)
    }
    return {str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found)}
