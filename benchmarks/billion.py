"""The plan for a billion users: hours, money and storage, and beside it what a language model for everyone would take.

    python benchmarks/billion.py [--users 1000000000] [--usd-per-hour 0.1] [--rows 4000000] [--quick]
        [--rates population.json] [--sampler sampler.json | --tokens-per-s N] [--tokens-per-user 960] [--tpu-usd-per-hour 9.6]

Measured here, in this run: rows a second of ``scaletot score`` end to end in both forms, bytes a row read and written; with
``--rates`` the rates are those of an earlier run of benchmarks/population.py on this machine, and only the bytes are new. The
language model's rate is that of benchmarks/sampler.py on this machine: its JSON line, a number, or a quick run of it now.
The row of a v5e-8 is not measured: it is what the TPU compiler estimates for the compiled call, taken eight times, and says
so; reading and writing there are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import machine, versions
from population import write_population

from scaletot_jax.population.score import Options, score_table
from scaletot_jax.population.synthetic import build_shard
from scaletot_jax.population.untrained import write_untrained_model
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

CHIPS = 8
TPU_BATCH = 65_536
_TPU = """
import sys, jax
from functools import partial
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from scaletot_jax.encoder.model import Inputs
from scaletot_jax.population.compute import _columns
from scaletot_jax.population.model import load_model
from scaletot_jax.profiles.features import FeatureSpace
import numpy as np
model, rows = load_model(sys.argv[1]), int(sys.argv[2])
device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
spec, space = model.spec.encoder, model.space
shape = lambda s, t: jax.ShapeDtypeStruct(s, t, sharding=SingleDeviceSharding(device))
inputs = Inputs(shape((rows, len(spec.cat_sizes)), np.int32), shape((rows, len(spec.knots)), np.float32),
    shape((rows, len(spec.knots)), bool), shape((rows, len(spec.multi_sizes), space.multi_width), np.int32))
params = jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), model.params)
compiled = _columns.lower(params, inputs, spec=model.spec, embedding="float16").compile()
print(compiled.as_text())
"""


def measure(work: Path, rows: int, profiles: int) -> dict[str, dict[str, float]]:
    """Form → rows a second and bytes a row, each once to compile and once to count."""
    schema = load_schema("population")
    model = write_untrained_model(work / "model", validate(build_shard(1 << 30, 50_000), schema), schema)
    out = {}
    for form, catalogue in (("rows", 0), ("distinct", profiles)):
        users = write_population(work / f"users_{form}_{rows}", rows, catalogue)
        warm = write_population(work / f"warm_{form}", 20_000, catalogue)
        score_table(model.directory, warm, work / f"warm_out_{form}", Options(form=form))
        start = time.perf_counter()
        score_table(model.directory, users, work / f"out_{form}", Options(form=form))
        seconds = time.perf_counter() - start
        size = {
            name: sum(file.stat().st_size for file in folder.rglob("*.parquet")) / rows
            for name, folder in (("read", users), ("written", work / f"out_{form}"))
        }
        out[form] = {"rows_per_s": rows / seconds, "bytes_read": size["read"], "bytes_written": size["written"]}
    return out


def sampler_rate(options: argparse.Namespace) -> tuple[float | None, str]:
    """Tokens a second of the language model on this machine, and where the number is from."""
    if options.tokens_per_s:
        return options.tokens_per_s, "given"
    if options.sampler:
        record = json.loads(Path(options.sampler).read_text().strip().splitlines()[-1])
        return float(record["ours"]), f"{options.sampler}, {record['machine']}"
    script = Path(__file__).with_name("sampler.py")
    done = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True)
    if done.returncode != 0:
        return None, "benchmarks/sampler.py failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    return float(json.loads(done.stdout.splitlines()[-1])["ours"]), "benchmarks/sampler.py --quick, in this run"


def tpu_estimate(work: Path) -> tuple[float | None, str]:
    """Rows a second of one v5e chip by the compiler's cycle estimates, loops counted as often as they run."""
    from scaletot_jax.parallel.tpu.ahead import _environment
    from scaletot_jax.parallel.tpu.hlo_text import Program
    from scaletot_jax.parallel.tpu.topology import GENERATIONS

    command = [sys.executable, "-c", _TPU, str(work / "model"), str(TPU_BATCH)]
    environ = {**os.environ, **_environment()}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=1800)
    if done.returncode != 0:
        return None, "the TPU compiler did not: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    cycles = 0
    for line in Program(done.stdout).lines():
        found = re.search(r'"estimated_cycles":"(\d+)"', line.text)
        if found and not line.fused:
            cycles += line.trips * int(found[1])
    if not cycles:
        return None, "the compiled program states no estimates"
    return TPU_BATCH * GENERATIONS["v5e"].clock / cycles, f"{cycles:,} cycles for {TPU_BATCH:,} rows, by the compiler"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=float, default=1e9)
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows measured")
    parser.add_argument("--profiles", type=int, default=20_000, help="catalogue of the repeating population")
    parser.add_argument("--usd-per-hour", type=float, default=0.1, help="price of this machine")
    parser.add_argument("--tpu-usd-per-hour", type=float, default=9.6, help="price of a v5e-8")
    parser.add_argument(
        "--tokens-per-user", type=float, default=960, help="of the language model; the sampler's workload"
    )
    parser.add_argument("--rates", default="", help="a file whose last line is that of benchmarks/population.py")
    parser.add_argument("--sampler", default="", help="a file whose last line is that of benchmarks/sampler.py")
    parser.add_argument("--tokens-per-s", type=float, default=0)
    parser.add_argument("--no-tpu", action="store_true", help="leave the TPU compiler alone")
    parser.add_argument("--quick", action="store_true", help="measure 200,000 rows")
    options = parser.parse_args()
    rows = 200_000 if options.quick else options.rows
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        measured = measure(work, rows, options.profiles)
        chip, said = (None, "not asked") if options.no_tpu else tpu_estimate(work)
    tokens, source = sampler_rate(options)
    rates_source = f"{rows:,} rows, in this run"
    if options.rates:
        record = json.loads(Path(options.rates).read_text().strip().splitlines()[-1])
        for form, name in (("rows", "ours"), ("distinct", "ours_dedup")):
            measured[form]["rows_per_s"] = float(record[name])
        rates_source = f"{options.rates}, {record['rows']:,} rows, {record['machine']}"
    plan = {}
    for form, found in measured.items():
        hours = options.users / found["rows_per_s"] / 3600
        plan[f"here, {form}"] = {
            "rows_per_s": round(found["rows_per_s"]),
            "hours": round(hours, 2),
            "usd": round(hours * options.usd_per_hour, 2),
            "table_gb": round(options.users * found["bytes_read"] / 1e9, 1),
            "result_gb": round(options.users * found["bytes_written"] / 1e9, 1),
        }
    if chip is not None:
        hours = options.users / (CHIPS * chip) / 3600
        plan["v5e-8, compiler-estimated, without reading and writing"] = {
            "rows_per_s": round(CHIPS * chip),
            "hours": round(hours, 4),
            "usd": round(hours * options.tpu_usd_per_hour, 2),
        }
    ratio = None
    if tokens is not None:
        hours = options.users * options.tokens_per_user / tokens / 3600
        plan["here, a language model for everyone"] = {
            "rows_per_s": round(tokens / options.tokens_per_user, 3),
            "hours": round(hours),
            "usd": round(hours * options.usd_per_hour),
        }
        ratio = round(measured["rows"]["rows_per_s"] * options.tokens_per_user / tokens)
    print(f"{options.users:,.0f} users, {machine()}; rates: {rates_source}")
    for name, found in plan.items():
        print(f"  {name:56}" + "  ".join(f"{key} {value:,}" for key, value in found.items()))
    print(f"v5e: {said}\nlanguage model: {source}, {options.tokens_per_user:.0f} tokens a user")
    if ratio is not None:
        print(f"the population pass serves {ratio:,} users in the time a language model takes for one")
    record = {
        "benchmark": "billion", "ours": plan["here, rows"]["hours"], "unit": "hours", "plan": plan, "measured": measured,
        "measured_rows": rows, "rates": rates_source, "llm_ratio": ratio, "llm_source": source, "tpu": said, "machine": machine(),
        "versions": versions("jax"),
    }  # fmt: skip
    print(json.dumps(record))


if __name__ == "__main__":
    main()
