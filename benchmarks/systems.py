"""SFT alone, SFT + GRPO, SFT + PRIME, SFT + OSIPO, each as a whole line to ẑ and the heads that read it: which serves best?

    SCALETOT_DATA=… python benchmarks/systems.py --recipe configs/oulad.py --workdir DIR [--draws 3] [--share 0.0732] \\
        [--systems osipo sft …] [--config.section.key=value …]

The stages ``prepare``, ``teach`` and ``sft`` are made once, in DIR/base, and copied; each system then goes through ``osipo``,
``distill`` and ``coverage`` with the same seeds, the same reasoned users and the same labelled rows. ``no gradient`` is OSIPO's
loop without a policy gradient: its anchors alone. ``sft`` reads the states of the student before OSIPO. A run that was killed
goes on where it was; one that is there already is read.

Judged is ẑ everywhere at one share of the coverage curve: RPS skill over the base rate on the test rows, and every system's
difference from SFT, over the draws as in :mod:`scaletot_jax.evaluation.draws` (one draw: a bootstrap of the test users), with
Holm's correction over the systems. Beside them stand the head without ẑ and the encoder of labels alone, which know no student. The
student is one a system: differences include the luck of that training. PRIME and GRPO keep this stage's warm-ups, anchors and
stop rules; only what docs/training.md names differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import harness
import numpy as np
import pyarrow.compute as pc

from scaletot_jax.evaluation import draws
from scaletot_jax.evaluation.bootstrap import percentile_interval
from scaletot_jax.evaluation.coverage import EVERYWHERE, LABELS, PROFILE
from scaletot_jax.evaluation.family import bootstrap_p, holm
from scaletot_jax.files import read_json, read_table

SYSTEMS: dict[str, dict[str, str]] = {
    "osipo": {},
    "sft": {"distill.student": "sft"},
    "no gradient": {"osipo.process_weight": "0", "osipo.outcome_weight": "0"},
    "grpo": {
        "osipo.process_weight": "0", "osipo.baseline": "group_mean", "osipo.scale": "group_std", "osipo.min_scale": "1e-6",
        "osipo.ratio": "token", "osipo.aggregation": "sequence_mean", "osipo.clip_high": "0.2", "osipo.kl_weight": "0.04",
    },
    "prime": {
        "osipo.estimator": "prime", "osipo.outcome_weight": "5", "osipo.process_weight": "5", "osipo.ratio": "token",
        "osipo.aggregation": "token_mean", "osipo.clip_high": "0.2", "osipo.kl_weight": "0", "osipo.beta": "0.05",
    },
}  # fmt: skip
RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
ENCODER_OF_LABELS = "labels"  # the rival that no student takes part in; made beside the first system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.0732)
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    options, changes = parser.parse_known_args()
    names = ["osipo", *(name for name in options.systems if name != "osipo")]  # sft reads a run in which osipo is done

    base = options.workdir / "base"
    for stage in ("prepare", "teach", "sft"):
        scaletot(stage, options.recipe, base, changes)
    seconds = {}
    for name in names:
        began = time.perf_counter()
        make(name, options, changes)
        seconds[name] = time.perf_counter() - began
    found = {labels: judge(options.workdir, names, labels, options.draws) for labels in LABELS}
    for labels, rows in found.items():
        show(labels, rows)
    students = {name: student(options.workdir / folder(name), name) for name in names}
    for name, said in students.items():
        print(f"{name:14} its own answers on held-out users: {json.dumps(said)}")
    print(
        json.dumps(
            {
                "benchmark": "systems", "recipe": options.recipe, "share": options.share, "draws": options.draws,
                "changes": changes, "labels": found, "students": students,
                "seconds_of_this_call": {name: round(value) for name, value in seconds.items()}, "machine": harness.machine(),
            }
        )
    )  # fmt: skip


def folder(name: str) -> str:
    return name.replace(" ", "_")


def make(name: str, options: argparse.Namespace, changes: list[str]) -> None:
    """The stages after SFT of one system, in a copy of what it shares with the others."""
    place = options.workdir / folder(name)
    if not place.exists():
        part = place.with_name(place.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(options.workdir / ("osipo" if name == "sft" else "base"), part)
        for later in ("distill", "coverage"):
            shutil.rmtree(part / later, ignore_errors=True)
        part.rename(place)
    rivals = ENCODER_OF_LABELS if name == "osipo" else ""
    own = [f"--config.{key}={value}" for key, value in SYSTEMS[name].items()]
    own += [f"--config.distill.placebos=[{rivals}]", f"--config.coverage.draws={options.draws}"]
    own += [f"--config.coverage.points=[{options.share}]"]
    for stage in ("osipo", "distill", "coverage"):
        scaletot(stage, options.recipe, place, [*changes, *own])


def scaletot(verb: str, recipe: str, workdir: Path, changes: list[str]) -> None:
    program = "import sys; from scaletot_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, verb, "--config", recipe, "--workdir", str(workdir), *changes]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"systems.py: {verb} of {workdir} did not end well; type the same command to go on")


def judge(workdir: Path, names: list[str], labels: str, count: int) -> dict[str, dict]:
    """System → skill by draw and its mean, and the difference from SFT with its interval and p, where there is one.

    Empty where some draw had too few reasoned users or labelled rows to be judged.
    """
    by_system: dict[str, list[np.ndarray]] = {}
    rows = None
    for name in names:
        table = read_table(workdir / folder(name) / "coverage" / "coverage.parquet")
        table = table.filter(pc.equal(table["labels"], labels))
        rivals = {EVERYWHERE: name}
        if name == "osipo":
            rivals |= {PROFILE: "profile alone", ENCODER_OF_LABELS: "labels only"}
        for system, shown in rivals.items():
            own = table.filter(pc.equal(table["system"], system)).sort_by([("draw", "ascending"), ("row", "ascending")])
            if len(set(own["draw"].to_pylist())) < count:
                return {}
            by_system[shown] = list(own["rps"].to_numpy().reshape(count, -1))
            first = own["row"].to_numpy()[: len(own) // count]
            assert rows is None or (rows == first).all()  # the same test rows in the same order
            rows = first
    assert rows is not None
    base, groups = base_rate_of(workdir / folder(names[0]), rows)

    by_draw = [{name: found[draw] for name, found in by_system.items()} for draw in range(count)]
    points, samples = draws.skills(by_draw, base, groups, resamples=RESAMPLES, seed=SEED)
    out = {}
    for name, point in points.items():
        out[name] = {"skill": float(point.mean()), "by_draw": point.round(4).tolist()}
        if name == "sft" or "sft" not in points:
            continue
        difference, over_test = point - points["sft"], samples[name] - samples["sft"]
        if len(point) > 1:
            gain = draws.gain(difference, over_test, LEVEL)
            interval, p = gain.interval, gain.p
        else:
            interval = percentile_interval(float(difference[0]), over_test, LEVEL)
            p = bootstrap_p(over_test)
        out[name] |= {"minus_sft": [round(float(value), 4) for value in interval], "p": p}
    for name, p in holm({name: row["p"] for name, row in out.items() if "p" in row}).items():
        out[name]["p_holm"] = p
    return out


def base_rate_of(run: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RPS of the base rate for these rows, as stage coverage measures it, and the rows' groups."""
    from scaletot_jax.evaluation.metrics import rps_rows
    from scaletot_jax.profiles.schema import Schema
    from scaletot_jax.student.labelled import base_rate

    table = read_table(run / "prepare" / "population.parquet")
    label = Schema.from_dict(read_json(run / "prepare" / "schema.json")["schema"]).labels.days
    y = table[label.column].to_numpy()
    known = np.isin(np.asarray(table["split"].to_pylist()), ("distill", "head"))
    distribution = base_rate(y[known].astype(np.int64), label.horizon + 1)
    groups = np.asarray(table["group"].to_pylist(), object)
    return rps_rows(y[rows], np.tile(distribution, (len(rows), 1))), groups[rows]


def student(run: Path, name: str) -> dict[str, float]:
    """RPS skill and Spearman of the student's own answers on held-out users."""
    stage = "sft" if name == "sft" else "osipo"
    scores = read_json(run / stage / "scores.json")
    last = scores[list(scores)[-1]]
    return {key: round(value, 4) for key, value in last.items() if isinstance(value, float)}


def show(labels: str, rows: dict[str, dict]) -> None:
    print(f"\nlabels {labels}: RPS skill of the head with ẑ" if rows else f"\nlabels {labels}: too few to be judged")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["skill"]):
        minus = row.get("minus_sft")
        tail = (
            f"   minus sft {minus[0]:+.4f} [{minus[1]:+.4f}, {minus[2]:+.4f}], p {row['p']:.3f}, {row['p_holm']:.3f} after Holm"
            if minus
            else ""
        )
        print(f"{name:14} {row['skill']:.4f}  by draw {' '.join(f'{value:.3f}' for value in row['by_draw'])}{tail}")


if __name__ == "__main__":
    main()
