"""A large population through prepare and score: memory by the shard, every row once, a killed shard made whole.

Part of ``make soak``. Each stage runs in a process of its own, whose peak memory is the kernel's figure. The encoder has
its initial weights: the pass over the population does not depend on what was learnt.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

SOAK = bool(os.environ.get("SCALETOT_SOAK"))
ROWS = int(os.environ.get("SCALETOT_SOAK_ROWS", 1_000_000))
SHARD = ROWS // 16
MIB = 1 << 20
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not SOAK, reason="a million rows: run by make soak"),
    pytest.mark.xdist_group("large"),
]

PROGRAM = '''
import sys
from pathlib import Path

stage, workdir, rows, shard = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scaletot_jax.config import default_config
from scaletot_jax.encoder.artifact import save_encoder, sha256_json
from scaletot_jax.encoder.model import Inputs, describe, init_params
from scaletot_jax.encoder.score import score
from scaletot_jax.encoder.whiten import fit_whitening
from scaletot_jax.files import read_json
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.prepare import prepare
from scaletot_jax.run import Run

config = default_config()
config.data.name, config.data.limit = "synthetic", rows
config.score.shard_rows = shard


def high_water():
    """Peak resident memory of this process image, MiB; unlike getrusage's it does not begin with the parent's."""
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def untrained_encoder(run):
    made = run.stage("distill", sections=("seed",), needs=("prepare",))
    record = read_json(run.finished("prepare").path("features.json"))
    space = FeatureSpace.from_dict(record)
    file = pq.ParquetFile(run.finished("prepare").path("population.parquet"))
    sample = next(file.iter_batches(2000))
    inputs = Inputs(*space.encode(pa.Table.from_batches([sample])))
    spec = describe(space, inputs, segments=("context",), target_dims=(4,), dim=32, width=64)
    statistics = fit_whitening(np.random.default_rng(0).normal(size=(50, 8)), 4)
    save_encoder(made.directory, spec, init_params(spec, 0), [statistics], features_sha256=sha256_json(record))
    made.finish(["encoder.safetensors", "encoder.json"])


with Run(workdir, config.to_dict()) as run:
    before = high_water()
    if stage == "prepare":
        prepare(run)
        untrained_encoder(run)
    else:
        score(run)
print("MEMORY", before, high_water())
'''


def start(stage, workdir, rows, shard):
    environ = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, stage, str(workdir), str(rows), str(shard)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Seconds, and MiB before and at the peak of the stage."""
    begin = time.monotonic()
    out, errors = process.communicate(timeout=3600)
    assert process.returncode == 0, errors[-3000:]
    before, peak = map(float, out.split("MEMORY")[1].split())
    return time.monotonic() - begin, before, peak


def recorded(workdir):
    """The records of the shards made so far, in order."""
    return [json.loads(path.read_text()) for path in sorted((workdir / "score" / "records").glob("part-*.json"))]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A quarter of the rows, and all of them, prepared and scored with shards of one size; the latter is killed midway."""
    figures = {}
    for rows in (ROWS // 4, ROWS):
        workdir = tmp_path_factory.mktemp(f"rows{rows}")
        figures["prepare", rows] = finish(start("prepare", workdir, rows, SHARD))
        if rows < ROWS:
            figures["score", rows] = finish(start("score", workdir, rows, SHARD))
    process = start("score", workdir, ROWS, SHARD)
    while len(recorded(workdir)) < 5 and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1][-3000:]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {entry["file"]: (workdir / "score" / entry["file"]).stat().st_mtime_ns for entry in recorded(workdir)}
    figures["score", ROWS] = finish(start("score", workdir, ROWS, SHARD))
    for (stage, rows), (seconds, before, peak) in figures.items():
        print(f"{stage} of {rows:,} rows: {seconds:.1f} s, {before:.0f} MiB before, {peak:.0f} MiB at the peak")
    return workdir, figures, kept


def test_shards_finished_before_a_kill_are_not_made_again(scored):
    workdir, _, kept = scored
    assert 5 <= len(kept) < 16
    assert {name: (workdir / "score" / name).stat().st_mtime_ns for name in kept} == kept
    assert len(recorded(workdir)) == 16


def test_every_row_and_id_once(scored):
    workdir, *_ = scored
    population = pq.read_table(workdir / "prepare" / "population.parquet", columns=["row", "user_id", "group"])
    assert population.num_rows == ROWS == pc.count_distinct(population["user_id"]).as_py()
    begin = 0
    for entry in recorded(workdir):
        table = pq.read_table(workdir / "score" / entry["file"])
        expected = population.slice(begin, SHARD)
        assert table["row"].equals(expected["row"]) and table["user_id"].equals(expected["user_id"]), entry["file"]
        values = table["embedding"].combine_chunks().flatten().to_numpy().astype(np.float32)
        assert np.isfinite(values).all() and values.std() > 0
        begin += table.num_rows
    assert begin == ROWS and len(population["row"].unique()) == ROWS


def test_a_shard_made_again_after_a_kill_has_the_same_bytes(scored):
    """The first shard was made by the killed process, the last by the one after it; both are made anew by a third."""
    workdir, *_ = scored
    before = {entry["file"]: entry["sha256"] for entry in recorded(workdir)}
    for name in (min(before), max(before)):
        (workdir / "score" / name).unlink()
    finish(start("score", workdir, ROWS, SHARD))
    assert {entry["file"]: entry["sha256"] for entry in recorded(workdir)} == before


def test_scoring_needs_the_memory_of_a_shard_whatever_the_population(scored):
    """Four times the rows in shards of the same size: the peak may grow by what allocators keep, not with the rows."""
    _, figures, _ = scored
    small, large = (figures["score", rows][2] for rows in (ROWS // 4, ROWS))
    assert large <= small + 100


def test_preparing_needs_memory_in_proportion_to_the_rows(scored):
    """The table is held whole: no worse than linear in the rows, and at most 2 KiB a row."""
    _, figures, _ = scored
    small, large = (peak - before for _, before, peak in (figures["prepare", rows] for rows in (ROWS // 4, ROWS)))
    assert large <= 4 * small * 1.1
    assert large * MIB <= 2048 * ROWS
