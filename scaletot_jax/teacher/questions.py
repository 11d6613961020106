"""From a chain specification to questions, and from raw scores to replies. Pure.

A :class:`Case` is one profile ready for the search: its ids, its facts by rule, and the evidence lines of each slot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaletot_jax.chains.rules import UNKNOWN, is_missing
from scaletot_jax.chains.spec import ChainSpec, SlotSpec
from scaletot_jax.teacher import calibrate, prompt
from scaletot_jax.teacher.backend import Question, Wording, stack
from scaletot_jax.teacher.dialogue import Answer, Ask, Draw, Segment, Values
from scaletot_jax.teacher.grounding import facts_of
from scaletot_jax.teacher.token_tree import Scores
from scaletot_jax.teacher.tree import NO_VALUE

DIRECT, CHAIN = "answer.direct", "answer.chain"  # names of the two answers among the calibrated items


@dataclass(frozen=True)
class Calibration:
    """What the pilot decided.

    Attributes:
      mode: ``trie`` or ``full``.
      stems: item (a slot's name or an answer) -> indices of the wordings used.
      means: item -> [J, V] mean log-probabilities of those wordings in the pilot.
      prior: [Kb] log base rate of the answer's buckets, or zeros.
      entropies: segment -> sorted pilot entropies.
      thresholds: segment -> τ.
      dropped: slots that failed the polarity test; always unknown.
      guide: what uncertainty is made of, see :func:`calibrate.uncertainty`.
    """

    mode: str
    stems: Mapping[str, tuple[int, ...]]
    means: Mapping[str, np.ndarray]
    prior: np.ndarray
    entropies: Mapping[str, np.ndarray]
    thresholds: Mapping[str, float]
    dropped: frozenset[str] = frozenset()
    guide: str = "both"

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "stems": {name: list(stems) for name, stems in self.stems.items()},
            "means": {name: mean.tolist() for name, mean in self.means.items()},
            "prior": self.prior.tolist(),
            "entropies": {name: values.tolist() for name, values in self.entropies.items()},
            "thresholds": dict(self.thresholds),
            "dropped": sorted(self.dropped),
            "guide": self.guide,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Calibration:
        def arrays(name):
            return {key: np.asarray(item, np.float64) for key, item in value[name].items()}

        stems = {name: tuple(stems) for name, stems in value["stems"].items()}
        dropped = frozenset(value["dropped"])
        return cls(
            value["mode"],
            stems,
            arrays("means"),
            np.asarray(value["prior"], np.float64),
            arrays("entropies"),
            value["thresholds"],
            dropped,
            value["guide"],
        )


@dataclass(frozen=True)
class Case:
    """One profile. ``segments`` and ``evidence`` follow the specification; evidence is per judged slot, "" without any.

    A free slot is no judgement: to the search it is a fact with one value. ``written`` are the numbers of those that the
    teacher writes afterwards, and ``facts``, where there are any, is all that such a text may draw on.
    """

    key: str
    ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    evidence: Mapping[str, str]
    written: tuple[int, ...] = ()
    facts: str = ""


def make_case(
    spec: ChainSpec,
    key: str,
    record: Mapping[str, Any],
    ids: Sequence[int],
    *,
    fields: Collection[str],
    render: Callable[[Mapping[str, Any]], str],
    dropped: Collection[str] = (),
) -> Case:
    """Applies the rules of ``spec`` to one record.

    Args:
      key: the profile's exact key.
      ids: the profile text's ids, see :func:`scaletot_jax.profiles.prompt_ids.fit_profile`.
      fields: profile fields in use.
      render: record -> profile lines; given only the fields that concern a slot, it makes that slot's evidence.
      dropped: scored slots that are "unknown" for everybody.
    """
    segments, evidence = [], {}
    for segment in spec.segments:
        fixed = []
        for slot in segment.slots:
            if slot.source == "free":
                fixed.append(0)
                continue
            value = UNKNOWN if slot.name in dropped else slot.fixed_value(record, fields)
            fixed.append(NO_VALUE if value is None else slot.values.index(value))
            if value is None:
                shown = {
                    name: record[name]
                    for name in evidence_fields(slot)
                    if name in fields and not is_missing(record.get(name))
                }
                evidence[slot.name] = render(shown) if shown else ""
        segments.append(
            Segment(
                tuple(fixed),
                tuple(slot.values.index(UNKNOWN) if slot.values else 0 for slot in segment.slots),
                tuple(max(1, len(slot.values)) for slot in segment.slots),
            )
        )
    written = tuple(i for i in spec.free_slots if spec.slots[i].fixed_value(record, fields) is None)
    facts = facts_of(record, render(record), fields) if written else ""
    return Case(key, tuple(ids), tuple(segments), evidence, written, facts)


def evidence_fields(slot: SlotSpec) -> list[str]:
    """Fields that bear on a judgement: the one it must follow, else the first of those it needs."""
    return [slot.polarity.field] if slot.polarity else list(slot.unknown_when_missing[:1])


def texts(spec: ChainSpec, path: Sequence[Values]) -> prompt.Path:
    """Value indices of a path as texts; None for free text, which the search does not know."""
    return tuple(
        tuple(slot.values[value] if slot.values else None for slot, value in zip(segment.slots, values))
        for segment, values in zip(spec.segments, path)
    )


def slot_wordings(slot: SlotSpec, stems: Sequence[int] | None = None) -> list[Wording]:
    """A slot's stems (all, or those listed) with its judged values."""
    values = tuple(f" {value}" for value in slot.scored_values)
    return [Wording((slot.stems[j],), values) for j in (range(len(slot.stems)) if stems is None else stems)]


def answer_wordings(spec: ChainSpec, stems: Sequence[int] | None = None) -> list[Wording]:
    """The answer's stems with its phrases."""
    chosen = range(len(spec.answer.stems)) if stems is None else stems
    return [Wording((spec.answer.stems[j],), spec.answer.phrases) for j in chosen]


def segment_question(
    spec: ChainSpec,
    row: int,
    case: Case,
    k: int,
    path: Sequence[Values],
    stems: Mapping[str, Sequence[int]] | None = None,
) -> Question:
    """All judged slots of segment k in all their wordings, after the chain so far."""
    wordings = [
        wording
        for slot, fixed in zip(spec.segments[k].slots, case.segments[k].fixed)
        if fixed == NO_VALUE
        for wording in slot_wordings(slot, None if stems is None else stems[slot.name])
    ]
    return Question(row, tuple(prompt.chain_pieces(spec, texts(spec, path))), tuple(wordings))


def answer_question(spec: ChainSpec, row: int, path: Sequence[Values], stems: Sequence[int] | None = None) -> Question:
    """The answer, from the bare profile (empty path) or after a chain."""
    return Question(row, tuple(prompt.chain_pieces(spec, texts(spec, path))), tuple(answer_wordings(spec, stems)))


def revision_question(spec: ChainSpec, row: int, case: Case, ask: Ask, stems: Mapping[str, Sequence[int]]) -> Question:
    """The focus slot again, after a note with the two conflicting values in either order and the slot's evidence."""
    slot = spec.segments[ask.segment].slots[ask.slot]
    first, second = (slot.values[v] for v in ask.conflict)
    wording = slot_wordings(slot, stems[slot.name][:1])[0]
    notes = [prompt.revision_pieces(order, case.evidence[slot.name]) for order in ((first, second), (second, first))]
    lead = prompt.chain_pieces(spec, texts(spec, ask.path))
    return Question(row, tuple(lead), tuple(Wording((*note, *wording.pieces), wording.values) for note in notes))


def question(spec: ChainSpec, row: int, case: Case, ask: Ask, calibration: Calibration) -> Question:
    """The question of a call of the search."""
    if ask.kind == "segment":
        return segment_question(spec, row, case, ask.segment, ask.path, calibration.stems)
    if ask.kind == "revision":
        return revision_question(spec, row, case, ask, calibration.stems)
    return answer_question(spec, row, ask.path, calibration.stems[CHAIN if ask.path else DIRECT])


def segment_draw(
    spec: ChainSpec, case: Case, k: int, scores: Sequence[Scores], calibration: Calibration, tokens: int
) -> Draw:
    """Calibrated distributions and the uncertainty of segment k."""
    probabilities, measures, start = [], {}, 0
    for s, (slot, fixed) in enumerate(zip(spec.segments[k].slots, case.segments[k].fixed)):
        if fixed != NO_VALUE:
            probabilities.append(np.eye(case.segments[k].sizes[s])[fixed])
            continue
        count = len(calibration.stems[slot.name])
        raw, mean = stack(scores[start : start + count], calibration.mode), calibration.means[slot.name]
        start += count
        p = calibrate.pooled(raw, mean)
        probabilities.append(_with_unknown(slot, p))
        measures[s] = (float(calibrate.entropy(p)), float(calibrate.disagreement(calibrate.by_stem(raw, mean))))
    return _draw(spec, k, probabilities, measures, calibration, tokens)


def revision_draw(
    spec: ChainSpec, case: Case, ask: Ask, before: Draw, scores: Sequence[Scores], calibration: Calibration, tokens: int
) -> Draw:
    """The draw after a revision: the mass of the two conflicting values is split anew, the rest stays.

    Only the contest between the two is reopened, because a note that names them raises both. Each order of naming them
    gives one split; disagreement between the orders counts as uncertainty, so a mere preference for the first or last
    word cannot be accepted.
    """
    slot = spec.segments[ask.segment].slots[ask.slot]
    judged = [slot.scored_values.index(slot.values[v]) for v in ask.conflict]
    contest = (stack(scores, calibration.mode) - calibration.means[slot.name][:1])[:, judged]
    old = before.probabilities[ask.slot]
    keep = [slot.values.index(value) for value in slot.scored_values]
    revised = calibrate.redistribute(old, ask.conflict, contest.mean(0))
    orders = np.stack([calibrate.redistribute(old, ask.conflict, row)[keep] for row in contest])
    probabilities = list(before.probabilities)
    probabilities[ask.slot] = revised
    measures = {
        s: (float(calibrate.entropy(_judged(other, before.probabilities[s]))), before.spreads[s])
        for s, (other, fixed) in enumerate(zip(spec.segments[ask.segment].slots, case.segments[ask.segment].fixed))
        if fixed == NO_VALUE
    }
    measures[ask.slot] = (float(calibrate.entropy(revised[keep])), float(calibrate.disagreement(orders)))
    return _draw(spec, ask.segment, probabilities, measures, calibration, tokens)


def answer_reply(scores: Sequence[Scores], calibration: Calibration, *, chain: bool, tokens: int) -> Answer:
    """The calibrated answer."""
    item = CHAIN if chain else DIRECT
    raw = stack(scores, calibration.mode)
    return Answer(calibrate.pooled(raw, calibration.means[item], calibration.prior), tokens)


def _draw(spec, k, probabilities, measures, calibration, tokens) -> Draw:
    name = spec.segments[k].name
    node = np.mean(list(measures.values()), axis=0)
    focus = min(measures, key=lambda s: (-sum(measures[s]), s))
    u = float(calibrate.uncertainty(calibration.entropies[name], node[0], node[1], calibration.guide))
    spreads = tuple(measures[s][1] if s in measures else 0.0 for s in range(len(probabilities)))
    return Draw(tuple(probabilities), float(node[0]), float(node[1]), u, focus, tokens, spreads)


def _with_unknown(slot: SlotSpec, p: np.ndarray) -> np.ndarray:
    """A distribution over the judged values as one over all values."""
    out = np.zeros(len(slot.values))
    out[[slot.values.index(value) for value in slot.scored_values]] = p
    return out


def _judged(slot: SlotSpec, p: np.ndarray) -> np.ndarray:
    return p[[slot.values.index(value) for value in slot.scored_values]]
