"""Stage ``teach``: typed chains with their distributions, from a language model that scores, and writes free texts last.

Writes

    pilot.json      what the pilot decided, each decision with its evidence
    chains.parquet  one row per profile and rank: values, slot distributions, direct, chain-conditioned and stored answer
    nodes.parquet   one row per node of each profile's search tree
    texts.parquet   where the specification has free slots: every text asked for, with its tokens and what became of it
    profiles.parquet the rows and groups that were reasoned about, for the audit
    store.sqlite    raw scores and finished searches by content; a run replays from it (not an artifact)
    requests.jsonl  with a served teacher, every request with its tokens and price (not an artifact)

Profiles go in fixed batches, each committed whole, so a killed run continues at the batch in flight and ends with the
same bytes. Labels are not read, except for the aggregate base rate of the training rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.chains.spec import ChainSpec, spec_of_run
from scaletot_jax.errors import DataError
from scaletot_jax.files import write_json, write_table
from scaletot_jax.lm.load import LoadedLM, load_model, load_tokenizer
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.profiles.split import TRAIN
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.teacher import records
from scaletot_jax.teacher.grounding import vocabulary
from scaletot_jax.teacher.identity import identity_of_model
from scaletot_jax.teacher.reasoner import Reasoner
from scaletot_jax.teacher.served.backend import Service
from scaletot_jax.teacher.served.settings import stage_sections
from scaletot_jax.teacher.store import Store


def teach(run: Run) -> Stage:
    """Reasons about the first ``teacher.num_profiles`` distinct profiles of the teacher split, in the order of their
    hashes."""
    spec, settings = spec_of_run(run.config), run.config["teacher"]
    sections = ("lm", *stage_sections(settings))
    stage = run.stage("teach", sections=sections, needs=("prepare",), extra=identity_of_model(run.config))
    if stage.done:
        return stage
    population = open_population(run)
    chosen = distinct_profiles(population.table, settings["num_profiles"])
    base_rate = train_base_rate(population, spec) if settings["base_rate"] else None
    pilot_count = min(settings["pilot_profiles"], chosen.num_rows)
    with (
        Store(stage.path("store.sqlite")) as store,
        _teacher(run, stage, store) as lm,
        Progress("teach", pilot_count + chosen.num_rows, "profiles") as progress,
    ):
        reasoner = Reasoner(
            spec,
            lm,
            store,
            settings,
            max_profile_tokens=run.config["lm"]["max_profile_tokens"],
            fields=[field.name for field in population.fields],
            render=population.renderer.text,
            vocabulary=vocabulary(population.fields, population.table) if spec.free_slots else (),
        )
        profiles = [reasoner.profile(row.pop("exact_key"), row) for row in chosen.to_pylist()]
        shortened = reasoner.shortened
        calibration, evidence = reasoner.pilot(profiles[:pilot_count], base_rate, progress)
        report = {"profiles": pilot_count, "calibration": calibration.to_dict(), "evidence": evidence}
        write_json(stage.path("pilot.json"), report)
        found = reasoner.search(profiles, calibration, progress)
    keys = [profile.key for profile in profiles]
    write_table(stage.path("chains.parquet"), records.chains_table(spec, keys, found, settings["answer"], base_rate))
    write_table(stage.path("nodes.parquet"), records.nodes_table(spec, keys, found))
    texts = ["texts.parquet"] if spec.free_slots else []
    if texts:
        write_table(stage.path("texts.parquet"), records.texts_table(keys, found))
    write_table(stage.path("profiles.parquet"), chosen.select(["exact_key", "row", "group"]))
    summary = records.summarise(spec, found, calibration, evidence, pilot_profiles=pilot_count, shortened=shortened)
    artifacts = ["pilot.json", "chains.parquet", "nodes.parquet", *texts, "profiles.parquet"]
    stage.finish(artifacts, summary=summary)
    return stage


@contextlib.contextmanager
def _teacher(run: Run, stage: Stage, store: Store) -> Iterator[LoadedLM | Service]:
    """The language model that reasons: lm.weights, or a served one beside the tokenizer of lm.weights."""
    settings, weights = run.config["teacher"], run.config["lm"]["weights"]
    if settings["backend"] == "local":
        yield load_model(weights)
        return
    tokenizer = load_tokenizer(weights)
    with Service(settings["served"], store, stage.directory, tokenizer, seed=run.config["seed"]) as service:
        yield service


def distinct_profiles(table: pa.Table, count: int) -> pa.Table:
    """The first ``count`` distinct profiles of the teacher split by exact key, which is a hash: a fixed random choice.

    Raises:
      DataError: the split is empty.
    """
    rows = table.filter(pc.equal(table["split"], "teacher"))
    if not rows.num_rows:
        raise DataError("no profile to reason about", where="split 'teacher'", do="enlarge split.teacher or the data")
    keys = rows["exact_key"].to_numpy(zero_copy_only=False)
    _, first = np.unique(keys, return_index=True)
    return rows.take(pa.array(first[:count]))


def train_base_rate(population: Population, spec: ChainSpec) -> list[float]:
    """Shares of the answer's buckets among the training rows, [Kb], each bucket counted once more so that none is 0."""
    table = population.table
    train = table.filter(pc.is_in(table["split"], value_set=pa.array(TRAIN)))
    buckets = spec.bucket_of(train[population.schema.labels.days.column].cast(pa.float64()).to_numpy())
    counts = np.bincount(buckets[buckets >= 0], minlength=spec.num_buckets) + 1.0
    return (counts / counts.sum()).tolist()
