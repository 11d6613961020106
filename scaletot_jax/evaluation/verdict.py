"""The verdict in words, by a stated rule.

1. The paired difference "with ẑ minus without", turned so that positive is better, decides the word: interval above zero
   *helped*, below zero *hurt*, else *cannot be told at this size*.
2. ẑ is a function of the profile: it adds no information, only what the language model knows about such profiles, and a
   bigger network. So *helped* says nothing yet about reasoning: a gain may be attributed to the distilled states only
   where ẑ also beats every placebo with a paired interval above zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaletot_jax.evaluation.bootstrap import Interval

HELPED, HURT, UNDECIDED = "helped", "hurt", "cannot be told at this size"

CAVEAT = "ẑ is a function of the profile and adds no information of its own; only placebos can attribute a gain to reasoning."


def word(gain: Interval) -> str:
    """*helped*, *hurt* or *cannot be told at this size*, from an interval whose positive side is better."""
    if gain.low > 0:
        return HELPED
    if gain.high < 0:
        return HURT
    return UNDECIDED  # also where the metric, and so the interval, does not exist


def verdict(
    gain: Interval,
    over_placebos: Mapping[str, Interval],
    *,
    target: str,
    metric: str,
    features: str,
    rows: int,
    groups: int,
    level: float,
) -> dict[str, Any]:
    """Words for one comparison.

    Args:
      gain: metric with ẑ minus without, positive is better, paired.
      over_placebos: name -> metric with ẑ minus with that placebo in its place, same sign, paired.
      target, metric, features: what was compared, for the text.
      rows, groups: size of the test set.
      level: of the intervals.

    Returns:
      word, attributable (bool; True only where ẑ beats every placebo), gain, over_placebos, sentence (the finding),
      caveat (what no figure here can show), and target, metric, features, rows, groups, level.
    """
    decided = word(gain)
    beaten = bool(over_placebos) and all(word(interval) == HELPED for interval in over_placebos.values())
    attributable = decided == HELPED and beaten
    subject = {
        HELPED: "Adding ẑ, the distilled reasoning states, helped",
        HURT: "Adding ẑ, the distilled reasoning states, hurt",
        UNDECIDED: "Whether adding ẑ, the distilled reasoning states, helps cannot be told at this size",
    }[decided]
    sentence = (
        f"{subject}: {target}, {metric} with ẑ minus without = {_number(gain, level)} "
        f"(positive is better; {features} features; {rows} test rows of {groups} groups)."
    )
    if decided == HELPED and not over_placebos:
        sentence += " No placebo was run, so the gain is not attributed to reasoning."
    elif decided == HELPED and attributable:
        names = " and ".join(f"{name} ({_number(interval, level)})" for name, interval in over_placebos.items())
        sentence += f" It also beats {names}."
    elif decided == HELPED:
        equal = {name: interval for name, interval in over_placebos.items() if word(interval) != HELPED}
        names = " and ".join(f"{name} (ẑ minus placebo {_number(interval, level)})" for name, interval in equal.items())
        sentence += (
            f" But a placebo does as well, as far as can be told: {names}; the gain is not attributed to reasoning."
        )
    size = {"target": target, "metric": metric, "features": features, "rows": rows, "groups": groups, "level": level}
    found = {name: interval.to_dict() for name, interval in over_placebos.items()}
    return {
        "word": decided,
        "attributable": attributable,
        "gain": gain.to_dict(),
        "over_placebos": found,
        "sentence": sentence,
        "caveat": CAVEAT,
        **size,
    }


def _number(interval: Interval, level: float) -> str:
    if not interval.low <= interval.high:  # NaN: no interval
        return "undefined"
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] at {100 * level:g} %"
