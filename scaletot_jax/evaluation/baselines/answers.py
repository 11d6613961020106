"""The language models' own answers, with no head: the distribution over days that the teacher, or the student, gave a profile.

They answered for profiles of training users. A test row gets the mean answer for its coarse profile, where one was given (the
share of such rows is stated), and else that of the training rows; within a bucket days are spread as among the training rows.
"""

from __future__ import annotations

import numpy as np

from scaletot_jax.evaluation.baselines.known import Answers, Known, NotApplicable
from scaletot_jax.evaluation.predictions import Predictions, Target, of_distribution

MIN_SHARE = 0.05


def teacher_answer(known: Known, target: Target) -> list[Predictions]:
    """The teacher's soft label."""
    return _answered(known.teacher, known, target)


def student_answer(known: Known, target: Target) -> list[Predictions]:
    """The student's answers after its own chains."""
    return _answered(known.student, known, target)


def covered(answers: Answers | None, known: Known) -> np.ndarray:
    """Which test rows have an answer, bool [T]."""
    if answers is None:
        return np.zeros(len(known.rows.test), bool)
    return np.isin(known.coarse[known.rows.test].astype(str), answers.coarse.astype(str))


def _answered(answers: Answers | None, known: Known, target: Target) -> list[Predictions]:
    if answers is None or not len(answers.probabilities):
        raise NotApplicable("no answers are known")
    if target.column != answers.column:
        raise NotApplicable(f"the answers speak of {answers.column}")
    share = covered(answers, known).mean()
    if share < MIN_SHARE:
        raise NotApplicable(f"answers exist for the coarse profile of {share:.1%} of the test rows")
    y = target.labels[known.rows.head].astype(np.int64)
    base = np.bincount(y, minlength=target.horizon + 1) / len(y)
    spread = spread_of(answers.edges, base)
    names = {key: i for i, key in enumerate(np.unique(answers.coarse.astype(str)))}
    codes = np.array([names[key] for key in answers.coarse.astype(str)])
    total = np.zeros((len(names), answers.probabilities.shape[1]))
    np.add.at(total, codes, answers.probabilities)
    asked = np.array([names.get(key, -1) for key in known.coarse[known.rows.test].astype(str)])
    mean = total / np.bincount(codes)[:, None]
    return [of_distribution(np.where((asked >= 0)[:, None], mean[asked] @ spread, base))]


def spread_of(edges: np.ndarray, base: np.ndarray) -> np.ndarray:
    """[Kb, H + 1]: P(day | bucket) among the training rows, uniform in a bucket that none of them has.

    Args:
      edges: lowest day of each bucket, ascending from 0.
      base: shares of days 0..H.
    """
    bucket = np.searchsorted(edges, np.arange(len(base)), side="right") - 1
    out = np.zeros((len(edges), len(base)))
    for b in range(len(edges)):
        inside = bucket == b
        if inside.any():
            out[b, inside] = base[inside] / base[inside].sum() if base[inside].sum() > 0 else 1 / inside.sum()
    return out
