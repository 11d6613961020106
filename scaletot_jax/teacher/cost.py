"""What the teacher will cost, before anything is spent. Pure.

Token counts are those of the packed trees (:mod:`scaletot_jax.teacher.token_tree`): shared beginnings count once, and a
value's last token is never run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaletot_jax.chains.spec import ChainSpec, SlotSpec
from scaletot_jax.teacher import prompt, questions
from scaletot_jax.teacher.backend import Wording
from scaletot_jax.teacher.dialogue import Kind
from scaletot_jax.teacher.pilot import MODE_PROFILES
from scaletot_jax.teacher.questions import CHAIN, DIRECT, Calibration, Case
from scaletot_jax.teacher.search import Cost
from scaletot_jax.teacher.token_tree import Variant, token_tree
from scaletot_jax.teacher.tree import NO_VALUE

Ids = Callable[[Sequence[str]], tuple[int, ...]]  # pieces of text -> ids


def call_cost(spec: ChainSpec, case: Case, calibration: Calibration, ids: Ids) -> Cost:
    """Upper bounds of the tokens of each call for one profile, over all paths the search may take."""
    leads = [
        _lead_bound(spec, [segment.fixed for segment in case.segments[:k]], ids) for k in range(spec.num_segments + 1)
    ]
    full = calibration.mode == "full"
    bounds: dict[tuple[Kind, int], int] = {}
    answer = max(
        _tree_tokens(questions.answer_wordings(spec, calibration.stems[item]), ids, full) for item in (DIRECT, CHAIN)
    )
    bounds["answer", -1] = leads[-1] + answer
    for k, (segment, facts) in enumerate(zip(spec.segments, case.segments)):
        judged = [slot for slot, fixed in zip(segment.slots, facts.fixed) if fixed == NO_VALUE]
        if judged:
            wordings = [w for slot in judged for w in questions.slot_wordings(slot, calibration.stems[slot.name])]
            bounds["segment", k] = leads[k] + _tree_tokens(wordings, ids, full)
            revisions = [
                _revision_tokens(slot, calibration.stems[slot.name], case.evidence[slot.name], ids, full)
                for slot in judged
            ]
            bounds["revision", k] = leads[k] + max(revisions)
    return lambda kind, segment: bounds[kind, segment]


def plan_cost(
    spec: ChainSpec, encode: prompt.Encode, teacher: Mapping[str, Any], profile_tokens: float
) -> dict[str, Any]:
    """Estimates calls and tokens of stage ``teach``.

    Args:
      spec: the chain specification.
      encode: text -> ids.
      teacher: the configuration's section.
      profile_tokens: mean tokens of a profile's text.

    Returns:
      ``pilot`` and ``search``, each with ``profiles``, ``calls_per_profile`` and ``tokens_per_profile``, and ``total``
      with ``calls`` and ``tokens``. Assumed: every slot is judged or written in full, the wider paths of the beam are new, the best path was
      already scored in the pilot, and revisions happen at their quantile. Bounds of the configuration cap the search.
    """

    def ids(pieces: Sequence[str]) -> tuple[int, ...]:
        return tuple(token for piece in pieces for token in encode(piece))

    full = teacher["scoring"] == "full"  # auto is planned as trie, which it mostly becomes
    open_slots = [[NO_VALUE] * len(segment.slots) for segment in spec.segments]
    leads = [_lead_bound(spec, open_slots[:k], ids) for k in range(spec.num_segments + 1)]
    answer = _tree_tokens(questions.answer_wordings(spec), ids, full)
    scored, revision = [], []
    for k, segment in enumerate(spec.segments):
        judged = [slot for slot in segment.slots if slot.source == "scored"]
        if judged:
            scored.append(
                leads[k] + _tree_tokens([w for slot in judged for w in questions.slot_wordings(slot)], ids, full)
            )
            revision.append(leads[k] + max(_revision_tokens(slot, (0,), "", ids, full) for slot in judged))
    pilot_calls: float = 2 + len(scored)
    pilot_tokens = profile_tokens + answer + sum(scored) + leads[-1] + answer
    if teacher["scoring"] == "auto":  # the first profiles' direct answers are scored both ways
        trial = min(1.0, MODE_PROFILES / max(1, teacher["pilot_profiles"]))
        pilot_calls += trial
        pilot_tokens += trial * _tree_tokens(questions.answer_wordings(spec), ids, True)

    beam, share = teacher["beam"], 1 - teacher["refine_quantile"]
    refined = min(share * beam * len(revision), teacher["max_refined_nodes"]) if revision else 0.0
    calls = 1 + beam * len(scored) + refined + beam
    tokens = profile_tokens + answer + beam * (sum(scored) + leads[-1] + answer)
    tokens += refined * (sum(revision) / len(revision) if revision else 0)
    calls += beam * len(spec.free_slots)
    tokens += beam * _writing_tokens(spec, ids)
    calls, tokens = min(calls, teacher["max_calls"]), min(tokens, teacher["max_tokens"])
    # The pilot's profiles are searched too, with their first path and the direct answer already in the store.
    known = min(1.0, teacher["pilot_profiles"] / max(1, teacher["num_profiles"]))
    tokens -= known * min(tokens, answer + (sum(scored) + leads[-1] + answer))
    calls -= known * min(calls, 2 + len(scored))
    pilot = {
        "profiles": teacher["pilot_profiles"],
        "calls_per_profile": pilot_calls,
        "tokens_per_profile": pilot_tokens,
    }
    searched = {"profiles": teacher["num_profiles"], "calls_per_profile": calls, "tokens_per_profile": tokens}
    total = {
        name: sum(part["profiles"] * part[f"{name}_per_profile"] for part in (pilot, searched))
        for name in ("calls", "tokens")
    }
    return {"pilot": pilot, "search": searched, "total": total}


def _tree_tokens(wordings: Sequence[Wording], ids: Ids, full: bool) -> int:
    variants = [Variant(ids(w.pieces), tuple(ids((v,)) for v in w.values)) for w in wordings]
    return len(token_tree(variants, close=-1, full=full).tokens)


def _revision_tokens(slot: SlotSpec, stems: Sequence[int], evidence: str, ids: Ids, full: bool) -> int:
    """The largest revision over all pairs of values in conflict."""
    wording = questions.slot_wordings(slot, stems[:1])[0]
    largest = 0
    for first, second in itertools.combinations(slot.scored_values, 2):
        notes = [prompt.revision_pieces(order, evidence) for order in ((first, second), (second, first))]
        largest = max(
            largest, _tree_tokens([Wording((*note, *wording.pieces), wording.values) for note in notes], ids, full)
        )
    return largest


def _lead_bound(spec: ChainSpec, fixed: Sequence[Sequence[int]], ids: Ids) -> int:
    """Most tokens that the text of the first segments can have, given the values that are facts."""
    total = 0
    for segment, facts in zip(spec.segments, fixed):
        shown = [(slot, value) for slot, value in zip(segment.slots, facts) if slot.source != "free"]
        if shown:
            total += len(ids((f"{segment.title}:", "\n"))) + (len(shown) - 1) * len(ids((";",)))
        for slot, value in shown:
            options = slot.values if value == NO_VALUE else (slot.values[value],)
            total += max(len(ids((f" {option}",))) for option in options)
    return total


def _writing_tokens(spec: ChainSpec, ids: Ids) -> int:
    """Most tokens that writing all free slots of one chain can take: each reads the chain before it."""
    total = before = 0
    for i, slot in enumerate(spec.slots):
        segment = spec.segments[spec.segment_of_slot[i]]
        before += len(ids((f"{segment.title}:", "\n"))) if slot is segment.slots[0] else len(ids((";",)))
        if slot.source == "free":
            total += before + len(ids(tuple(f" {stem}" for stem in slot.stems))) + slot.max_tokens
            before += slot.max_tokens
        else:
            before += max(len(ids((f" {value}",))) for value in slot.values)
    return total
