"""What the report is made of: the artifacts of the finished stages of one run, read and checked.

A stage that has not finished, or that was built on an older version of another stage, is named with the reason and not
read. An artifact whose bytes are not the recorded ones, or a stage done with another configuration, is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.chains.spec import ChainSpec, spec_of_run
from scaletot_jax.errors import OutdatedStageError, ScaleToTError
from scaletot_jax.files import fingerprint, read_json, read_table
from scaletot_jax.report.calibration import calibration
from scaletot_jax.report.cards import REPLACED, Card
from scaletot_jax.report.environment import environment
from scaletot_jax.report.examples import example_cards
from scaletot_jax.run import STAGES, Run, Stage
from scaletot_jax.step_log import read_steps

READ = STAGES[:-1]


@dataclass(frozen=True)
class Material:
    """Everything the report shows. ``None`` or empty where the stage is missing.

    Attributes:
      config: the whole configuration.
      summaries: what each usable stage said of itself, by stage.
      missing: why each other stage was not used, by stage.
      manifest: of the scored shards.
      evaluation: the evaluation's metrics.
      pilot: the teacher's decisions with their evidence.
      sft_steps, osipo_steps, distill_steps: logged steps.
      uncertainty: one row a segment, see :func:`segment_uncertainty`.
      chains: counts of the reasoned profiles, see :func:`chain_counts`.
      calibration: see :func:`scaletot_jax.report.calibration.calibration`.
      coverage: the coverage curve, where this run has one.
      drift: evaluation rows against training rows, see :func:`scaletot_jax.population.quality.judge`.
      segments: names of the chain's segments.
      cards: examples of reasoned profiles.
      environment: versions and machine, without names or paths.
    """

    config: Mapping[str, Any]
    summaries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    pilot: Mapping[str, Any] | None = None
    sft_steps: Sequence[Mapping[str, Any]] = ()
    osipo_steps: Sequence[Mapping[str, Any]] = ()
    distill_steps: Sequence[Mapping[str, Any]] = ()
    uncertainty: Sequence[Mapping[str, Any]] = ()
    chains: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    coverage: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None
    segments: Sequence[str] = ()
    cards: Sequence[Card] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    def summary(self, stage: str) -> Mapping[str, Any]:
        """The stage's summary, empty where it is not usable."""
        return self.summaries.get(stage, {})


def usable_stages(run: Run) -> tuple[dict[str, Stage], dict[str, str]]:
    """The finished stages that fit together, and the reason for every other one.

    Raises:
      StaleRunError: a stage was done with another configuration than the run's.
    """
    usable: dict[str, Stage] = {}
    missing: dict[str, str] = {}
    for name in READ:
        if not (run.workdir / name / "stage.json").exists():
            missing[name] = "not finished"
            continue
        try:
            usable[name] = run.finished(name)
        except OutdatedStageError as error:
            missing[name] = f"{error.what}; run it again"
    return usable, missing


def collect(run: Run) -> Material:
    """Reads a run directory.

    Raises:
      StaleRunError: see :func:`usable_stages`; or an artifact was changed after its stage had finished.
      DataError: an artifact cannot be read.
    """
    stages, missing = usable_stages(run)
    teach = stages.get("teach")
    nodes = _table(teach, "nodes.parquet") if teach else None
    chains = _table(teach, "chains.parquet") if teach else None
    spec = spec_of(run.config)
    return Material(
        config=run.config,
        summaries={name: stage.summary() for name, stage in stages.items()},
        missing=missing,
        manifest=_json(stages.get("score"), "manifest.json"),
        evaluation=_json(stages.get("evaluate"), "metrics.json"),
        pilot=_json(teach, "pilot.json"),
        sft_steps=_steps(stages.get("sft")),
        osipo_steps=_steps(stages.get("osipo")),
        distill_steps=_steps(stages.get("distill")),
        uncertainty=segment_uncertainty(nodes) if nodes is not None else (),
        chains=chain_counts(chains) if chains is not None else {},
        calibration=_calibration(run, stages.get("prepare"), stages.get("evaluate")),
        coverage=_coverage(run),
        drift=_drift(stages.get("prepare")),
        segments=[segment.name for segment in spec.segments] if spec else (),
        cards=_cards(run, stages.get("prepare"), chains, nodes) if chains is not None and nodes is not None else (),
        environment=environment(),
    )


def coverage_of(run: Run) -> str | None:
    """What identifies the coverage curve of this run; None where it has none. It is no stage of the line."""
    path = run.workdir / "coverage" / "stage.json"
    return fingerprint(read_json(path)) if path.exists() else None


def segment_uncertainty(nodes: Any) -> list[dict[str, Any]]:
    """Mean uncertainty of the teacher by segment, before and after refinement.

    One expansion is a set of sibling candidates of one profile: they share entropy, disagreement and uncertainty. Where
    its revision was accepted the candidates from before are marked as replaced; elsewhere before and after are equal.
    Expansions without a call to the model (decided by rule) are left out.

    Args:
      nodes: nodes.parquet.

    Returns:
      per segment: segment, expansions, refined, accepted, and for each of entropy, disagreement and uncertainty the means
      ``…_before`` and ``…_after``.
    """
    expansions: dict[tuple, dict[str, Any]] = {}
    columns = ["exact_key", "parent", "depth", "segment", "entropy", "disagreement", "uncertainty", "threshold"]
    columns += ["refined", "refinement_accepted", "reason"]
    order: dict[str, int] = {}
    for row in nodes.select(columns).to_pylist():
        if row["depth"] < 1 or (not row["threshold"] and not row["entropy"] and not row["uncertainty"]):
            continue
        order.setdefault(row["segment"], row["depth"])
        found = expansions.setdefault((row["exact_key"], row["parent"], row["segment"]), {})
        found.setdefault("before" if row["reason"] == REPLACED else "after", row)
    out = []
    for segment in sorted(order, key=lambda name: (order[name], name)):
        rows = [found for (_, _, name), found in expansions.items() if name == segment and "after" in found]
        entry: dict[str, Any] = {
            "segment": segment,
            "expansions": len(rows),
            "refined": sum(bool(found["after"]["refined"]) for found in rows),
            "accepted": sum("before" in found for found in rows),
        }
        for measure in ("entropy", "disagreement", "uncertainty"):
            entry[f"{measure}_before"] = _mean([found.get("before", found["after"])[measure] for found in rows])
            entry[f"{measure}_after"] = _mean([found["after"][measure] for found in rows])
        out.append(entry)
    return out


def chain_counts(chains: Any) -> dict[str, Any]:
    """Counts over the selected chain of every reasoned profile.

    Args:
      chains: chains.parquet.

    Returns:
      reasoned, accepted, budget (profiles whose search ran out of it), calls, tokens, most_chains (accepted, of one
      profile), and rejected: reason -> profiles.
    """
    every = chains.select(["exact_key", "rank", "accepted", "reason", "budget", "calls", "tokens"]).to_pylist()
    rows = [row for row in every if row["rank"] == 0]
    kept = Counter(row["exact_key"] for row in every if row["accepted"])
    rejected: dict[str, int] = {}
    for row in rows:
        if not row["accepted"]:
            reason = row["reason"] or "no reason given"
            rejected[reason] = rejected.get(reason, 0) + 1
    return {
        "reasoned": len(rows),
        "accepted": sum(bool(row["accepted"]) for row in rows),
        "budget": sum(bool(row["budget"]) for row in rows),
        "calls": sum(row["calls"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "most_chains": max(kept.values(), default=0),
        "rejected": dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


# -- files --------------------------------------------------------------------------------------------------------------


def _checked(stage: Stage, name: str) -> Path | None:
    """The path of an artifact, checked against its recorded hash; None where it does not exist."""
    path = stage.path(name)
    if not path.exists():
        return None
    stage.check_artifacts(only=name)
    return path


def _json(stage: Stage | None, name: str) -> Any:
    path = _checked(stage, name) if stage else None
    return read_json(path) if path else None


def _table(stage: Stage, name: str) -> Any:
    path = _checked(stage, name)
    return read_table(path) if path else None


def _steps(stage: Stage | None) -> list[dict[str, Any]]:
    path = _checked(stage, "steps.jsonl") if stage else None
    return read_steps(path) if path else []


def _calibration(run: Run, prepare: Stage | None, evaluate: Stage | None) -> dict[str, Any]:
    path = _checked(evaluate, "predictions.parquet") if evaluate else None
    population = _checked(prepare, "population.parquet") if prepare else None
    if path is None or population is None:
        return {}
    settings = run.config["evaluate"]
    resampling = {"resamples": settings["bootstrap"], "level": settings["level"], "seed": run.config["seed"]}
    rows = read_table(population, columns=["row", "group"])
    return calibration(read_table(path), rows, run.config["data"]["profile_fields"], **resampling)


def _coverage(run: Run) -> Any:
    """Of a curve measured on this very run; none where its stage has not finished or does not fit the others any more."""
    if not (run.workdir / "coverage" / "stage.json").exists():
        return None
    try:
        stage = run.finished("coverage")
    except OutdatedStageError:
        return None
    found, money = _json(stage, "coverage.json"), stage.path("money.json")
    prices = {one["share"]: one for one in read_json(money)["points"]} if money.exists() else {}
    return {**found, "points": [{**point, "cost": prices.get(point["share"], {})} for point in found["points"]]}


def _drift(prepare: Stage | None) -> dict[str, Any] | None:
    """Validation and test rows against training rows."""
    population = _checked(prepare, "population.parquet") if prepare else None
    features = _json(prepare, "features.json")
    if population is None or features is None:
        return None
    from scaletot_jax.population import quality
    from scaletot_jax.profiles.features import FeatureSpace
    from scaletot_jax.profiles.split import EVALUATION, TRAIN

    space = FeatureSpace.from_dict(features)
    table = read_table(population, columns=["split", *(field.name for field in space.fields)])
    train, judged = (table.filter(pc.is_in(table["split"], value_set=pa.array(names))) for names in (TRAIN, EVALUATION))
    if not train.num_rows or not judged.num_rows:
        return None
    known = quality.reference(space, train, {})
    tallies = {f.name: quality.tally_field(space, f, known["fields"][f.name], judged[f.name]) for f in space.fields}
    return quality.judge(known, tallies, {})


def _cards(run: Run, prepare: Stage | None, chains: Any, nodes: Any) -> list[Card]:
    population = _checked(prepare, "population.parquet") if prepare else None
    renderer = _json(prepare, "renderer.json")
    settings = run.config["report"]
    spec = spec_of(run.config)
    return example_cards(chains, nodes, population, renderer, spec, settings["chains"], settings["show_text"])


def spec_of(config: Mapping[str, Any]) -> ChainSpec | None:
    """The chain specification, for names of segments and buckets; None where it is gone: the page then shows numbers."""
    try:
        return spec_of_run(config)
    except ScaleToTError:
        return None
