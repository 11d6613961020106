"""The population pass end to end, Parquet in and Parquet out, against pandas and torch: rows a second.

    python benchmarks/population.py                  10 M users, 12 fields, 64-dim float16, two labels with quantiles
    python benchmarks/population.py --quick          200,000 users
    python benchmarks/population.py --memory 1000000 100000000     peak memory and rate by size, in the order given, each in a
                                                     process of its own
    python benchmarks/population.py --ray            one process against Ray on this machine, shards of a tenth of the table

Two tables: profiles of each user's own, and profiles drawn from a catalogue (``--profiles``) for the form ``distinct``; its
repetition is printed. Peer: benchmarks/population_peer.py, the same network in float32, without deduplication; its bfloat16 is
printed too. Before any time is taken both must say the same of the same users. Beside ``ours`` stands what its parts take
alone: reading and encoding, the raw compiled loop, writing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import in_turn, last_line, table

from scaletot_jax.population.model import load_model
from scaletot_jax.population.score import Options, open_job, score_table
from scaletot_jax.population.scoring import BLOCK, arrange, open_parquet
from scaletot_jax.population.synthetic import build_shard
from scaletot_jax.population.untrained import write_untrained_model
from scaletot_jax.profiles.features import Features
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

_FILE_ROWS = 1 << 20
HIDDEN = ["lt30", "ltv30", "activity", "state", "best_lt30", "best_p_lt30", "best_ltv30"]


def write_population(folder: Path, rows: int, profiles: int, *, files: int = 0) -> Path:
    """A table of ``rows`` users in files of a million rows; kept from an earlier run where it is whole.

    ``files``: where above 0, every whole file beyond so many is one of the first again, a hard link: nothing in the pass
    remembers a user, and a hundred million take as long to make as ten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, rows, _FILE_ROWS)):
        file, size = folder / f"users-{number:05d}.parquet", min(_FILE_ROWS, rows - first)
        if file.exists() and pq.ParquetFile(file).metadata.num_rows == size:
            continue
        if files and number >= files and size == _FILE_ROWS:
            file.hardlink_to(folder / f"users-{number % files:05d}.parquet")
            continue
        made = build_shard(number, size, first=first, profiles=profiles).drop_columns(HIDDEN)
        pq.write_table(made, folder / "unfinished")
        (folder / "unfinished").rename(file)
    return folder


def share_distinct(model, folder: Path) -> float:
    """Distinct encoded profiles a row, within shards of a million rows."""
    from scaletot_jax.population.rows import RowEncoder, distinct_rows
    from scaletot_jax.population.score import layout_of, open_table

    source, encode = open_table(model, folder), RowEncoder(model.space, layout_of(model))
    end = min(source.rows, _FILE_ROWS)
    _, features = encode(next(source.blocks([(0, end)])), first=0, where="")
    return len(distinct_rows(list(features))[1]) / end


def parts_alone(model_folder: Path, users: Path, work: Path) -> dict[str, float]:
    """Seconds a row of reading and encoding, of the raw compiled loop, and of writing, each alone, on the first rows."""
    job = open_job(load_model(model_folder), users, work / "parts", Options())
    rows = min(job.source.rows, 8 * BLOCK)
    blocks = [(begin, min(begin + BLOCK, rows)) for begin in range(0, rows, BLOCK)]
    start = time.perf_counter()
    made = [job.encode(part, first=0, where="") for part in job.source.blocks(blocks)]
    read = time.perf_counter()
    keys = [part for part, _ in made]
    inputs = Features(*(np.concatenate(columns) for columns in zip(*(part for _, part in made))))
    job.compute(Features(*(column[:1] for column in inputs)))
    begin = time.perf_counter()
    found = job.compute(inputs)
    computed = time.perf_counter()
    file = None
    for part, first in zip(keys, range(0, rows, BLOCK)):
        result = arrange(part, {name: found[name][first : first + BLOCK] for name in job.columns})
        file = file or open_parquet(work / "alone.parquet", result.schema)
        file.write_table(result, row_group_size=BLOCK)
    file.close()
    written = time.perf_counter()
    return {
        "read and encode": (read - start) / rows,
        "compiled loop": (computed - begin) / rows,
        "write": (written - computed) / rows,
    }


def check_same(model, peer, users: Path, work: Path) -> float:
    """Largest difference of an expected label between ours and the peer on the first rows, as a share of its spread."""
    head = work / "head"
    head.mkdir(exist_ok=True)
    shutil.rmtree(work / "head_ours", ignore_errors=True)  # of another table, in a folder that is used again
    first = pq.ParquetFile(sorted(users.glob("*.parquet"))[0])
    pq.write_table(pa.Table.from_batches([next(first.iter_batches(4096))]), head / "a.parquet")
    score_table(model.directory, head, work / "head_ours", Options())
    peer.score(head, work / "head_peer")
    ours, theirs = (pq.read_table(next((work / name).glob("*.parquet"))) for name in ("head_ours", "head_peer"))
    worst = 0.0
    for name in ours.column_names[3:]:
        a, b = (part[name].to_numpy() for part in (ours, theirs))
        close = np.abs(a - b) / max(a.std(), 1e-6)
        worst = max(worst, float(np.quantile(close, 0.99)) if name.startswith("q") else float(close.max()))
    return worst


def measure_memory(rows: list[int], work: Path, model: Path) -> list[dict[str, float]]:
    """Rate and peak memory of the row form at each size in the order given, each in a process of its own."""
    out = []
    for size in rows:
        users = write_population(work / f"users_{size}", size, 0, files=8)
        program = [sys.executable, __file__, "--child", str(model), str(users), str(work / f"memory_{size}")]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        out.append(json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(work / f"memory_{size}")
        print(f"{size:,} rows: {out[-1]}", flush=True)
    return out


def child(model: str, users: str, out: str) -> None:
    """One pass: rows a second, processor time a row (which other work on the machine hardly changes), peak memory."""
    start, before = time.perf_counter(), time.process_time()
    score_table(model, users, out, Options())
    seconds, busy = time.perf_counter() - start, time.process_time() - before
    rows = json.loads((Path(out) / "manifest.json").read_text())["rows"]
    print(
        json.dumps(
            {
                "rows": rows,
                "rows_per_s": round(rows / seconds),
                "cpu_us_a_row": round(busy / rows * 1e6, 3),
                "peak_mib": round(peak_mib(), 1),
            }
        )
    )


def peak_mib() -> float:
    """Highest resident memory of this program; unlike getrusage's figure it does not begin with the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--profiles", type=int, default=20_000, help="catalogue of the repeating population")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-warm-up", action="store_true", help="the compilation counts; it is seconds of minutes")
    parser.add_argument("--quick", action="store_true", help="200,000 rows, one round")
    parser.add_argument("--ray", action="store_true", help="also on a Ray cluster of this machine alone")
    parser.add_argument("--sides", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="ROWS")
    parser.add_argument(
        "--width", type=int, default=256, help="of the network; 16 leaves reading and writing almost alone"
    )
    parser.add_argument("--work", default="", help="where tables and results go (default: a temporary folder)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child)
    if options.quick:
        options.rows, options.rounds = 200_000, 1
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(options.work or temporary))


def run(options: argparse.Namespace, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    schema = load_schema("population")
    sample = validate(build_shard(1 << 30, 50_000), schema)
    heads = {"seeds": max(1, 5 * options.width // 256), "head_width": options.width // 4}
    model = write_untrained_model(work / "model", sample, schema, width=options.width, **heads)
    if options.memory:
        found = measure_memory(options.memory, work, model.directory)
        print(json.dumps({"benchmark": "population_memory", "width": options.width, "sizes": found}))
        return
    users = write_population(work / f"own_{options.rows}", options.rows, 0)
    repeats = not options.sides or any(name.endswith("_dedup") for name in options.sides)
    sides = options.sides and {"ours", *options.sides, *(["ours_dedup"] if repeats else [])}
    repeating = (
        write_population(work / f"repeating_{options.rows}", options.rows, options.profiles) if repeats else users
    )
    count = [0]

    def ours(folder: Path, form: str, **more):
        def job() -> float:
            count[0] += 1
            out = work / f"out_{count[0]}"
            if more:
                from scaletot_jax.population.ray_engine import score_on_ray

                score_on_ray(model.directory, folder, out, Options(form=form, **more))
            else:
                score_table(model.directory, folder, out, Options(form=form))
            shutil.rmtree(out)
            return options.rows

        return job

    jobs, missing, seconds = {"ours": ours(users, "rows"), "ours_dedup": ours(repeating, "distinct")}, {}, {}
    worst = None
    try:
        from population_peer import Peer
    except ImportError as error:
        missing["pandas_torch"] = str(error)
    else:
        peer = Peer(model)
        worst = check_same(model, peer, users, work)
        print(f"largest difference from the peer: {worst:.1e} of a column's spread")

        def theirs(which: Peer, folder: Path, name: str):
            def job() -> float:
                done = which.score(folder, work / "peer")
                seconds[name] = {part: round(value / done * 1e6, 2) for part, value in which.seconds.items()}
                return done

            return job

        jobs["pandas_torch"] = theirs(peer, users, "pandas_torch")
        jobs["pandas_torch_dedup"] = theirs(peer, repeating, "pandas_torch_dedup")
        jobs["pandas_torch_bf16"] = theirs(Peer(model, bf16=True), users, "pandas_torch_bf16")
    if options.ray:
        jobs["ray"] = ours(users, "rows", shard_rows=max(1, options.rows // 10))
    jobs = {name: job for name, job in jobs.items() if not sides or name in sides}
    rates = in_turn(jobs, options.rounds, warm=not options.no_warm_up)
    alone = parts_alone(model.directory, users, work)
    table(rates, "rows/s")
    total = sum(alone.values())
    distinct = share_distinct(model, repeating) if repeats else None
    one = float(np.median(rates["ours"]))
    print(f"\nparts alone, µs a row: { {name: round(value * 1e6, 2) for name, value in alone.items()} }")
    print(f"one process: {one * 1e6:.2f} µs a row; its parts one after the other {total * 1e6:.2f}")
    print(f"peer's parts, µs a row: {seconds}")
    dedup = {}
    if distinct is not None:
        print(f"repeating table: {distinct:.4f} distinct profiles a row within a million rows")
        dedup = {
            "distinct_share": round(distinct, 5),
            "ours_dedup": round(1 / float(np.median(rates["ours_dedup"])), 2),
        }
    last_line(
        "population", rates, "rows/s", missing=missing, rows=options.rows, **dedup, **_against(rates),
        share_of_parts=round(total / one, 3), parts_us={name: round(value * 1e6, 3) for name, value in alone.items()},
        largest_difference=worst,
    )  # fmt: skip


def _against(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Peers' rates and our ratios to them; on the repeating table ours is the form ``distinct``."""
    median = {name: float(np.median(seconds)) for name, seconds in rates.items()}
    peers = {name: seconds for name, seconds in median.items() if not name.startswith("ours")}
    own = {name: median["ours_dedup" if name.endswith("_dedup") else "ours"] for name in peers}
    return {
        "peers": {name: round(1 / seconds, 2) for name, seconds in peers.items()},
        "ratio": {name: round(seconds / own[name], 2) for name, seconds in peers.items()},
    }


if __name__ == "__main__":
    main()
