"""A finished run directory with made-up artifacts of every stage, in the form the stages write them, for the report's tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.config import default_config
from scaletot_jax.evaluation.bootstrap import Interval
from scaletot_jax.evaluation.verdict import Gain
from scaletot_jax.evaluation.verdict import verdict as evaluated_verdict
from scaletot_jax.files import write_json, write_table
from scaletot_jax.profiles.features import FeatureSpace, NumberScale
from scaletot_jax.profiles.fields import Field
from scaletot_jax.run import STAGES, Run, Stage
from scaletot_jax.step_log import StepLog

CANARY = "<script>alert('canary')</script>"
USER = "user-4711-secret"
SPEC = """
name: shop
version: 1
instruction: Describe this user.
segments:
  - name: context
    title: Context
    slots:
      - {name: life, source: scored, ordered: true, values: [settled, moving, unknown], stems: [The user is, This user is]}
  - name: interests
    title: Interests
    slots:
      - {name: taste, source: scored, values: [fresh food, "<script>alert('canary')</script>", unknown], stems: [Likes, Buys]}
  - name: outlook
    title: Outlook
    slots:
      - name: outlook
        source: rule
        values: [weekly, unknown]
        rule: {kind: presence, field: city, present: weekly}
answer:
  title: Days
  label: lt30
  buckets: [[0, 0], [1, 1], [2, 3], [4, 30]]
  words: [" none", " one", " few", " many"]
  phrases: [" 0 days", " 1 day", " 2-3 days", " 4-30 days"]
  stems: [It will be active on, Active days]
"""
SLOTS = (
    ("context", ("settled", "moving", "unknown")),
    ("interests", ("fresh food", CANARY, "unknown")),
    ("outlook", ("weekly", "unknown")),
)
METRICS = ("spearman", "auc", "normalised_gini", "rmse", "rps")
LOWER = ("rmse", "rps")
SYSTEMS = ("constant", "ridge", "profile", "profile_z", "profile_z_shuffled", "profile_z_untrained")


def make_run(
    workdir: Path,
    *,
    stages: tuple[str, ...] = STAGES[:-1],
    word: str = "cannot be told at this size",
    spec: bool = True,
    **values: Any,
) -> Run:
    """A run with the given stages finished. ``values``: dotted configuration keys."""
    config = default_config().to_dict()
    if spec:
        path = workdir.parent / "shop.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SPEC)
        config["lm"]["chain_spec"] = str(path)
    config["data"]["name"] = "parquet"
    config["osipo"]["updates"] = 12
    config["report"]["chains"] = 2
    for key, value in values.items():
        section, name = key.split("__")
        config[section][name] = value
    run = Run(workdir, config)
    for name in stages:
        _WRITERS[name](run, np.random.default_rng(7), word)
    return run


def key_of(i: int) -> str:
    return hashlib.sha256(f"profile {i}".encode()).hexdigest()


def _open(run: Run, name: str, *needs: str) -> Stage:
    stage = run.stage(name, sections=("seed", name) if name in run.config else ("seed",), needs=needs)
    stage.directory.mkdir(parents=True, exist_ok=True)
    return stage


def _prepare(run: Run, rng: np.random.Generator, word: str) -> None:
    stage = _open(run, "prepare")
    count = 40
    cities = [CANARY if i % 2 else "Arden" for i in range(count)]
    table = pa.table(
        {
            "row": np.arange(count),
            "user_id": [f"{USER}-{i}" for i in range(count)],
            "group": [f"{USER}-{i}" for i in range(count)],
            "split": ["teacher" if i < 20 else "head" if i < 30 else "test" for i in range(count)],
            "exact_key": [key_of(i) for i in range(count)],
            "city": cities,
            "visits": rng.integers(0, 9, count).astype(float),
            "lt30": rng.integers(0, 30, count),
        }
    )
    write_table(stage.path("population.parquet"), table)
    fields = [
        {"name": "city", "kind": "enum", "role": "static", "values": ["Arden", CANARY]},
        {"name": "visits", "kind": "number", "role": "early", "unit": "visits"},
    ]
    write_json(stage.path("renderer.json"), {"fields": fields, "cuts": {"visits": [1.0, 2.0, 4.0, 6.0]}})
    summary = {
        "schema": "shop",
        "rows": 9834,
        "users": 2011,
        "splits": {"teacher": 2103, "distill": 1720, "head": 2511, "val": 711, "test": 1030, "unused": 1759},
        "distinct_profiles": {"exact": 9820, "coarse": 612},
        "repetition": {"exact": 0.0027, "coarse": 0.981},
        "labels": {
            "lt30": {"mean": 1.91, "zero_share": 0.334, "max": 19.0},
            "ltv30": {"mean": 48.2, "zero_share": 0.334, "max": 1204.5},
        },
    }
    write_json(stage.path("features.json"), _features(fields, cities, table["visits"].to_numpy()))
    stage.finish(["population.parquet", "renderer.json", "features.json"], summary)


def _features(fields: list[dict[str, Any]], cities: list[str], visits: np.ndarray) -> dict[str, Any]:
    scale = NumberScale.fit(visits)
    return FeatureSpace(
        tuple(Field.model_validate(field) for field in fields),
        {"city": ("[missing]", "[unknown]", *sorted(set(cities)))},
        {},
        {"visits": scale},
    ).to_dict()


def _teach(run: Run, rng: np.random.Generator, word: str) -> None:
    stage = _open(run, "teach", "prepare")
    chains, nodes = [], []
    for i in range(30):
        rows, selected = _tree(rng, key_of(i), refine=i % 3 == 0, accept=i % 2 == 0)
        nodes += rows
        answers = [rng.dirichlet(np.ones(4)).tolist() for _ in range(3)]
        chains.append(
            {
                "exact_key": key_of(i), "rank": 0, "weight": 1.0, "values": selected,
                "distributions": [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [1.0, 0.0]],
                "answer_direct": answers[0], "answer_chain": answers[1], "answer": answers[2],
                "log_prob": -1.2, "accepted": i != 4, "reason": "" if i != 4 else f"duplicate {CANARY}",
                "budget": i == 5, "calls": 9 + i % 3, "tokens": 400 + 10 * i,
            }
        )  # fmt: skip
    write_table(stage.path("chains.parquet"), pa.Table.from_pylist(chains))
    write_table(stage.path("nodes.parquet"), pa.Table.from_pylist(nodes))
    write_json(stage.path("pilot.json"), {"scoring": {"chosen": "trie"}})
    summary = {
        "funnel": {"profiles": 30, "pilot_profiles": 30, "accepted": 29, "out_of_budget": 1},
        "calls": {"pilot": 210, "search": 300, "most": 11}, "tokens": {"pilot": 9000, "search": 16350, "most": 690},
        "entropy": {"context": 0.7}, "revisions": {"asked": 20, "accepted": 10, "rate": 0.5}, "scoring": "trie", "dropped_slots": [],
    }  # fmt: skip
    stage.finish(["chains.parquet", "nodes.parquet", "pilot.json"], summary)


def _tree(rng: np.random.Generator, key: str, *, refine: bool, accept: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """A beam of two over two judged segments and one by rule, in the form of nodes.parquet."""
    rows: list[dict[str, Any]] = []

    def node(depth: int, parent: int, segment: str, values: list[str], **fields: Any) -> int:
        default = {
            "probability": 1.0, "entropy": 0.0, "disagreement": 0.0, "uncertainty": 0.0, "threshold": 0.0, "refined": False,
            "refinement_accepted": False, "kept": True, "reason": "",
        }  # fmt: skip
        rows.append(
            {
                "exact_key": key,
                "depth": depth,
                "node": len(rows) + 1,
                "parent": parent,
                "segment": segment,
                "values": values,
                **default,
                **fields,
            }
        )
        return len(rows)

    beam, selected = [(0, [])], []
    for depth, (segment, values) in enumerate(SLOTS[:2], 1):
        grown = []
        for parent, path in beam:
            judged = {
                "entropy": float(rng.uniform(0.4, 1.0)),
                "disagreement": float(rng.uniform(0, 0.5)),
                "threshold": 0.6,
            }
            judged["uncertainty"] = 0.5 * (judged["entropy"] + judged["disagreement"])
            revised = refine and parent == beam[0][0]
            if revised and accept:
                before = {**judged, "entropy": judged["entropy"] + 0.2, "uncertainty": judged["uncertainty"] + 0.2}
                for value, p in zip(values, (0.4, 0.35, 0.25)):
                    node(
                        depth,
                        parent,
                        segment,
                        [value],
                        probability=p,
                        kept=False,
                        refined=True,
                        refinement_accepted=True,
                        reason="replaced by the revision",
                        **before,
                    )
            for value, p in zip(values, (0.55, 0.3, 0.15)):
                mark = {"refined": revised, "refinement_accepted": revised and accept}
                grown.append(
                    (
                        p,
                        node(
                            depth,
                            parent,
                            segment,
                            [value],
                            probability=p,
                            kept=False,
                            reason="outside the beam",
                            **mark,
                            **judged,
                        ),
                        [*path, value],
                    )
                )
        grown.sort(key=lambda item: (-item[0], item[1]))
        for _, number, _ in grown[:2]:
            rows[number - 1] |= {"kept": True, "reason": ""}
        beam = [(number, path) for _, number, path in grown[:2]]
    for parent, path in beam:
        node(3, parent, "outlook", ["weekly"])
        selected = selected or [*path, "weekly"]
    return rows, selected


def _held_out(rps: float) -> dict[str, float]:
    return {
        "rps": rps,
        "base_rate_rps": 0.1457,
        "skill": 1 - rps / 0.1457,
        "spearman": 0.31,
        "users": 200,
        "valid_rate": 1.0,
    }


def _sft(run: Run, rng: np.random.Generator, word: str) -> None:
    stage = _open(run, "sft", "prepare", "teach")
    log = StepLog(stage.path("steps.jsonl"), keep_through=0)
    for step in range(1, 61):
        loss = 3.2 * np.exp(-step / 15) + 0.7 + 0.05 * rng.normal()
        log.append(step, loss=loss, answer_loss=1.4 * loss, weight=300.0, grad_norm=1.0)
    log.close()
    held_out = {"base": _held_out(0.1702), "sft": _held_out(0.1391)}
    summary = {
        "profiles": 29,
        "chains": 44,
        "truncated_profiles": 0,
        "prompt_tokens": 120,
        "chain_tokens": 36,
        "steps": 60,
        "layers": 15,
        "held_out": held_out,
    }
    stage.finish(["steps.jsonl"], summary)


def _osipo(run: Run, rng: np.random.Generator, word: str) -> None:
    stage = _open(run, "osipo", "prepare", "teach", "sft")
    log = StepLog(stage.path("steps.jsonl"), keep_through=0)
    for step in range(1, 13):
        log.append(
            step, loss=0.1, outcome=0.86 + 0.002 * step + 0.003 * rng.normal(), outcome_variance=3e-4, kl=0.02 * step, entropy=0.6 - 0.01 * step,
            value_auc=0.5 + 0.02 * rng.normal(), value_pairs=40.0, chain_tokens=34.5, valid_rate=1.0, grad_norm=float("nan"),
            **{f"credit_{k}": 0.5 + 0.1 * k + 0.01 * step for k in range(3)}, **{f"process_reward_{k}": 0.01 * step * (k - 1) for k in range(3)},
        )  # fmt: skip
    log.close()
    held_out = {"base": _held_out(0.1702), "sft": _held_out(0.1391), "osipo": _held_out(0.1379)}
    stage.finish(
        ["steps.jsonl"],
        {"updates": 12, "osipo_signal": True, "outcome_variance": 3e-4, "process_stopped": {}, "held_out": held_out},
    )


def _distill(run: Run, rng: np.random.Generator, word: str) -> None:
    stage = _open(run, "distill", "prepare", "teach", "sft", "osipo")
    unseen = [
        {
            "segment": name, "dim": 64, "held_out": 40, "r2": 0.41 + 0.05 * i, "ceiling": 0.83, "ceiling_single_chain": 0.6, "r2_by_variance": 0.62,
            "ceiling_by_variance": 0.9, "retrieval": {"recall_at_1": 0.2, "recall_at_10": 0.7, "mrr": 0.4, "pool": 40, "chance_recall_at_1": 0.025, "chance_mrr": 0.1},
        }
        for i, (name, _) in enumerate(SLOTS)
    ]  # fmt: skip
    transfer = {"unseen_groups": unseen, "trained_groups": [{**row, "held_out": 21, "r2": 0.77} for row in unseen]}
    summary = {
        "profiles": {"total": 422, "train": 321, "select": 40, "held_out": 61, "from_teacher": 201, "held_out_unseen_groups": 40, "of_them_with_a_trained_profile": 3},
        "chains": 4, "layer": 11, "training": {"steps": 2000, "kept_step": 1500, "select_error": 0.4}, "transfer": transfer,
        "probe": {"candidates": [8, 10, 12, 15], "layer": 11, "reason": "best cross-validated R² of the days label", "r2": {"8": 0.11, "10": 0.14, "12": 0.12, "15": -0.02}},
    }  # fmt: skip
    log = StepLog(stage.path("steps.jsonl"), keep_through=0)
    for step in range(25, 2001, 25):
        log.append(step, select_error=1.6 - 0.0004 * step, loss=3.0)
    log.close()
    stage.finish(["steps.jsonl"], summary)


def _score(run: Run, rng: np.random.Generator, word: str) -> None:
    stage = _open(run, "score", "prepare", "distill")
    z = rng.normal(size=(40, 4)).astype(np.float16)
    shard = pa.table({"row": np.arange(40), "embedding": pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), 4)})
    write_table(stage.path("part-00000.parquet"), shard)
    shards = [{"file": "part-00000.parquet", "rows": 40}]
    write_json(stage.path("manifest.json"), {"format": 1, "rows": 9834, "dim": 64, "shards": shards})
    stage.finish(["manifest.json"], {"rows": 9834, "shards": 1, "dim": 64, "dtype": "float16"})


def _evaluate(run: Run, rng: np.random.Generator, word: str) -> None:
    stage = _open(run, "evaluate", "prepare", "teach", "distill", "score")
    targets = {
        label: {
            "kind": kind,
            "horizon": horizon,
            "features": {features: _comparison(rng, kind, word, features) for features in ("static+early", "static")},
        }
        for label, kind, horizon in (("lt30", "days", 30), ("ltv30", "value", None))
    }
    metrics = {
        "rows": {"head": 2511, "val": 711, "test": 1030, "test_groups": 371},
        "bootstrap": {"resamples": 1000, "level": 0.95, "unit": "group"},
        "seeds": 5,
        "audit": {
            "groups": {"teacher": 500, "test": 371},
            "trained_groups": 903,
            "overlap": 0,
            "days_between_training_labels_and_evaluation": 0,
        },
        "metrics": {name: {"definition": name, "better": "lower" if name in LOWER else "higher"} for name in METRICS},
        "systems": {name: {"order": place} for place, name in enumerate(SYSTEMS)},
        "families": {
            "required": ["profile"],
            "note": "Holm's correction over the required rivals, and apart from them over all other systems",
        },
        "slices": {"seen": {"teacher": "…", "head": "…"}, "min_rows": 30, "min_groups": 10},
        "targets": targets,
        "verdict": targets["lt30"]["features"]["static+early"]["verdict"],
    }
    write_json(stage.path("metrics.json"), metrics)
    write_table(stage.path("predictions.parquet"), _predictions(rng))
    expected = rng.gamma(2.0, 1.0, 40)
    served = {"row": np.arange(40), "user_id": [f"{USER}-{i}" for i in range(40)]}
    served |= {
        "expected_lt30": expected.astype(np.float32),
        "p_positive_lt30": (1 - np.exp(-expected)).astype(np.float32),
    }
    write_table(stage.path("population.parquet"), pa.table(served))
    stage.finish(
        ["metrics.json", "predictions.parquet", "population.parquet"],
        {"rows": metrics["rows"], "verdict": metrics["verdict"]},
    )


def _predictions(rng: np.random.Generator) -> pa.Table:
    """Test rows 30..39, several times over, for the heads without and with ẑ."""
    rows = np.tile(np.arange(30, 40), 20)
    parts = []
    for system in ("profile", "profile_z"):
        expected = rng.gamma(2.0, 1.0, len(rows)).round(2)
        columns = {
            "row": rows,
            "target": ["lt30"] * len(rows),
            "features": ["static+early"] * len(rows),
            "system": [system] * len(rows),
        }
        parts.append(
            pa.table(columns | {"label": rng.poisson(expected).astype(float), "expected": expected.astype(np.float32)})
        )
    return pa.concat_tables(parts)


def add_coverage(run: Run, usd: float = 0.001) -> None:
    """A coverage curve of four points, the first of which was not run; the second was judged over three draws.

    ``usd``: price of a user.
    """
    stage = _open(run, "coverage", "prepare", "teach", "sft", "osipo", "distill")

    def gains(share: float) -> dict[str, Any]:
        row = {"estimate": 0.01 * share, "low": 0.01 * share - 0.004, "high": 0.01 * share + 0.004}
        both = {metric: row for metric in ("rps_skill", "spearman")}
        others = [f"{use} - profile" for use in ("everywhere", "own")]
        return {name: both for name in [*others, *(f"everywhere - {rival}" for rival in ("labels", "shuffled"))]}

    def ruled(word: str, p: float) -> dict[str, Any]:
        return {"word": word, "not_run": ["random", "prompt_end"], "p_holm": {"profile": p, "labels": p, "shuffled": p}}

    across = {
        "draws": 3,
        "skill": {"everywhere": {"mean": 0.0123, "by_draw": [0.01, 0.02, 0.0069]}},
        "differences": {
            "everywhere - profile": {
                "estimate": -0.0255,
                "low": -0.1205,
                "high": 0.0695,
                "p": 0.37,
                "by_draw": [0, 0, 0],
            }
        },
        "verdict": ruled("cannot be told at this size", 1.0),
    }

    points: list[dict[str, Any]] = [
        {
            "share": 0.01,
            "users": 20,
            "profiles": 20,
            "status": "not run",
            "why": "20 reasoned users, at least 100 are needed",
            "labels": {},
        }
    ]
    for share in (0.0732, 0.2, 1.0):
        own = {
            name: {"rps_skill": gains(share)["own - profile"]["rps_skill"]}
            for name in ("profile", "everywhere", "shuffled", "ridge")
        }
        scarce = {"status": "run", "labelled": 300, "systems": own, "differences": gains(share)}
        scarce |= {"verdict": ruled("hurt" if share < 0.1 else "cannot be told at this size", 0.0123)}
        scarce |= {"across": across if share < 0.1 else None}
        points.append(
            {
                "share": share,
                "users": int(2011 * share),
                "profiles": int(2000 * share),
                "status": "run",
                "why": None,
                "labels": {"scarce": scarce},
            }
        )
    curve = {
        "rise": None,
        "bend": None,
        "sentence": "From 0.0732 to 1 of the users the skill is flat as far as can be told.",
    }
    write_json(
        stage.path("coverage.json"),
        {"level": 0.95, "draws": 3, "points": points, "curves": {"scarce": {"everywhere": curve}}},
    )
    money = [
        {"share": point["share"], "tokens": 1000 * point["users"], "usd": usd * point["users"]} for point in points
    ]
    write_json(stage.path("money.json"), {"points": money})
    stage.finish(["coverage.json"], {})


def _comparison(rng: np.random.Generator, kind: str, word: str, features: str) -> dict[str, Any]:
    names = METRICS if kind == "days" else METRICS[:-1]
    level = {"spearman": 0.43, "auc": 0.72, "normalised_gini": 0.5, "rmse": 2.31, "rps": 0.071}

    def around(value: float, width: float) -> dict[str, float]:
        value = value + 0.2 * width * float(rng.normal())
        return {"estimate": value, "low": value - width, "high": value + width}

    systems: dict[str, Mapping[str, Any]] = {
        name: {m: around(level[m], 0.05 * level[m]) for m in names} for name in SYSTEMS
    }
    systems["constant"] = {**systems["constant"], "spearman": {"estimate": None, "low": None, "high": None}}
    differences = {
        f"profile_z - {other}": {
            m: {**around(0.0, 0.02 * level[m]), "word": "cannot be told at this size"} for m in names
        }
        for other in ("profile", "profile_z_shuffled", "profile_z_untrained")
    }
    if "rps" in names:  # two whose intervals leave out zero, of which Holm's correction keeps one
        for other, p in (("profile", 0.06), ("profile_z_shuffled", 0.012)):
            kept = "hurt" if p <= 0.05 else "cannot be told at this size"
            row = {
                "estimate": 0.004,
                "low": 0.001,
                "high": 0.007,
                "word": "hurt",
                "p": 0.004,
                "p_holm": p,
                "word_holm": kept,
            }
            differences[f"profile_z - {other}"]["rps"] = row
    gain = {"helped": (0.021, 0.004, 0.038), "hurt": (-0.02, -0.03, -0.01)}.get(word, (0.0042, -0.0108, 0.0193))
    placebos = {
        other: Interval(gain[0] / 2, gain[1] / 2, gain[2] / 2)
        for other in ("profile_z_shuffled", "profile_z_untrained")
    }
    size = {
        "target": "lt30",
        "metric": "spearman",
        "features": "static+early",
        "rows": 1030,
        "groups": 371,
        "level": 0.95,
    }
    gains = {other: Gain(interval, 0.004, 0.02) for other, interval in {"profile": Interval(*gain), **placebos}.items()}
    verdict = evaluated_verdict(gains, required=tuple(gains), **size)
    cells = _cells() if features == "static+early" else {}
    return {
        "systems": systems,
        "differences": differences,
        "slices": _slices(systems, features),
        "cells": cells,
        "verdict": verdict,
    }


def _cells() -> dict[str, Any]:
    """Two cohorts, and a field with a group that is told of, one that is too small, and two whose sizes are withheld."""

    def cell(rows: int, bias: float) -> dict[str, Any]:
        row = {"estimate": bias, "low": bias - 0.1, "high": bias + 0.1}
        figures = {"spearman": row, "auc": row, "bias": row}
        return {
            "rows": rows,
            "groups": rows // 2,
            "systems": {"profile": figures, "profile_z": figures},
            "difference": figures,
        }

    gap = {"estimate": 0.321, "low": 0.2, "high": 0.4}
    gaps = {
        name: {"with": gap, "without": gap, "change": {**gap, "estimate": -0.222}, "cells": 2}
        for name in ("bias", "auc")
    }
    few = {"note": "too few to tell", "why": "fewer than 30 rows"}
    withheld = {"rows": "< 10", "groups": None, **few}
    small = {"Tiny Hamlet": {"rows": 4, "groups": 3, **few}, "Hidden": withheld, "Gone": {**withheld, "rows": None}}
    return {
        "sparsity": {"cells": {"sparse": cell(613, 0.123), "rich": cell(417, -0.456)}, "gaps": gaps},
        "city": {"cells": {"Arden": cell(1012, 0.015), **small}, "gaps": {}},
    }


def _slices(systems: Mapping[str, Mapping[str, Any]], features: str) -> dict[str, Any]:
    """One slice with numbers and one too small, and for the static fields one that does not apply."""
    both = {name: systems[name] for name in ("profile", "profile_z")}
    changes = ((0.031, 0.012, 0.047, "helped"), (-0.024, -0.041, -0.008, "hurt"))
    seen, unseen = (
        {m: dict(zip(("estimate", "low", "high", "word"), change)) for m in systems["profile"]} for change in changes
    )
    contrast = {m: {"estimate": 0.055, "low": 0.033, "high": 0.071} for m in systems["profile"]}
    head = {
        "seen": {"rows": 907, "groups": 344, "systems": both, "difference": seen},
        "unseen": {"rows": 123, "groups": 61, "systems": both, "difference": unseen},
        "seen_minus_unseen": contrast,
    }
    few = {"rows": 17, "groups": 9, "note": "too few to tell", "why": "fewer than 30 rows"}
    teacher = {"seen": {"rows": 1013, "groups": 369, "systems": both, "difference": seen}, "unseen": few}
    everyone = {"note": "not applicable", "why": "every one of the 1,030 test rows was seen"}
    return {"teacher": everyone if features == "static" else teacher, "head": head}


_WRITERS = {
    "prepare": _prepare, "teach": _teach, "sft": _sft, "osipo": _osipo, "distill": _distill, "score": _score, "evaluate": _evaluate,
}  # fmt: skip
