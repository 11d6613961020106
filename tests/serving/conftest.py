"""Two small models of one schema with probe and chains, and one server of the first: a process of its own, started once."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import quick_compile

from scaletot_jax.chains.spec import ChainSpec, load_spec
from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.population.exemplars import Reasoned, write_exemplars
from scaletot_jax.population.model import seal_model
from scaletot_jax.population.probe import write_probe
from scaletot_jax.population.untrained import write_untrained_model
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

TOKEN = "a-token-of-the-tests"
SHAPES = (8, 64)
ROOT = Path(__file__).parents[2]


def reasoned(spec: ChainSpec, dim: int, profiles: int = 40, seed: int = 0) -> Reasoned:
    """Made-up chains: two that many users share, and one that only four do."""
    rng = np.random.default_rng(seed)
    values = []
    for i in range(profiles):
        row = [slot.values[i % 2] if slot.values else None for slot in spec.slots]
        if i % 10 == 0:
            row[0] = spec.slots[0].values[-1]
        values.append(tuple(row))
    answers = rng.dirichlet(np.ones(spec.num_buckets), profiles)
    return Reasoned(
        values, answers, [{f"user {i}"} for i in range(profiles)], rng.normal(size=(profiles, dim)).astype(np.float32)
    )


@pytest.fixture(scope="package")
def cache(tmp_path_factory):
    """Programs of these tests are compiled quickly, and once for this process and the server's."""
    folder = tmp_path_factory.mktemp("programs")
    with quick_compile.here(folder):
        yield folder


@pytest.fixture(scope="package")
def models(tmp_path_factory, cache):
    schema, spec = load_schema("synthetic"), load_spec("synthetic")
    table = validate(build_table(400, seed=3), schema)
    made = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("served") / f"model{seed}"
        write_untrained_model(folder, table, schema, seed=seed, dim=8, width=16, seeds=2, head_width=4)
        chains = lambda model: write_exemplars(model, reasoned(spec, 8), spec, 5)  # noqa: E731
        made.append(seal_model(folder, add=[write_probe, chains]))
    return made


@pytest.fixture(scope="package")
def rows():
    """Fifty profiles as a table of the model's columns."""
    return build_table(50, seed=4).drop_columns(["user_id", "lt30", "ltv30"])


@pytest.fixture(scope="package")
def server(models, tmp_path_factory, cache):
    """The command as it is typed; ``link`` is what it serves, ``log`` its stderr."""
    folder = tmp_path_factory.mktemp("server")
    link, log = folder / "current", folder / "log"
    link.symlink_to(models[0].directory)
    with open(log, "wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-m", "scaletot_jax.cli", "serve", "--model", link, "--port", "0", "--shapes", "8,64",
             "--max-rows", "100", "--max-body-bytes", "60000", "--head-seconds", "2", "--body-seconds", "2"],
            stderr=handle, cwd=ROOT, env=os.environ | quick_compile.environment(cache) | {"SCALETOT_TOKEN": TOKEN},
        )  # fmt: skip
    try:
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield SimpleNamespace(port=int(found[1]), link=link, log=log, process=process)
    finally:
        process.kill()
        process.wait()
