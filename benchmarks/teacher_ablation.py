"""What is each part of the bounded entropy-guided search worth? Answers of held-out users, at one token bound.

    SCALETOT_DATA=<folder> python benchmarks/teacher_ablation.py --data oulad [--users 300] [--pilot 200]
    python benchmarks/teacher_ablation.py --data complete_journey

Arms, all under the same bounds of calls and tokens a profile:

    no_tree        one path, no revision
    fixed_beam     three paths, no revision
    entropy        two paths, one revision where the calibrated entropy is among the pilot's highest
    disagreement   the same where wordings disagree most
    both           the two together (the default, at .95), at thresholds q = .50, .70, .85, .95 of the pilot

The pilot and the judged users are disjoint, and labels are read only to judge (but for the aggregate base rate). For each
arm: RPS and Spearman of the direct answer and of the chain-conditioned one (the mean over the beam, by weight), the paired
difference in RPS from ``no_tree`` with a bootstrap interval by person, by cohort of profile sparsity; slot
self-consistency (how often one wording alone would have picked the chain's value); the share of revisions taken, and of
those how many changed the chosen values (the flip rate at the margin ``min_gain``).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
from teacher_setup import base_rate, make_reasoner, profiles_of

from scaletot_jax.chains.spec import load_spec
from scaletot_jax.config import default_config
from scaletot_jax.datasets.load import load
from scaletot_jax.evaluation.bootstrap import bootstrap, paired_difference
from scaletot_jax.evaluation.metrics import rps_rows, spearman
from scaletot_jax.lm.load import load_model
from scaletot_jax.profiles.render import Renderer
from scaletot_jax.teacher import calibrate, questions
from scaletot_jax.teacher.backend import stack
from scaletot_jax.teacher.reasoner import Reasoner
from scaletot_jax.teacher.store import Store
from scaletot_jax.teacher.tree import NO_VALUE

ARMS: dict[str, dict[str, Any]] = {
    "no_tree": {"beam": 1, "candidates": 1, "max_refined_nodes": 0},
    "fixed_beam": {"beam": 3, "candidates": 3, "max_refined_nodes": 0},
    "entropy": {"guide": "entropy"},
    "disagreement": {"guide": "disagreement"},
    **{f"both q={q:.2f}": {"guide": "both", "refine_quantile": q} for q in (0.50, 0.70, 0.85, 0.95)},
}
REFERENCE = "no_tree"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("oulad", "complete_journey"), default="complete_journey")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--pilot", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=1200, help="bound of every arm, a profile")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", default="smollm2")
    parser.add_argument("--quick", action="store_true", help="32 users, a pilot of 32")
    options = parser.parse_args()
    if options.quick:
        options.users = options.pilot = 32
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    show(result)
    line = {
        "benchmark": "teacher_ablation",
        "data": options.data,
        "users": options.users,
        "arms": {name: {k: v for k, v in arm.items() if np.isscalar(v)} for name, arm in result["arms"].items()},
        "rps_base_rate": result["rps_base_rate"],
        "seconds": round(time.perf_counter() - start, 1),
        "machine": harness.machine(),
        "versions": harness.versions("jax"),
    }
    print(json.dumps(line))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs all arms over one store: what two arms ask alike is computed once."""
    config = default_config()
    config.data.name = options.data
    table, schema = load(config.data.to_dict(), seed=options.seed)
    fields = schema.profile_fields("static+early")
    spec = load_spec(options.data)
    # One row a person, so that the pilot and the judged users are different people.
    people = table["group"].to_numpy(zero_copy_only=False)
    order = np.random.default_rng(options.seed).permutation(table.num_rows)
    _, first = np.unique(people[order], return_index=True)
    order = order[np.sort(first)]
    pilot_rows, rows = order[: options.pilot], order[options.pilot : options.pilot + options.users]
    chosen = set(people[np.concatenate([pilot_rows, rows])].tolist())
    others = table.filter(pa.array([person not in chosen for person in people.tolist()]))
    days = schema.labels.days.column
    base = base_rate(spec, others[days])
    users = table.take(pa.array(rows))
    label = users[days].to_numpy().astype(float)
    buckets = spec.bucket_of(label)
    renderer = Renderer.fit(others, fields)
    present = np.sum([users[field.name].is_valid().to_numpy(zero_copy_only=False) for field in fields], axis=0)
    cohorts = {"all": np.ones(len(rows), bool), "sparse": present <= np.median(present)}
    cohorts["rich"] = ~cohorts["sparse"]

    lm = load_model(options.weights)
    arms: dict[str, Any] = {}
    with Store(folder / "store.sqlite") as store:
        for name, changes in ARMS.items():
            settings = {**config.teacher.to_dict(), "max_tokens": options.max_tokens, **changes}
            reasoner = make_reasoner(spec, lm, store, settings, fields, renderer)
            calibration, _ = reasoner.pilot(profiles_of(reasoner, table.take(pa.array(pilot_rows)), fields), base)
            judged = profiles_of(reasoner, users, fields)
            records = reasoner.search(judged, calibration)
            direct = np.asarray([record["direct"] or base for record in records])
            chain = np.asarray([_over_beam(record, base) for record in records])
            refined = [n for record in records for n in record["nodes"] if n["refined"]]
            arms[name] = {
                "tokens": float(np.mean([record["tokens"] for record in records])),
                "calls": float(np.mean([record["calls"] for record in records])),
                "revisions": float(np.mean([record["refined"] for record in records])),
                **_flips(records, refined),
                "self_consistency": self_consistency(reasoner, judged, records, calibration),
                "rows": {"direct": rps_rows(buckets, direct), "chain": rps_rows(buckets, chain)},
                "spearman_direct": float(spearman(label, direct @ np.arange(spec.num_buckets))),
                "spearman_chain": float(spearman(label, chain @ np.arange(spec.num_buckets))),
            }
            print(f"{name}: done", flush=True)
    for arm in arms.values():
        for kind in ("direct", "chain"):
            arm[f"rps_{kind}"] = float(arm["rows"][kind].mean())
        arm["against"] = {
            f"{kind}, {cohort}": difference(arm["rows"][kind], arms[REFERENCE]["rows"][kind], member)
            for kind in ("direct", "chain")
            for cohort, member in cohorts.items()
        }
    base_rows = rps_rows(buckets, np.tile(base, (len(rows), 1)))
    return {
        "arms": arms,
        "rps_base_rate": float(base_rows.mean()),
        "cohorts": {k: int(v.sum()) for k, v in cohorts.items()},
    }


def _over_beam(record: dict[str, Any], base: np.ndarray) -> np.ndarray:
    """The chain-conditioned answer: the beam's answers by their weights."""
    pairs = [(c["weight"], c["answer"]) for c in record["chains"] if c["answer"] is not None]
    if not pairs:
        return np.asarray(record["direct"] or base)
    weights = np.asarray([weight for weight, _ in pairs])
    return weights @ np.asarray([answer for _, answer in pairs]) / weights.sum()


def _flips(records: list[dict[str, Any]], refined: list[dict[str, Any]]) -> dict[str, float]:
    """Share of revisions taken, and how often one that was taken changed the most probable values."""
    expansions: dict[tuple[int, int, int], dict[str, Any]] = {}
    for number, record in enumerate(records):
        for node in record["nodes"]:
            if node["refined"]:
                found = expansions.setdefault(
                    (number, node["parent"], node["depth"]), {"taken": False, "old": [], "new": []}
                )
                found["taken"] |= node["refinement_accepted"]
                found["old" if node["reason"] == "replaced by the revision" else "new"].append(node)
    taken = [e for e in expansions.values() if e["taken"] and e["old"] and e["new"]]
    top = [[max(e[which], key=lambda n: n["probability"])["values"] for which in ("old", "new")] for e in taken]
    return {
        "revisions_taken": len(taken) / max(1, len(expansions)) if refined else 0.0,
        "flip_rate": float(np.mean([old != new for old, new in top])) if top else 0.0,
    }


def self_consistency(reasoner: Reasoner, profiles, records, calibration) -> float:
    """Share of judged slots and single wordings whose most probable value is the chain's."""
    spec, by_key = reasoner.spec, {p.key: record for p, record in zip(profiles, records)}
    hits: list[bool] = []
    for members in reasoner.batches(profiles):
        batch = reasoner.backend.open([p.ids for p in members])
        cases = [reasoner._case(p, calibration.dropped) for p in members]
        for k, segment in enumerate(spec.segments):
            rows = [row for row, case in enumerate(cases) if case.segments[k].scored]
            paths = {row: _path(spec, by_key[members[row].key]["chains"][0]["values"]) for row in rows}
            asked = [
                questions.segment_question(spec, row, cases[row], k, paths[row][:k], calibration.stems) for row in rows
            ]
            for row, (scores, _) in zip(rows, batch.ask(asked, full=calibration.mode == "full") if asked else []):
                start = 0
                for s, (slot, fixed) in enumerate(zip(segment.slots, cases[row].segments[k].fixed)):
                    if fixed != NO_VALUE:
                        continue
                    count = len(calibration.stems[slot.name])
                    raw = stack(scores[start : start + count], calibration.mode)
                    start += count
                    best = calibrate.by_stem(raw, calibration.means[slot.name]).argmax(-1)
                    value = slot.values[paths[row][k][s]]
                    hits += [slot.scored_values[int(b)] == value for b in best]
        batch.commit()
    return float(np.mean(hits)) if hits else float("nan")


def _path(spec, values) -> list[tuple[int, ...]]:
    """A chain's texts as value numbers, one tuple a segment."""
    out, rest = [], list(values)
    for segment in spec.segments:
        out.append(tuple(slot.values.index(rest.pop(0)) for slot in segment.slots))
    return out


def difference(rows: np.ndarray, reference: np.ndarray, member: np.ndarray) -> tuple[float, float, float] | None:
    """Mean RPS of an arm minus the reference's, with its 95 % interval; None where a cohort is too small to tell."""
    if member.sum() < 30:
        return None
    mine, theirs = rows[member], reference[member]
    samples = bootstrap(
        {"mine": lambda w: w @ mine / w.sum(-1), "theirs": lambda w: w @ theirs / w.sum(-1)},
        np.arange(len(mine)),
        resamples=2000,
        seed=0,
    )
    found = paired_difference(mine.mean(), theirs.mean(), samples["mine"], samples["theirs"], 0.95)
    return (found.estimate, found.low, found.high)


def show(result: dict[str, Any]) -> None:
    print(f"\nbase rate RPS {result['rps_base_rate']:.4f}; cohorts {result['cohorts']}")
    columns = ("rps_direct", "rps_chain", "spearman_direct", "spearman_chain", "self_consistency")
    more = ("tokens", "calls", "revisions", "revisions_taken", "flip_rate")
    print("| arm | " + " | ".join((*columns, *more)) + " |")
    print("|---" * (1 + len(columns) + len(more)) + "|")
    for name, arm in result["arms"].items():
        cells = [f"{arm[c]:.4f}" for c in columns] + [f"{arm[c]:.2f}" for c in more]
        print(f"| {name} | " + " | ".join(cells) + " |")
    kinds = list(next(iter(result["arms"].values()))["against"])
    print(f"\nRPS minus that of {REFERENCE}, [95 %] (negative is better)")
    print("| arm | " + " | ".join(kinds) + " |")
    print("|---" * (1 + len(kinds)) + "|")
    for name, arm in result["arms"].items():
        cells = ["too few" if d is None else f"{d[0]:+.4f} [{d[1]:+.4f}, {d[2]:+.4f}]" for d in arm["against"].values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
