"""The verdict in words, by a stated rule.

ẑ is a function of the profile: it adds no information, only what the language model knows about such profiles, and a bigger
network. So a gain over the head without ẑ says nothing yet about reasoning. The rule, on one metric fixed beforehand:

    helped    ẑ beats every rival of REQUIRED: the paired interval lies above zero and the p-value after Holm's correction
              over these rivals is at most 1 − level
    hurt      ẑ is worse than the head without it, by the same two conditions below zero
    cannot be told at this size   all else: also where a required rival was not run. The minimal detectable difference says
              what a comparison of this size would have found in 80 % of samples, alone and after Holm's correction. With R < 2 m / (1 − level) − 1 resamples
              for m rivals no p-value can be small enough, whatever the data say, and the sentence says that instead

The rivals: the same head without ẑ; the same encoder trained on labels only; the placebos, that encoder trained on shuffled
states and on random projections of the profile; and prompt ends, the language model's states without reasoning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.evaluation.bootstrap import Interval
from scaletot_jax.evaluation.family import bootstrap_p, detectable_after_holm, holm, least_p, minimal_detectable

HELPED, HURT, UNDECIDED = "helped", "hurt", "cannot be told at this size"
WITH, WITHOUT = "profile_z", "profile"
REQUIRED = (WITHOUT, "encoder_labels", "encoder_shuffled", "encoder_random", "encoder_prompt_end")
CAVEAT = "ẑ is a function of the profile and adds no information of its own; only placebos can attribute a gain to reasoning."
RULE = {
    HELPED: "ẑ beats every required rival: paired interval above zero, p-value after Holm's correction over them at most 1 − level",
    HURT: "ẑ is worse than the head without it: interval below zero, p-value after Holm's correction at most 1 − level",
    UNDECIDED: "all else, also where a required rival was not run",
}
RIVALS = {
    WITHOUT: "the head without ẑ",
    "encoder_labels": "the encoder trained on labels only",
    "encoder_shuffled": "the encoder trained on shuffled states",
    "encoder_random": "the encoder trained on random projections",
    "encoder_prompt_end": "prompt ends, without reasoning",
}


class Gain(NamedTuple):
    """ẑ against one rival on one metric, turned so that positive is better for ẑ."""

    interval: Interval
    p: float  # two-sided
    detectable: float  # minimal detectable difference at the interval's level and 80 % power

    @classmethod
    def of(cls, interval: Interval, samples: np.ndarray, level: float) -> Gain:
        """From the interval and the bootstrap distribution [R] of the difference (of either sign)."""
        return cls(interval, bootstrap_p(samples), minimal_detectable(samples, level))


def word(gain: Interval) -> str:
    """*helped*, *hurt* or *cannot be told at this size*, from an interval whose positive side is better."""
    if gain.low > 0:
        return HELPED
    if gain.high < 0:
        return HURT
    return UNDECIDED  # also where the metric, and so the interval, does not exist


def decide(gains: Mapping[str, Gain], *, level: float, required: tuple[str, ...] = REQUIRED) -> dict[str, Any]:
    """The rule of this module.

    Args:
      gains: rival → ẑ against it. Rivals that are not required are not looked at.
      level: of the intervals; 1 − level is the error that Holm's correction keeps over the family.
      required: the family, the head without ẑ first.

    Returns:
      word; beaten, tied and lost (required rivals, by word); not_run (required rivals without a gain); p_holm by rival.
    """
    family = {name: gains[name] for name in required if name in gains}
    adjusted = holm({name: gain.p for name, gain in family.items()})

    def said(name: str) -> str:
        found = word(family[name].interval)
        return found if adjusted[name] <= 1 - level else UNDECIDED  # NaN is never at most

    words = {name: said(name) for name in family}
    not_run = [name for name in required if name not in family]
    without = required[0]
    decided = UNDECIDED
    if not not_run and all(found == HELPED for found in words.values()):
        decided = HELPED
    elif words.get(without) == HURT:
        decided = HURT
    return {
        "word": decided,
        "beaten": [name for name, found in words.items() if found == HELPED],
        "tied": [name for name, found in words.items() if found == UNDECIDED],
        "lost": [name for name, found in words.items() if found == HURT],
        "not_run": not_run,
        "p_holm": adjusted,
    }


def verdict(
    gains: Mapping[str, Gain],
    *,
    target: str,
    metric: str,
    features: str,
    rows: int,
    groups: int,
    level: float,
    seeds: int = 1,
    resamples: int = 0,
    required: tuple[str, ...] = REQUIRED,
) -> dict[str, Any]:
    """Words for one comparison.

    Args:
      gains: rival → ẑ against it on ``metric``; must hold the head without ẑ.
      target, metric, features: what was compared, for the text.
      rows, groups: size of the test set.
      level: of the intervals.
      seeds: heads a system, whose predictions were averaged.
      resamples: R of the p-values; 0: not of a bootstrap.
      required: see :func:`decide`.

    Returns:
      what :func:`decide` says; attributable (the same as *helped*); gain (over the head without ẑ) and over_placebos (over the other
      required rivals), each {estimate, low, high}; comparisons: required rival → {estimate, low, high, p, p_holm,
      minimal_detectable, word}; minimal_detectable, of the gain as a comparison alone, and minimal_detectable_holm, of the gain
      where Holm's correction over the rivals compared asks most of it; sentence (the finding), caveat (what no figure can show);
      and target, metric, features, rows, groups, level, seeds.
    """
    found = decide(gains, level=level, required=required)
    adjusted = found.pop("p_holm")
    first = gains[required[0]]
    comparisons = {
        name: {
            **gains[name].interval.to_dict(),
            "p": _finite(gains[name].p),
            "p_holm": _finite(adjusted[name]),
            "minimal_detectable": _finite(gains[name].detectable),
            "word": HELPED if name in found["beaten"] else HURT if name in found["lost"] else UNDECIDED,
        }
        for name in required
        if name in gains
    }
    rivals = len(comparisons)
    few = resamples > 0 and least_p(resamples, rivals) > 1 - level
    subject = {
        HELPED: "Adding ẑ, the distilled reasoning states, helped",
        HURT: "Adding ẑ, the distilled reasoning states, hurt",
        UNDECIDED: "Whether adding ẑ, the distilled reasoning states, helps cannot be told "
        + ("with so few resamples" if few else "at this size"),
    }[found["word"]]
    sentence = (
        f"{subject}: {target}, {metric} with ẑ minus without = {_number(first.interval, level)} "
        f"(positive is better; {features} features; {rows} test rows of {groups} groups)."
    )
    return {
        **found,
        "attributable": found["word"] == HELPED,
        "gain": first.interval.to_dict(),
        "over_placebos": {name: gains[name].interval.to_dict() for name in required[1:] if name in gains},
        "comparisons": comparisons,
        "minimal_detectable": _finite(first.detectable),
        "minimal_detectable_holm": _finite(detectable_after_holm(first.detectable, level, rivals)),
        "sentence": sentence + (_too_few(resamples, rivals, level) if few else _because(found, gains, required, level)),
        "caveat": CAVEAT,
        "target": target, "metric": metric, "features": features, "rows": rows, "groups": groups, "level": level, "seeds": seeds,
    }  # fmt: skip


def _too_few(resamples: int, rivals: int, level: float) -> str:
    least = math.ceil(2 * rivals / (1 - level) - 1 - 1e-6)
    return (
        f" The data were not asked: with {resamples} resamples and {rivals} rival{'s' * (rivals > 1)} no p-value after Holm's correction is "
        f"below {least_p(resamples, rivals):.3g}, so none can reach {1 - level:.3g}. Set evaluate.bootstrap to {least} or more."
    )


def _because(found: Mapping[str, Any], gains: Mapping[str, Gain], required: tuple[str, ...], level: float) -> str:
    """What the rule found of the other rivals, and what could have been found."""
    text = ""
    if found["word"] == HELPED:
        others = " and ".join(f"{_name(name)} ({_number(gains[name].interval, level)})" for name in required[1:])
        return f" It also beats {others}; p-values after Holm's correction." if others else ""
    if required[0] in found["beaten"]:
        left = [name for name in required[1:] if name in found["tied"] or name in found["lost"]]
        if left:
            names = " and ".join(f"{_name(name)} (ẑ minus it {_number(gains[name].interval, level)})" for name in left)
            text += f" ẑ beats the head without it, but not for sure {names}: the gain is not attributed to reasoning."
        if found["not_run"]:
            text += f" Not run, so that no gain can be attributed: {', '.join(map(_name, found['not_run']))}."
    alone, rivals = gains[required[0]].detectable, sum(name in gains for name in required)
    if found["word"] == UNDECIDED and np.isfinite(alone):
        least = detectable_after_holm(alone, level, rivals)
        text += f" A true difference of {least:.4f} from {_name(required[0])} would have been found in 80 % of samples of this size"
        text += f" after Holm's correction over {rivals} rivals ({alone:.4f} without it)." if rivals > 1 else "."
    return text


def _name(rival: str) -> str:
    return RIVALS.get(rival, rival)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(interval: Interval, level: float) -> str:
    if not interval.low <= interval.high:  # NaN: no interval
        return "undefined"
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] at {100 * level:g} %"
