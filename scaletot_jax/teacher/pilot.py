"""The label-blind pilot: what the teacher must know about itself before it may judge.

Over the first profiles, each slot is scored after a provisional chain (every slot at the value that stands out most
within its batch), the answer both from the bare profile and after that chain. From these scores alone the pilot decides

* the mean log-probability of every value under every wording, which calibration subtracts;
* trie-local or full-vocabulary scoring: the one under which wordings agree more about who differs from whom (judged on
  the first profiles' direct answers);
* which wordings: those that agree most with the others;
* polarity: forcing a field to its low and high value must move an ordered slot the stated way, else it is dropped;
* the threshold τ of each segment: a quantile of the pilot's own uncertainties.

Labels enter nowhere, except that the aggregate base rate of the training rows may be the answers' prior.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.teacher import calibrate, questions
from scaletot_jax.teacher.backend import Batch, Question, stack
from scaletot_jax.teacher.dialogue import Values
from scaletot_jax.teacher.questions import CHAIN, DIRECT, Calibration, Case
from scaletot_jax.teacher.token_tree import Scores
from scaletot_jax.teacher.tree import NO_VALUE

MODES = ("trie", "full")
MODE_PROFILES = 64  # pilot profiles whose direct answer is scored both ways
POLARITY_PROFILES = 16  # pilot profiles whose fields are forced low and high
MODE_MARGIN = 0.05  # by which full-vocabulary sums must agree better: their trees are twice as long


@dataclass
class PilotScores:
    """Raw scores of the pilot in one scoring mode.

    Attributes:
      mode: ``trie`` or ``full``.
      scores: item -> [J, V] of each profile for which the item is judged.
      rows: item -> numbers of those profiles.
    """

    mode: str
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)

    def add(self, item: str, row: int, scores: Sequence[Scores]) -> None:
        self.scores.setdefault(item, []).append(stack(scores, self.mode))
        self.rows.setdefault(item, []).append(row)

    def array(self, item: str) -> np.ndarray:
        """[users, J, V] float64."""
        return np.stack(self.scores[item])


def score_batch(spec: ChainSpec, cases: Sequence[Case], batch: Batch, first: int, into: PilotScores) -> tuple[int, int]:
    """Scores one batch of pilot profiles along provisional chains.

    Args:
      cases: profiles in the rows of ``batch``.
      first: number of the batch's first profile in the pilot.
      into: collects the scores, in its own mode.

    Returns:
      Questions asked and their tokens.
    """
    paths: list[tuple[Values, ...]] = [() for _ in cases]
    calls = tokens = 0

    def ask(asked: list[Question]) -> list[list[Scores]]:
        nonlocal calls, tokens
        replies = batch.ask(asked, full=into.mode == "full")
        calls += len(replies)
        tokens += sum(cost for _, cost in replies)
        return [scores for scores, _ in replies]

    for row, scores in enumerate(ask([questions.answer_question(spec, row, ()) for row in range(len(cases))])):
        into.add(DIRECT, first + row, scores)
    for k, segment in enumerate(spec.segments):
        open_rows = [row for row, case in enumerate(cases) if case.segments[k].scored]
        asked = [questions.segment_question(spec, row, cases[row], k, paths[row]) for row in open_rows]
        judged: dict[str, dict[int, np.ndarray]] = {}
        for row, scores in zip(open_rows, ask(asked) if asked else []):
            start = 0
            for slot, fixed in zip(segment.slots, cases[row].segments[k].fixed):
                if fixed == NO_VALUE:
                    part = scores[start : start + len(slot.stems)]
                    start += len(slot.stems)
                    into.add(slot.name, first + row, part)
                    judged.setdefault(slot.name, {})[row] = stack(part, into.mode).mean(0)
        for row, case in enumerate(cases):
            values = []
            for slot, fixed in zip(segment.slots, case.segments[k].fixed):
                if fixed == NO_VALUE:
                    mine = judged[slot.name]
                    lift = mine[row] - np.mean(list(mine.values()), axis=0)
                    fixed = slot.values.index(slot.scored_values[int(np.argmax(lift))])
                values.append(fixed)
            paths[row] = (*paths[row], tuple(values))
    for row, scores in enumerate(ask([questions.answer_question(spec, row, path) for row, path in enumerate(paths)])):
        into.add(CHAIN, first + row, scores)
    return calls, tokens


def choose_mode(direct: Sequence[Sequence[Scores]], scoring: str) -> tuple[str, dict[str, Any]]:
    """The scoring mode and its evidence: the agreement between the direct answer's wordings under either.

    Only values of several tokens tell the modes apart; for single tokens they differ by a constant per profile, which
    calibration removes. So the answer decides, whose phrases are the longest.

    Args:
      direct: per profile the scores of all wordings, with sums over the vocabulary; empty unless ``scoring`` is auto.
      scoring: ``auto``, or the mode the configuration wants.
    """
    if scoring != "auto":
        return scoring, {"chosen": scoring, "by": "configuration"}
    arrays = {mode: np.stack([stack(scores, mode) for scores in direct]) for mode in MODES}
    agreement = {mode: calibrate.agreement(a, calibrate.pilot_mean(a)) for mode, a in arrays.items()}
    chosen = "full" if agreement["full"] - agreement["trie"] >= MODE_MARGIN else "trie"
    evidence = {"agreement": agreement, "margin": MODE_MARGIN, "profiles": len(direct)}
    return chosen, {"chosen": chosen, "by": "agreement", **evidence}


def choose_wordings(pilot: PilotScores, count: int) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """For each item the ``count`` wordings that agree most with the others, in the specification's order.

    The two answers use the same wordings, those of the direct one, so that they differ by the chain alone.
    """
    chosen: dict[str, tuple[int, ...]] = {}
    evidence: dict[str, Any] = {}
    for item in pilot.scores:
        scores = pilot.array(item)
        mean = calibrate.pilot_mean(scores)
        stems = range(scores.shape[1])
        with_others = [
            float(np.mean([calibrate.agreement(scores[:, [j, i]], mean[[j, i]]) for i in stems if i != j] or [1.0]))
            for j in stems
        ]
        best = sorted(stems, key=lambda j: (-round(with_others[j], 9), j))[:count]
        chosen[item] = tuple(sorted(best))
        evidence[item] = {"agreement_with_others": with_others, "chosen": list(chosen[item])}
    chosen[CHAIN] = chosen[DIRECT]
    evidence[CHAIN]["chosen"] = list(chosen[CHAIN])
    return chosen, evidence


def decide(
    spec: ChainSpec,
    pilot: PilotScores,
    *,
    paraphrases: int,
    quantile: float,
    base_rate: Sequence[float] | None,
    guide: str = "both",
    dropped: Mapping[str, Any] | None = None,
) -> tuple[Calibration, dict[str, Any]]:
    """All decisions that follow from the pilot's scores, each with its evidence.

    Args:
      paraphrases, quantile, guide: from the configuration's teacher section.
      base_rate: [Kb] aggregate bucket shares of the training rows, or None for no shift.
      dropped: slots that failed the polarity test.
    """
    stems, wording_evidence = choose_wordings(pilot, paraphrases)
    arrays = {item: pilot.array(item)[:, list(stems[item])] for item in pilot.scores}
    means = {item: calibrate.pilot_mean(scores) for item, scores in arrays.items()}
    prior = np.zeros(spec.num_buckets) if base_rate is None else np.log(np.asarray(base_rate, np.float64))

    entropies: dict[str, np.ndarray] = {}
    thresholds: dict[str, float] = {}
    evidence: dict[str, Any] = {}
    dropped = dropped or {}
    for segment in spec.segments:
        judged: dict[int, list[tuple[float, float]]] = {}
        for slot in segment.slots:
            if slot.name in arrays and slot.name not in dropped:
                node_entropy = calibrate.entropy(calibrate.pooled(arrays[slot.name], means[slot.name]))
                spread = calibrate.disagreement(calibrate.by_stem(arrays[slot.name], means[slot.name]))
                for row, h, d in zip(pilot.rows[slot.name], node_entropy, spread):
                    judged.setdefault(row, []).append((float(h), float(d)))
        nodes = np.asarray([np.mean(judged[row], axis=0) for row in sorted(judged)]).reshape(-1, 2)
        sample = np.sort(nodes[:, 0])
        u = calibrate.uncertainty(sample, nodes[:, 0], nodes[:, 1], guide)
        entropies[segment.name] = sample
        thresholds[segment.name] = float(np.quantile(u, quantile)) if len(u) else 1.0
        if len(u):
            evidence[segment.name] = {
                "profiles": len(u),
                "threshold": thresholds[segment.name],
                "mean_entropy": float(nodes[:, 0].mean()),
                "mean_disagreement": float(nodes[:, 1].mean()),
                "entropy_quartiles": np.quantile(sample, (0.25, 0.5, 0.75)).tolist(),
                "above_threshold": float((u > thresholds[segment.name]).mean()),
                "uncertainties": np.sort(u).tolist(),  # so that an audit can take the quantile again
            }
    calibration = Calibration(pilot.mode, stems, means, prior, entropies, thresholds, frozenset(dropped), guide)
    report = {
        "wordings": wording_evidence,
        "thresholds": evidence,
        "base_rate": None if base_rate is None else [float(x) for x in base_rate],
        "raw_argmax_share": {item: float(_constant_share(scores)) for item, scores in arrays.items()},
    }
    return calibration, report


def polarity_effect(low: np.ndarray, high: np.ndarray, mean: np.ndarray, moves: str) -> dict[str, Any]:
    """Does a forced field move an ordered slot the right way?

    Args:
      low, high: [users, J, V] log-probabilities with the field forced to its low and high value; V in ascending order.
      mean: [J, V] pilot means.
      moves: ``up`` or ``down``, the direction from low to high.

    Returns:
      ``effect``: mean shift of the expected position (0..V−1) in the right direction; ``share``: users who move so;
      ``passed``: effect > 0 and more than half of the users.
    """
    positions = np.arange(low.shape[-1])
    shift = calibrate.pooled(high, mean) @ positions - calibrate.pooled(low, mean) @ positions
    if moves == "down":
        shift = -shift
    effect, share = float(shift.mean()), float((shift > 0).mean())
    return {"effect": effect, "share": share, "passed": bool(effect > 0 and share > 0.5), "profiles": len(shift)}


def polarity_slots(spec: ChainSpec, fields: Collection[str]) -> dict[str, str]:
    """Slots with a polarity to test -> "", or why it cannot be tested."""
    return {
        slot.name: "" if slot.polarity.field in fields else f"the field {slot.polarity.field} is not in use"
        for slot in spec.slots
        if slot.source == "scored" and slot.polarity is not None
    }


def _constant_share(scores: np.ndarray) -> float:
    """Share of profiles with the most frequent raw argmax: near 1 shows why calibration is needed."""
    raw = scores.mean(1).argmax(-1)
    return float(np.bincount(raw).max() / len(raw))
