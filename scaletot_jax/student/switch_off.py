"""Is the process signal better than chance? The test that switches it off.

V orders two chains of one user rightly with probability AUC; ½ is chance. One update has few pairs, so AUC is judged over
windows of updates with thousands of pairs, as a ratio of sums with the updates as clusters (pairs of one update share
their users and the reward model):

    AUC = Σ_t p_t a_t / Σ_t p_t,    se² = n/(n − 1) · Σ_t p_t² (a_t − AUC)² / (Σ_t p_t)²,    AUC ± t_{n−1} · se

A window whose interval does not lie above ½ says that V has not been shown to order anything: λ_p becomes 0 and stays so,
and OSIPO goes on as RLOO. Every window is judged once and on its own pairs, so there is no peeking.

Read an AUC near ½ with care: R is a noisy label of one user. Where most outcomes are zero, V agreed with the noisy R no
better than chance and still with the true value (.62); such a signal is switched off too, because nothing in the data
tells it from none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

LEVEL = 0.95
MIN_UPDATES = 8  # of a window: the interval's width is estimated from how updates differ


class Interval(NamedTuple):
    """AUC with its interval, clipped to [0, 1].

    Attributes:
      auc, low, high: in [0, 1]; low and high are 0 and 1 where there are fewer than two updates.
      pairs: pairs compared.
      step: the last update that counted, 0 where none did.
    """

    auc: float
    low: float
    high: float
    pairs: int
    step: int


def auc_interval(rows: Sequence[Mapping[str, Any]], *, level: float = LEVEL) -> Interval | None:
    """The interval above, from rows of the step log (``step``, ``value_auc``, ``value_pairs``); None without a pair."""
    rows = [row for row in rows if row["value_pairs"]]
    pairs = sum(row["value_pairs"] for row in rows)
    if not pairs:
        return None
    auc = sum(row["value_auc"] * row["value_pairs"] for row in rows) / pairs
    count = len(rows)
    low, high = 0.0, 1.0
    if count > 1:
        squares = sum((row["value_pairs"] * (row["value_auc"] - auc)) ** 2 for row in rows)
        half = students_quantile(level, count - 1) * math.sqrt(count / (count - 1) * squares) / pairs
        low, high = max(0.0, auc - half), min(1.0, auc + half)
    return Interval(auc, low, high, int(pairs), int(rows[-1]["step"]))


def students_quantile(level: float, freedom: int) -> float:
    """t with P(|T| ≤ t) = ``level`` for Student's T, by bisection of the finite sums for integer degrees of freedom.

    With θ = arctan(t / √ν), c = cos θ (Abramowitz and Stegun, 26.7.3 and 26.7.4):

        P = sin θ · (1 + c²/2 + 1·3/(2·4) c⁴ + … to c^{ν−2})                  for even ν
        P = 2/π · (θ + sin θ · (c + 2/3 c³ + 2·4/(3·5) c⁵ + … to c^{ν−2}))    for odd ν

    >>> round(students_quantile(0.95, 7), 4)
    2.3646
    """

    def inside(t: float) -> float:
        theta = math.atan(t / math.sqrt(freedom))
        cosine = math.cos(theta)
        odd = freedom % 2
        term, total = (cosine if odd else 1.0), 0.0
        for power in range(odd, freedom - 1, 2):
            total += term
            term *= cosine**2 * (power + 1) / (power + 2)
        return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total

    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return high


def windows(rows: Iterable[Mapping[str, Any]], pairs: int) -> list[Interval]:
    """The full windows of a run so far: consecutive updates with a process weight.

    Args:
      rows: of the step log; updates on rollouts that an earlier one has judged bring no pairs of their own and are left out.
      pairs: a window closes with the update that brings its pairs to this number, at least 1, and not before
        :data:`MIN_UPDATES` updates.
    """
    found, window = [], []
    for row in rows:
        if not row["process_weight"] or "value_pairs" not in row:
            continue
        window.append(row)
        if len(window) >= MIN_UPDATES and sum(row["value_pairs"] for row in window) >= pairs:
            interval = auc_interval(window)
            assert interval is not None  # pairs is at least 1
            found.append(interval)
            window = []
    return found


def no_better_than_chance(rows: Iterable[Mapping[str, Any]], pairs: int) -> bool:
    """Whether some full window's interval does not lie above ½."""
    return any(interval.low <= 0.5 for interval in windows(rows, pairs))


def never_judged(settings: Mapping[str, Any]) -> str | None:
    """A sentence where this run is too small for the rule ``chance``: no window can ever be full; else None.

    Args:
      settings: the configuration's section ``osipo``.
    """
    batches = -(-settings["updates"] // settings["epochs"]) - settings["warmup_updates"]
    pairs = settings["prompts"] * settings["rollouts"] * (settings["rollouts"] - 1) // 2
    if settings["process_weight"] == 0 or (batches >= MIN_UPDATES and batches * pairs >= settings["auc_pairs"]):
        return None
    return (
        f"the process reward is not judged while the updates run: {max(0, batches)} batches of at most {pairs:,} pairs, "
        f"{settings['auc_pairs']:,} pairs and {MIN_UPDATES} batches are needed (osipo.auc_pairs)"
    )
