"""Can the verdict say yes, and can it say no? A positive and a negative control with a known truth, over seeds and sizes.

    python benchmarks/controls.py [--rows 1500 3000 6000] [--seeds 3] [--workdir DIR]

The population, the simulated teacher and the simulated student are those of scaletot_jax/population/controls.py: chains are
written in the form that stage ``teach`` writes, the student's states are drawn from them. From there on the code is the real
one: ``distill`` with its placebos, ``score``, ``evaluate`` and the verdict. For each size and kind the table shows how often
the verdict was *helps*, the skill with ẑ and without it, and the best skill that any score of the profile can have.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.chains.spec import load_spec
from scaletot_jax.config import default_config
from scaletot_jax.encoder import collect, distill
from scaletot_jax.encoder.score import score
from scaletot_jax.evaluation.evaluate import evaluate
from scaletot_jax.evaluation.metrics import rps_rows, spearman
from scaletot_jax.evaluation.verdict import HELPED
from scaletot_jax.files import read_json, write_json, write_table
from scaletot_jax.population import controls
from scaletot_jax.population.synthetic import days_distribution
from scaletot_jax.profiles.prepare import Population, open_population, prepare
from scaletot_jax.run import Run
from scaletot_jax.student.states import ReasoningStates
from scaletot_jax.teacher.records import chains_table

SPLIT = {"teacher": 0.05, "distill": 0.45, "head": 0.15, "val": 0.10, "test": 0.25}
NOISE = {"teacher": 0.1, "slip": 0.1, "state": 0.5}  # ε, δ, σ of population/controls.py
USERS_A_TOWN, WORTH = 8, 1.0
SIZES: dict[str, Any] = {
    "distill.num_profiles": 1_000_000, "distill.chains": 2, "distill.dim": 16, "distill.whiten_dim": 12, "distill.width": 64,
    "distill.steps": 600, "distill.batch_size": 256, "distill.learning_rate": 3e-3, "distill.checkpoint_every": 1000,
    "head.seeds": 5, "head.steps": 500, "head.penalties": (1e-2, 1e-1), "head.width": 16,
}  # fmt: skip


def configure(table: Path, seed: int, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of one control."""
    config = default_config()
    config.seed = seed
    config.data.name, config.data.path, config.data.schema = "parquet", str(table), "control"
    config.data.profile_fields = "static"
    config.lm.chain_spec = "control"
    for name, fraction in SPLIT.items():
        config.split[name] = fraction
    config.evaluate.baselines = False  # the verdict asks for the placebos alone
    for key, value in sizes.items():
        section, name = key.split(".")
        config[section][name] = value
    return config.to_dict()


def run_control(workdir: Path, kind: str, *, rows: int, seed: int, sizes: Mapping[str, Any] = SIZES) -> dict[str, Any]:
    """One control from its table to ``metrics.json``, which is returned with the Bayes score under ``best``."""
    world = controls.draw_world(rows, towns=rows // USERS_A_TOWN, worth=WORTH, seed=seed)
    write_table(workdir / "users.parquet", world.table)
    with Run(workdir / kind, configure(workdir / "users.parquet", seed, sizes)) as run:
        prepare(run)
        population = open_population(run)
        place = {name: i for i, name in enumerate(world.table["user_id"].to_pylist())}
        order = np.array([place[name] for name in population.table["user_id"].to_pylist()])
        said = controls.said_levels(world.levels, kind, seed)[order]
        probabilities = controls.distributions(said, NOISE["teacher"])
        write_language_model_stages(run, population, probabilities, seed)
        with simulated_student(population, probabilities, seed):
            distill.distill(run)
        score(run)
        evaluate(run)
    found = read_json(workdir / kind / "evaluate" / "metrics.json")
    return found | {"best": best_score(population, world.m[order])}


def write_language_model_stages(run: Run, population: Population, probabilities: np.ndarray, seed: int) -> None:
    """teach with the simulated teacher's chains, in the form of the real stage; sft and osipo as what they list of users."""
    spec = load_spec("control")
    teachers = population.table.filter(pc.equal(population.table["split"], "teacher"))
    rows = teachers["row"].to_numpy()
    rng = np.random.default_rng([seed, 61])
    levels = controls.draw_levels(probabilities[rows], rng)
    uniform = [1 / spec.num_buckets] * spec.num_buckets
    found = [
        {
            "direct": uniform, "budget": False, "calls": 0, "tokens": 0,
            "chains": [
                {
                    "weight": 1.0, "values": [slot.values[v] for slot, v in zip(spec.slots, chosen)],
                    "distributions": [[*p, 0.0] for p in said.tolist()], "answer": uniform, "log_prob": 0.0, "accepted": True,
                    "reason": "",
                }
            ],
        }
        for said, chosen in zip(probabilities[rows], levels)
    ]  # fmt: skip
    stage = run.stage("teach", sections=("seed",), needs=("prepare",))
    write_table(
        stage.path("chains.parquet"), chains_table(spec, teachers["exact_key"].to_pylist(), found, "pooled", None)
    )
    write_table(stage.path("profiles.parquet"), teachers.select(["exact_key", "row", "group"]))
    stage.finish(["chains.parquet", "profiles.parquet"])
    run.stage("sft", sections=("seed",), needs=("prepare", "teach")).finish([])
    stage = run.stage("osipo", sections=("seed",), needs=("prepare", "sft"))
    write_table(stage.path("users.parquet"), teachers.select(["row", "group"]))
    stage.finish(["users.parquet"])


@contextlib.contextmanager
def simulated_student(population: Population, probabilities: np.ndarray, seed: int) -> Iterator[None]:
    """Puts the simulated student in the place of the one that stage ``osipo`` leaves."""
    spec = load_spec("control")
    ids = [int(key[:6], 16) for key in population.table["exact_key"].to_pylist()]
    row_of = {name: i for i, name in enumerate(ids)}
    ends = controls.prompt_ends(population.features.dense(population.features.encode(population.table)), seed)

    def states(student: Any, texts: list[str], *, chains: int, seed: int, layers: tuple[int, ...], ids: list[int]):
        rows = np.array([row_of[name] for name in ids])
        found, levels = controls.states(
            probabilities[rows], np.asarray(ids), chains=chains, slip=NOISE["slip"], noise=NOISE["state"], seed=seed
        )
        answers = np.full((len(ids), chains, spec.num_buckets), 1 / spec.num_buckets, np.float32)
        return ReasoningStates(
            *({n: part for n in layers} for part in (found, found, ends[rows])), answers, levels.astype(np.int32)
        )

    student = SimpleNamespace(config=SimpleNamespace(num_layers=1), spec=spec)
    with (
        mock.patch.object(distill, "identity_of_model", lambda config: {"weights": "simulated"}),
        mock.patch.object(distill, "load_student", lambda run, which: student),
        mock.patch.object(collect, "reasoning_states", states),
    ):
        yield


def best_score(population: Population, m: np.ndarray) -> dict[str, float]:
    """Spearman and RPS skill of the Bayes-optimal score on the test rows."""
    split = np.asarray(population.table["split"].to_pylist(), object)
    y = population.table["lt30"].cast(pa.float64()).to_numpy()
    test, head = split == "test", split == "head"
    best = days_distribution(m[test], controls.LABEL_NOISE)
    base = np.bincount(y[head].astype(int), minlength=best.shape[1]) / head.sum()
    skill = 1 - rps_rows(y[test], best).mean() / rps_rows(y[test], np.tile(base, (test.sum(), 1))).mean()
    return {"spearman": float(spearman(y[test], best @ np.arange(best.shape[1]))), "rps_skill": float(skill)}


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the table shows of one control."""
    features = found["targets"]["lt30"]["features"]["static"]
    systems, base = features["systems"], features["systems"]["constant"]["rps"]["estimate"]
    skill = {name: 1 - systems[name]["rps"]["estimate"] / base for name in ("profile", "profile_z")}
    return {
        "word": found["verdict"]["word"], "helps": helps(found["verdict"]), "skill": skill, "best": found["best"],
        "gain": found["verdict"]["gain"],
    }  # fmt: skip


def helps(verdict: Mapping[str, Any]) -> bool:
    """Whether the verdict is that reasoning helped."""
    return verdict["word"] == HELPED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1500, 3000, 6000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", default="")
    options = parser.parse_args()
    out = []
    print(f"{'control':10}{'rows':>8}{'helps':>8}{'skill without ẑ':>18}{'with ẑ':>10}{'best possible':>15}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.workdir or scratch)
        for rows in options.rows:
            for kind in controls.KINDS:
                found = [
                    summary(run_control(folder / f"{rows}-{seed}", kind, rows=rows, seed=seed)) | {"seed": seed}
                    for seed in range(options.seeds)
                ]
                said = sum(one["helps"] for one in found)
                without, with_z, best = (
                    np.mean([part(one) for one in found])
                    for part in (
                        lambda one: one["skill"]["profile"], lambda one: one["skill"]["profile_z"],
                        lambda one: one["best"]["rps_skill"],
                    )
                )  # fmt: skip
                print(
                    f"{kind:10}{rows:>8,}{said:>5}/{options.seeds}{without:>18.3f}{with_z:>10.3f}{best:>15.3f}",
                    flush=True,
                )
                out.append({"control": kind, "rows": rows, "runs": found})
    write_json(folder / "controls.json", out) if options.workdir else None
    print(json.dumps({"benchmark": "controls", "found": out}))


if __name__ == "__main__":
    main()
