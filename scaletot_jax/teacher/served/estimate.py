"""What a served teacher will cost, before anything is spent. Pure.

A server reads the whole prompt for every place where values part, so its requests are counted apart from the packed trees
of :mod:`scaletot_jax.teacher.cost`: with n wordings asked,

    requests = Σ places of the wording's tree           completions
             = n, or n · samples                        chat with log-probabilities, or without

Prompts are measured with the student's tokenizer, which stands in for the server's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.teacher import prompt, questions
from scaletot_jax.teacher.backend import Wording
from scaletot_jax.teacher.pilot import POLARITY_PROFILES
from scaletot_jax.teacher.served.ledger import Prices
from scaletot_jax.teacher.token_tree import Variant, token_tree

_CHAT_WORDS = 60  # tokens of a chat's task and schema, beside the values twice
_CHAT_ANSWER = 16  # tokens of {"value": "..."}


class Estimate(NamedTuple):
    """Expected requests and tokens; ``usd`` by the configured prices, ``limit_usd`` the hard limit (0: none)."""

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float
    limit_usd: float


def estimate(
    spec: ChainSpec, encode: prompt.Encode, teacher: Mapping[str, Any], profile_tokens: float, *, samples: int = 1
) -> Estimate:
    """Estimates requests and tokens of stage ``teach``, under the assumptions of
    :func:`scaletot_jax.teacher.cost.plan_cost`.

    Args:
      teacher: the configuration's section, with the numbers of profiles there are.
      profile_tokens: mean tokens of a profile's text.
      samples: answers drawn for a wording: 1, or ``teacher.served.samples`` of a chat without log-probabilities.
    """
    served = teacher["served"]
    chat = served["api"] == "chat"
    before = len(encode(prompt.instruction_text(spec))) + profile_tokens

    def ids(text: str) -> tuple[int, ...]:
        return tuple(encode(text))

    def cost(wordings: Sequence[Wording], lead: int) -> np.ndarray:
        """Requests, input and output tokens."""
        total = np.zeros(3)
        for wording in wordings:
            stem = sum(len(ids(piece)) for piece in wording.pieces)
            values = tuple(ids(value) for value in wording.values)
            if chat:
                listed = 2 * sum(map(len, values)) + _CHAT_WORDS
                total += samples * np.array([1, before + lead + stem + listed, _CHAT_ANSWER])
            else:
                tree = token_tree([Variant((0,), values)], close=-1, full=False)
                places = len(tree.nodes)
                total += [places, places * (before + lead + stem) + int(tree.depth[tree.nodes].sum()), places]
        return total

    def longest(count: int) -> prompt.Path:
        chosen = spec.segments[:count]
        return tuple(tuple(max(slot.values, key=len) if slot.values else None for slot in s.slots) for s in chosen)

    leads = [
        sum(len(ids(piece)) for piece in prompt.chain_pieces(spec, longest(k))) for k in range(spec.num_segments + 1)
    ]
    judged = [(k, slot) for k, segment in enumerate(spec.segments) for slot in segment.slots if slot.source == "scored"]
    few = range(teacher["paraphrases"])

    def chosen(stems: Sequence[str]) -> list[int]:
        return [j for j in few if j < len(stems)]

    pilot = cost(questions.answer_wordings(spec), 0) + cost(questions.answer_wordings(spec), leads[-1])
    pilot += sum((cost(questions.slot_wordings(slot), leads[k]) for k, slot in judged), np.zeros(3))
    answer = questions.answer_wordings(spec, chosen(spec.answer.stems))
    slots = [cost(questions.slot_wordings(slot, chosen(slot.stems)), leads[k]) for k, slot in judged]
    beam = teacher["beam"]
    refined = min((1 - teacher["refine_quantile"]) * beam * len(slots), teacher["max_refined_nodes"])
    one = sum(slots, np.zeros(3))
    search = cost(answer, 0) + beam * (one + cost(answer, leads[-1]))
    search += refined * 2 / max(1, len(few)) * one / max(1, len(slots))  # a revision asks in both orders
    for slot in (slot for slot in spec.slots if slot.source == "free"):
        search += beam * np.array([1, before + leads[-1], slot.max_tokens])
    known = (
        cost(answer, 0) + one + cost(answer, leads[-1])
    )  # the pilot's profiles: best path and direct answer are stored
    count, piloted = teacher["num_profiles"], min(teacher["pilot_profiles"], teacher["num_profiles"])
    total = piloted * pilot + count * search - piloted * np.minimum(known, search)
    polar = [cost(questions.slot_wordings(slot, chosen(slot.stems)), 0) for _, slot in judged if slot.polarity]
    total += 2 * min(piloted, POLARITY_PROFILES) * sum(polar, np.zeros(3))  # the field forced low and high
    requests, read, written = (round(float(x)) for x in total)
    prices = Prices(served["usd_per_million_input"], served["usd_per_million_output"])
    return Estimate(requests, read, written, prices.usd(read, written), served["max_usd"])
