"""Several draws of the reasoned users: does what one point of the coverage curve says hold for its share, or for its draw? Pure.

A bootstrap of the test users speaks of one set of reasoned, and so labelled, users, and of the encoders and heads that were
fitted to it. With D draws of such sets, each with encoders and heads of its own, and δ_d the paired difference of two systems in
draw d, all on the same test rows:

    estimate     δ̄ = mean_d δ_d
    variance     s²(δ_d) / D  +  variance of δ̄ over the bootstrap of the test users
    interval     δ̄ ± t(1 − α/2, D − 1) · √variance;  p = 2 · P(t(D − 1) > |δ̄| / √variance)

The two sources are taken as independent, and the degrees of freedom are those of the draws alone: both make the interval wider.
The student and its teacher are the same in every draw; their variance is not in it. Source: the variance of a mean over two
crossed factors, Owen (2007), "The pigeonhole bootstrap", with a t quantile for the factor with few levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from scaletot_jax.evaluation.bootstrap import Interval, bootstrap
from scaletot_jax.evaluation.coverage import EVERYWHERE, RIVALS
from scaletot_jax.evaluation.family import POWER
from scaletot_jax.evaluation.verdict import Gain, decide


def gain(by_draw: np.ndarray, over_test: np.ndarray, level: float) -> Gain:
    """The difference of two systems over draws and test users.

    Args:
      by_draw: [D] the difference in each draw, D ≥ 2.
      over_test: [R] bootstrap distribution of its mean over the draws.
      level: of the interval.
    """
    freedom = len(by_draw) - 1
    if freedom < 1:
        raise ValueError("one draw says nothing of draws")
    mean = float(np.mean(by_draw))
    error = float(np.sqrt(np.var(by_draw, ddof=1) / len(by_draw) + np.var(over_test)))
    reach = float(stats.t.ppf(0.5 + level / 2, freedom))
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    detectable = (reach + float(stats.norm.ppf(POWER))) * error
    return Gain(Interval(mean, mean - reach * error, mean + reach * error), p, detectable)


def skills(
    draws: Sequence[Mapping[str, np.ndarray]], base: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """RPS skill of every system that all draws have: in each draw [D], and the bootstrap distribution [R] of its mean over them.

    Args: as of :func:`across`.
    """
    systems = [name for name in draws[0] if all(name in draw for draw in draws)]

    def skill(name: str, draw: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
        return 1 - (weights @ draw[name]) / (weights @ base)

    functions = {
        name: (lambda w, name=name: np.mean([skill(name, draw, w) for draw in draws], axis=0)) for name in systems
    }
    samples = bootstrap(functions, groups, resamples=resamples, seed=seed)
    whole = np.ones((1, len(base)))
    return {name: np.array([float(skill(name, draw, whole)[0]) for draw in draws]) for name in systems}, samples


def across(
    draws: Sequence[Mapping[str, np.ndarray]], base: np.ndarray, groups: np.ndarray, *, resamples: int, level: float, seed: int
) -> dict[str, Any]:  # fmt: skip
    """ẑ everywhere against every other system, by RPS skill, over the draws of one point.

    Args:
      draws: of each draw, system → RPS of the test rows [T]. Systems that one draw lacks are left out.
      base: [T] RPS of the base rate; groups: [T].
      resamples, level, seed: of the bootstrap of the test users.

    Returns:
      ``draws``, how many; ``skill``: system → {mean, by_draw}; ``differences``: "everywhere - other" → {estimate, low, high, p,
      minimal_detectable, by_draw}; ``verdict``: what :func:`scaletot_jax.evaluation.verdict.decide` says of the required rivals.
    """
    found, samples = skills(draws, base, groups, resamples=resamples, seed=seed)
    differences: dict[str, Any] = {}
    gains: dict[str, Gain] = {}
    for other in found:
        if other == EVERYWHERE:
            continue
        by_draw = found[EVERYWHERE] - found[other]
        one = gain(by_draw, samples[EVERYWHERE] - samples[other], level)
        differences[f"{EVERYWHERE} - {other}"] = {
            **one.interval.to_dict(), "p": one.p, "minimal_detectable": one.detectable, "by_draw": by_draw.tolist()
        }  # fmt: skip
        if other in RIVALS:
            gains[other] = one
    return {
        "draws": len(draws),
        "skill": {name: {"mean": float(value.mean()), "by_draw": value.tolist()} for name, value in found.items()},
        "differences": differences,
        "verdict": decide(gains, level=level, required=RIVALS),
    }
