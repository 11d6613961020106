"""Does the teacher order people? Spearman of its expected bucket and RPS on OULAD, label-blind but for the base rate.

    SCALETOT_DATA=<folder with oulad/users.parquet> python benchmarks/teacher_oulad.py [--quick] [--direct-only]

The pilot and the search see the users' fields only; labels are used to judge. Beside the teacher stand the best single
column (its sign chosen in hindsight, so an upper bound for columns) and, for RPS, the base rate of the other users.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
import pyarrow as pa
from teacher_setup import base_rate, make_reasoner, profiles_of

from scaletot_jax.chains.spec import load_spec
from scaletot_jax.config import default_config
from scaletot_jax.datasets.load import load
from scaletot_jax.evaluation.metrics import rps, spearman
from scaletot_jax.lm.load import load_model
from scaletot_jax.profiles.render import Renderer
from scaletot_jax.teacher import calibrate, questions
from scaletot_jax.teacher.backend import stack
from scaletot_jax.teacher.reasoner import Reasoner
from scaletot_jax.teacher.records import answers
from scaletot_jax.teacher.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="smollm2")
    parser.add_argument("--quick", action="store_true", help="64 users")
    parser.add_argument(
        "--direct-only", action="store_true", help="score the direct answer alone, without pilot or search"
    )
    options = parser.parse_args()
    if "SCALETOT_DATA" not in os.environ:
        sys.exit("SCALETOT_DATA is not set: it names the folder that holds oulad/users.parquet")
    count = 64 if options.quick else options.users
    with tempfile.TemporaryDirectory() as folder:
        print_result(measure(count, options.seed, options.weights, options.direct_only, Path(folder)), count)


def measure(count: int, seed: int, weights: str, direct_only: bool, folder: Path) -> dict[str, float]:
    """Answers ``count`` random users and judges the answers. Returns the numbers of the table."""
    config = default_config()
    config.data.name, config.data.low_activity = "oulad", False
    table, schema = load(config.data.to_dict(), seed=seed)
    order = np.random.default_rng(seed).permutation(table.num_rows)
    users, others = table.take(pa.array(np.sort(order[:count]))), table.take(pa.array(np.sort(order[count:])))
    fields = schema.profile_fields("static+early")
    renderer, spec = Renderer.fit(others, fields), load_spec("oulad")
    label = users[schema.labels.days.column].to_numpy().astype(float)
    bucket = spec.bucket_of(label)
    base = base_rate(spec, others[schema.labels.days.column])

    settings = {**config.teacher.to_dict(), "num_profiles": count, "pilot_profiles": count}
    lm = load_model(weights)
    out: dict[str, float] = {}
    with Store(folder / "store.sqlite") as store:
        reasoner = make_reasoner(spec, lm, store, settings, fields, renderer)
        profiles = profiles_of(reasoner, users, fields)
        start = time.perf_counter()
        found: dict[str, np.ndarray] = {}
        if direct_only:
            found["direct"] = direct_answers(reasoner, profiles, base)
        else:
            calibration, evidence = reasoner.pilot(profiles, base)
            out["pilot_seconds_per_profile"] = (time.perf_counter() - start) / count
            records = reasoner.search(profiles, calibration)
            pairs = [answers(record, 0, base) for record in records]
            found = {name: np.asarray([pair[name] for pair in pairs]) for name in ("direct", "chain", "pooled")}
            out["search_tokens_per_profile"] = float(np.mean([record["tokens"] for record in records]))
            out["revisions_per_profile"] = float(np.mean([record["refined"] for record in records]))
            taken = [n["refinement_accepted"] for r in records for n in r["nodes"] if n["refined"] and n["kept"]]
            out["revisions_accepted"] = float(np.mean(taken)) if taken else 0.0
            out["pilot_tokens_per_profile"] = evidence["tokens"] / count
            print(f"scoring mode {calibration.mode}, dropped slots {sorted(calibration.dropped)}")
            print(f"polarity {evidence['polarity']}")
            print(f"thresholds {evidence['thresholds']}")
        out["seconds_per_profile"] = (time.perf_counter() - start) / count
        out["tokens_run_per_profile"] = reasoner.backend.scorer.tokens / count
        out["tokens_run_with_padding_per_profile"] = reasoner.backend.scorer.padded / count
    for name, p in found.items():
        out[f"spearman_{name}"] = float(spearman(label, p @ np.arange(spec.num_buckets)))
        out[f"rps_{name}"] = float(rps(bucket, p))
    out["rps_base_rate"] = float(rps(bucket, np.tile(base, (count, 1))))
    columns = {f.name: users[f.name].cast(pa.float64()).fill_null(0.0).to_numpy() for f in fields if f.kind == "number"}
    strength = {name: abs(float(spearman(label, column))) for name, column in columns.items()}
    best = max(strength, key=lambda name: strength[name])
    out["spearman_best_column"] = strength[best]
    print(f"best single column: {best}")
    return out


def direct_answers(reasoner: Reasoner, profiles, base) -> np.ndarray:
    """The calibrated direct answers [users, Kb], without any chain."""
    raw: dict[str, np.ndarray] = {}
    for members in reasoner.batches(profiles):
        batch = reasoner.backend.open([p.ids for p in members])
        asked = [questions.answer_question(reasoner.spec, row, ()) for row in range(len(members))]
        for member, (scores, _) in zip(members, batch.ask(asked)):
            raw[member.key] = stack(scores, "trie")
    scores = np.stack([raw[p.key] for p in profiles])
    mean = calibrate.pilot_mean(scores)
    return calibrate.pooled(scores, mean, np.log(base))


def print_result(out: dict[str, float], count: int) -> None:
    width = max(map(len, out))
    for name, value in out.items():
        print(f"{name:<{width}}  {value:.4f}")
    best = {"best_column": out["spearman_best_column"]}
    line = {
        "benchmark": "teacher_oulad",
        "ours": out["spearman_direct"],
        "peers": best,
        "ratio": {name: out["spearman_direct"] / value for name, value in best.items()},
        "unit": "Spearman with the active days of the next 30",
        "users": count,
        "detail": out,
        "machine": harness.machine(),
        "versions": {"python": platform.python_version(), **harness.versions("jax", "numpy")},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
