"""The student's held-out scores: the same users, the same keys, before and after each kind of training."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from scaletot_jax.files import read_json, seal, sealed, write_json
from scaletot_jax.parallel import distributed
from scaletot_jax.profiles.prepare import Population
from scaletot_jax.profiles.split import TRAIN
from scaletot_jax.progress import Progress
from scaletot_jax.run import Run, Stage
from scaletot_jax.student.evaluate import answer_distributions, score_answers
from scaletot_jax.student.labelled import base_rate, buckets_of, labelled_rows
from scaletot_jax.student.policy import EVALUATION_STREAM, Student


def held_out_scores(run: Run, stage: Stage, name: str, student: Student, population: Population) -> dict[str, Any]:
    """Scores of one student on the validation split; kept in ``scores.json``, so that a restart does not repeat them.

    Sampled on the active mesh, on which the student must lie, by all processes together.
    """
    path = stage.path("scores.json")
    scores = read_json(path) if sealed(path) else {}
    if not distributed.agree(name in scores):
        settings = run.config["osipo"]
        rows = labelled_rows(
            population,
            "val",
            student.spec,
            student.tokenizer,
            student.max_profile_tokens,
            limit=settings["eval_profiles"],
            seed=run.config["seed"],
        )
        splits = np.asarray(population.table["split"].to_pylist())
        train_buckets = buckets_of(population, student.spec)
        train_buckets = train_buckets[np.isin(splits, TRAIN) & (train_buckets >= 0)]
        key = jax.random.fold_in(jax.random.key(run.config["seed"]), EVALUATION_STREAM)
        with Progress(f"score {name}", len(rows.rows), "profiles") as progress:
            answers, valid = answer_distributions(
                student,
                rows.prompts,
                rows.prompt_valid,
                chains=settings["eval_chains"],
                key=key,
                advance=progress.advance,
            )
        rate = base_rate(train_buckets, student.spec.num_buckets)
        scores[name] = score_answers(answers, rows.buckets, rate, student.spec.bucket_value) | {"valid_rate": valid}
        write_json(path, scores)
        seal(path)
    return scores[name]
