"""The coverage curve: what does it buy to let the language model reason about a share p of the users? Pure.

The users of a share are the first round(p·G) of the G groups by a hash, so every smaller share lies inside every larger one,
and one pass of the language model over the largest serves all of them. With z the student's states of the reasoned users and
ẑ what an encoder distilled from them says of anybody, two uses are compared with the same head on the profile alone:

    everywhere   ẑ for every row; of a reasoned row by an encoder that was distilled without it
    own          z for rows of reasoned users, ẑ for the others

Both are the leading ⌊E/K⌋ whitened directions of each of the K segments, so that z, ẑ and the ẑ of another fold's encoder lie
in one space. Placebos (:mod:`scaletot_jax.evaluation.coverage_point`) are compared with ẑ everywhere, by the rule of
:mod:`scaletot_jax.evaluation.verdict`. Labels are *plentiful* (every row that the student has not seen) or *scarce* (those of reasoned users alone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.evaluation import metrics
from scaletot_jax.evaluation.bootstrap import bootstrap, paired_difference, percentile_interval
from scaletot_jax.evaluation.verdict import Gain, decide
from scaletot_jax.profiles.split import unit_hash

LEAST_USERS = 100  # reasoned users below which a point is not run
LEAST_LABELLED = 40  # labelled rows below which scarce labels cannot be judged
NOT_RUN = "not run"
LABELS = ("plentiful", "scarce")
PROFILE, EVERYWHERE, OWN = "profile", "everywhere", "own"
SYSTEMS = (PROFILE, EVERYWHERE, OWN)
RIVALS = (PROFILE, "labels", "shuffled", "random", "prompt_end")  # whom ẑ everywhere must beat, the profile alone first
DIFFERENCES = ((EVERYWHERE, PROFILE), (OWN, PROFILE), (OWN, EVERYWHERE))


def ranks(groups: np.ndarray, seed: int) -> np.ndarray:
    """Place of each row's group in the order in which users are reasoned about, int [U]: 0 is the first."""
    distinct, code = np.unique(np.asarray(groups, str), return_inverse=True)
    place = unit_hash(list(distinct), seed, "coverage")
    rank = np.empty(len(distinct), np.int64)
    rank[np.lexsort((distinct, place))] = np.arange(len(distinct))
    return rank[code]


def reasoned(rank: np.ndarray, share: float) -> np.ndarray:
    """Which rows belong to the share p in (0, 1] of the groups, by their :func:`ranks`: bool [U]."""
    return rank < round(share * (rank.max() + 1))


def folds(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Fold of each row [U] by a hash of its group: all rows of a user lie in one."""
    place = unit_hash([str(group) for group in groups], seed, "coverage folds")
    return np.minimum((place * count).astype(np.int64), count - 1)


class Labelled(NamedTuple):
    """Rows that a head learns from, and those that choose its step and penalty, index arrays."""

    head: np.ndarray
    val: np.ndarray


def labelled_rows(labels: str, split: np.ndarray, member: np.ndarray, groups: np.ndarray, seed: int) -> Labelled:
    """Rows with labels.

    ``plentiful``: distill and head splits learn, val chooses. ``scarce``: the reasoned rows of distill and head, of which a
    quarter of the users, by hash, chooses. Rows of the teacher split never: the student has seen their labels, and says more
    in their states than in anybody else's.
    """
    usable = np.isin(split.astype(str), ("distill", "head"))
    if labels == "plentiful":
        return Labelled(np.flatnonzero(usable), np.flatnonzero(split == "val"))
    chooses = unit_hash([str(group) for group in groups], seed, "coverage choice") < 0.25
    usable &= member
    return Labelled(np.flatnonzero(usable & ~chooses), np.flatnonzero(usable & chooses))


class Scores(NamedTuple):
    """What one system says of the T test rows."""

    rps: np.ndarray | None  # [T] ranked probability score of each row; None: the system says no distribution
    expected: np.ndarray  # [T] expected label


def judge(
    scores: Mapping[str, Scores], y: np.ndarray, base: np.ndarray, groups: np.ndarray, *, resamples: int, level: float, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Metrics of each system and paired differences, with bootstrap intervals by group.

        RPS skill = 1 − Σ w RPS / Σ w RPS_base        0: no better than the base rate

    Args:
      scores: by system, any of :data:`SYSTEMS` and :data:`RIVALS`, and baselines.
      y: [T] labels; base: [T] RPS of the base rate; groups: [T].
      resamples, level, seed: of the bootstrap.

    Returns:
      ``systems`` → metric → {estimate, low, high}; ``differences`` "a - b" → the same, a minus b, both metrics being better when
      larger (no RPS skill of a system without a distribution); and ``verdict``: what :func:`scaletot_jax.evaluation.verdict.decide` says of ẑ everywhere by RPS skill, its required
      rivals being the profile alone and the four placebos.
    """
    functions = {}
    for name, one in scores.items():
        if one.rps is not None:
            functions[name, "rps_skill"] = lambda w, rps=one.rps: 1 - (w @ rps) / (w @ base)
        functions[name, "spearman"] = lambda w, expected=one.expected: metrics.spearman(y, expected, w)
    whole = np.ones((1, len(y)))
    points = {key: float(function(whole)[0]) for key, function in functions.items()}
    samples = bootstrap(functions, groups, resamples=resamples, seed=seed)
    systems: dict[str, Any] = {name: {} for name in scores}
    for key, point in points.items():
        systems[key[0]][key[1]] = percentile_interval(point, samples[key], level).to_dict()
    differences: dict[str, Any] = {}
    gains: dict[str, Gain] = {}
    others = [name for name in scores if name not in SYSTEMS]
    for a, b in (*DIFFERENCES, *((EVERYWHERE, name) for name in others)):
        if a in scores and b in scores:
            found = {
                metric: paired_difference(
                    points[a, metric], points[b, metric], samples[a, metric], samples[b, metric], level
                )
                for metric in ("rps_skill", "spearman")
                if (a, metric) in points and (b, metric) in points
            }
            differences[f"{a} - {b}"] = {metric: interval.to_dict() for metric, interval in found.items()}
            if a == EVERYWHERE and b in RIVALS:
                drawn = samples[a, "rps_skill"] - samples[b, "rps_skill"]
                gains[b] = Gain.of(found["rps_skill"], drawn, level)
    said = decide(gains, level=level, required=RIVALS)
    said["p_holm"] = {name: float(p) if np.isfinite(p) else None for name, p in said["p_holm"].items()}
    return {"systems": systems, "differences": differences, "verdict": said}


class Tokens(NamedTuple):
    """Tokens that a run's teacher read, and those of the student for one profile."""

    pilot: int  # label-blind calls that fix wording and thresholds: they count here, and reason about nobody
    search: int  # the chains that the student learnt from
    student: float  # of one profile: its text, and its chains


def cost(tokens: Tokens, profiles: int, usd_teacher: float, usd_student: float) -> dict[str, float]:
    """Tokens and money of a point at which the student reasons about ``profiles`` distinct profiles.

    Teacher and pilot are the same at every point: the curve varies how many users the student reasons about, not how well it
    was trained. Training it is not in these figures.

    Args:
      usd_teacher, usd_student: for a million tokens.
    """
    student = round(tokens.student * profiles)
    teacher = tokens.pilot + tokens.search
    return {
        "pilot_tokens": tokens.pilot, "teacher_tokens": teacher, "student_tokens": student, "tokens": teacher + student,
        "usd": (teacher * usd_teacher + student * usd_student) / 1e6,
    }  # fmt: skip


def bend(x: Sequence[float], y: Sequence[float]) -> int | None:
    """Where a rising, flattening curve bends: the inner point farthest above the line from its first to its last point.

    On log x, both axes scaled to [0, 1] (Satopää et al. 2011, "Kneedle"). None with fewer than three points, where the curve
    does not rise, or where no inner point lies above the line.
    """
    a, b = np.log(np.asarray(x, np.float64)), np.asarray(y, np.float64)
    if len(a) < 3 or not np.isfinite(a).all() or not np.isfinite(b).all() or b[-1] <= b[0] or a[-1] <= a[0]:
        return None
    above = (b - b[0]) / (b[-1] - b[0]) - (a - a[0]) / (a[-1] - a[0])
    best = 1 + int(np.argmax(above[1:-1]))
    return best if above[best] > 1e-9 else None


def describe_curve(
    points: Sequence[Mapping[str, Any]],
    rps: Sequence[np.ndarray],
    base: np.ndarray,
    groups: np.ndarray,
    *,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Does the curve of one system rise at all, and where does it bend?

    Args:
      points: of rising share, each with ``share``, ``tokens`` and ``skill``.
      rps: of each point, [T]; base: [T]; groups: [T].

    Returns:
      ``rise``: skill at the largest share minus that at the smallest, paired; ``bend``: the share, only where that interval
      lies above zero; and ``sentence``.
    """
    if len(points) < 2:
        return {"rise": None, "bend": None, "sentence": "Fewer than two points were run: there is no curve."}
    functions = {i: (lambda w, rows=rps[i]: 1 - (w @ rows) / (w @ base)) for i in (0, len(rps) - 1)}
    samples = bootstrap(functions, groups, resamples=resamples, seed=seed)
    first, last = (samples[i] for i in (0, len(rps) - 1))
    rise = paired_difference(points[-1]["skill"], points[0]["skill"], last, first, level)
    span = f"{points[0]['share']:.4g} to {points[-1]['share']:.4g} of the users"
    said = f"{rise.estimate:+.4f} [{rise.low:+.4f}, {rise.high:+.4f}]"
    if not rise.low > 0:
        word = "falls" if rise.high < 0 else "is flat as far as can be told"
        return {"rise": rise.to_dict(), "bend": None, "sentence": f"From {span} the skill {word}: {said}."}
    at = bend([point["tokens"] for point in points], [point["skill"] for point in points])
    where = f"it bends at {points[at]['share']:.4g}" if at is not None else "it has no bend"
    share = None if at is None else points[at]["share"]
    return {"rise": rise.to_dict(), "bend": share, "sentence": f"From {span} the skill rises by {said}; {where}."}


def not_run(users: int, labelled: int | None = None) -> str | None:
    """Why a point, or one kind of labels at it, is not run; None where it can be."""
    if users < LEAST_USERS:
        return f"{users} reasoned users, at least {LEAST_USERS} are needed"
    if labelled is not None and labelled < LEAST_LABELLED:
        return f"{labelled} labelled rows, at least {LEAST_LABELLED} are needed"
    return None
