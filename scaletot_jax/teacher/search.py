"""Bounded, entropy-guided Tree-of-Thought over the segments of one profile's chain.

At depth k every path on the beam asks for the exact distribution of segment k's slots. Where the uncertainty u exceeds
the pilot's threshold τ_k, one revision is asked for, which shows the conflicting values and the facts; it is taken iff
u falls by at least ``min_gain``. The b most probable value tuples become candidates; the w best paths go on.

    refine iff u > τ_k          accept iff u_before − u_after ≥ min_gain
    order of paths: higher Σ ln p, then lower u, then lower node number

Candidates are the top of the exact distribution, not samples: the same scores give the same tree. Every bound is
checked before the call it would break, and the cheapest way to finish is always held in reserve: when the budget
does not suffice the search goes on greedily with one path, and when not even that fits, the rest is "unknown".

The search is a generator: it yields lists of :class:`Ask` and is sent the replies. So it runs no model, many profiles
go in lockstep through one batch, and recorded replies replay it. "Bounded entropy-guided refinement" is all that
ScaleToT (arXiv:2606.24605) states; definitions and bounds are this project's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np

from scaletot_jax.teacher import tree as trees
from scaletot_jax.teacher.budget import Bounds, Ledger
from scaletot_jax.teacher.dialogue import Answer, Ask, Draw, Kind, Segment, Values
from scaletot_jax.teacher.tree import NO_VALUE, ROOT, Tree


class Chain(NamedTuple):
    """One finished path. ``distributions``: per segment and slot, what the node was drawn from. ``answer`` is None where
    the budget did not allow it."""

    values: tuple[Values, ...]
    distributions: tuple[tuple[np.ndarray, ...], ...]
    log_prob: float
    weight: float
    answer: np.ndarray | None
    reason: int


class Result(NamedTuple):
    """Chains in order of preference, the direct answer (None if unaffordable), the tree, and what it cost."""

    chains: tuple[Chain, ...]
    direct: np.ndarray | None
    tree: Tree
    calls: int
    tokens: int
    samples: int
    refined: int
    budget: bool


Search = Generator[list[Ask], list[Draw | Answer], Result]
Cost = Callable[[Kind, int], int]


def search(
    segments: Sequence[Segment],
    thresholds: Sequence[float],
    bounds: Bounds,
    *,
    cost: Cost,
    clock: Callable[[], float] = lambda: 0.0,
) -> Search:
    """Searches the chain of one profile.

    Args:
      segments: K segments in order.
      thresholds: τ_k of each segment.
      cost: upper bound of the tokens of a call, from its kind and segment (−1 for the answer), for any path.
      clock: seconds; only read where a deadline is set.

    Yields:
      Calls to be made; the replies are sent in the same order, a Draw a segment or revision, an Answer an answer.

    Returns:
      At least one valid chain, whatever the budget.

    Raises:
      ValueError: a reply breaks its contract (cost above the announced, not a distribution).
    """
    ledger = Ledger(bounds, clock)
    slots = max(len(segment.fixed) for segment in segments)
    tree = trees.empty(1 + len(segments) * (2 * bounds.beam + 1) * bounds.candidates, slots)
    draws: dict[int, tuple[np.ndarray, ...]] = {}
    answer_cost = cost("answer", -1)

    def to_finish(k: int) -> tuple[int, int, int]:
        """Calls, tokens and samples of the greedy way from depth k to the answer."""
        rest = [j for j in range(k, len(segments)) if segments[j].scored]
        return len(rest) + 1, sum(cost("segment", j) for j in rest) + answer_cost, len(rest)

    direct = None
    if ledger.allows(1, answer_cost):
        (reply,) = yield [Ask("answer", ())]
        direct = _answer(reply)
        ledger.charge([reply], answer_cost, 0)

    beam, budget, width = [ROOT], False, bounds.candidates
    for k, segment in enumerate(segments):
        if not segment.scored:
            before, beam = beam, []
            for parent in before:
                tree, node = trees.add(tree, parent, segment.fixed, 1.0, kept=True)
                draws[node] = _fixed(segment, segment.fixed)
                beam.append(node)
            continue

        price = cost("segment", k)
        later = to_finish(k + 1)
        if not budget and not ledger.allows(
            len(beam) + later[0], len(beam) * price + later[1], len(beam) * width + later[2]
        ):
            budget, width = True, 1
            tree = trees.mark(tree, beam[1:], kept=False, reason=trees.GREEDY)
            beam = beam[:1]
        if budget and not ledger.allows(2, price + answer_cost, 1):  # this call and the answer's
            values = tuple(u if f == NO_VALUE else f for f, u in zip(segment.fixed, segment.unknown))
            tree, node = trees.add(tree, beam[0], values, 1.0, kept=True, reason=trees.EXHAUSTED)
            draws[node] = _fixed(segment, values)
            beam = [node]
            continue

        replies = yield [Ask("segment", _values(tree, node, segments), k) for node in beam]
        ledger.charge(replies, len(beam) * price, len(beam) * width)
        before_revision = [_draw(reply, segment) for reply in replies]
        drawn = list(before_revision)

        asks: list[Ask] = []
        asked: list[int] = []
        price = cost("revision", k)
        for i in sorted(range(len(beam)), key=lambda i: (-drawn[i].uncertainty, i)):
            conflict = _conflict(drawn[i], segment)
            more = len(asks) + 1
            if (
                not budget
                and conflict is not None
                and drawn[i].uncertainty > thresholds[k]
                and ledger.refined + more <= bounds.max_refined_nodes
                and ledger.allows(more + later[0], more * price + later[1], more * width + later[2])
            ):
                asks.append(Ask("revision", _values(tree, beam[i], segments), k, drawn[i].focus, conflict))
                asked.append(i)
        accepted = set()
        if asks:
            replies = yield asks
            ledger.charge(replies, len(asks) * price, len(asks) * width)
            ledger.refined += len(asks)
            for i, reply in zip(asked, replies):
                revised = _draw(reply, segment)
                if drawn[i].uncertainty - revised.uncertainty >= bounds.min_gain:
                    drawn[i] = revised
                    accepted.add(i)

        children = []
        for i, parent in enumerate(beam):
            note = {"threshold": thresholds[k], "refined": i in asked, "refinement_accepted": i in accepted}
            if i in accepted:
                for values, probability in top_tuples(before_revision[i].probabilities, width):
                    tree, _ = trees.add(
                        tree,
                        parent,
                        values,
                        probability,
                        reason=trees.REPLACED,
                        **note,
                        **_measures(before_revision[i]),
                    )
            tree, nodes = _expand(tree, parent, segment, drawn[i], width, note)
            draws.update(dict.fromkeys(nodes, drawn[i].probabilities))
            children += nodes
        children.sort(key=lambda node: (-tree.log_prob[node], tree.uncertainty[node], node))
        beam = children[: bounds.beam]
        tree = trees.mark(tree, children[bounds.beam :], reason=trees.OUTSIDE)
        tree = trees.mark(tree, beam, kept=True, reason=trees.GREEDY if budget else trees.OPEN)

    answers: list[np.ndarray | None] = [None] * len(beam)
    count = max((n for n in range(len(beam) + 1) if ledger.allows(n, n * answer_cost)), default=0)
    if count:
        replies = yield [Ask("answer", _values(tree, node, segments)) for node in beam[:count]]
        ledger.charge(replies, count * answer_cost, 0)
        answers[:count] = [_answer(reply) for reply in replies]
    budget = budget or count < len(beam) or direct is None
    chains = _chains(tree, beam, segments, draws, answers)
    return Result(chains, direct, tree, ledger.calls, ledger.tokens, ledger.samples, ledger.refined, budget)


def run(searching: Search, reply: Callable[[Ask], Draw | Answer]) -> Result:
    """Drives one search with a function that answers one call."""
    return run_together([searching], lambda asks: [reply(ask) for _, ask in asks])[0]


def run_together(
    searches: Sequence[Search], reply: Callable[[list[tuple[int, Ask]]], Sequence[Draw | Answer]]
) -> list[Result]:
    """Drives several searches in lockstep: ``reply`` gets all open calls as (search, ask) and answers them in order."""
    results: list[Result | None] = [None] * len(searches)
    waiting: dict[int, list[Ask]] = {}
    inbox: dict[int, list[Draw | Answer] | None] = dict.fromkeys(range(len(searches)))
    while inbox:
        for i, replies in inbox.items():
            try:
                waiting[i] = next(searches[i]) if replies is None else searches[i].send(replies)
            except StopIteration as stop:
                waiting.pop(i, None)
                results[i] = stop.value
        answers = list(reply([(i, ask) for i, asks in waiting.items() for ask in asks])) if waiting else []
        inbox, start = {}, 0
        for i, asks in waiting.items():
            inbox[i] = answers[start : start + len(asks)]
            start += len(asks)
    return [result for result in results if result is not None]


def top_tuples(probabilities: Sequence[np.ndarray], count: int) -> list[tuple[Values, float]]:
    """The ``count`` most probable tuples of independent slots, exact; ties by lower value indices.

    Only a slot's own top ``count`` values can occur in one of them, so the product stays small.
    """
    best = [np.argsort(-np.asarray(p), kind="stable")[:count] for p in probabilities]
    tuples = [
        (tuple(int(v) for v in values), float(np.prod([p[v] for p, v in zip(probabilities, values)])))
        for values in itertools.product(*best)
    ]
    return sorted(tuples, key=lambda item: (-item[1], item[0]))[:count]


def _expand(tree: Tree, parent: int, segment: Segment, draw: Draw, width: int, note: dict) -> tuple[Tree, list[int]]:
    """Adds the candidates of one draw; returns the admissible ones. Never returns none: facts alone always remain."""
    nodes = []
    for values, probability in top_tuples(draw.probabilities, width):
        reason = _objection(segment, values, probability)
        tree, node = trees.add(tree, parent, values, probability, reason=reason, **note, **_measures(draw))
        if reason == trees.OPEN:
            nodes.append(node)
    if not nodes:
        values = tuple(int(np.argmax(p)) if f == NO_VALUE else f for f, p in zip(segment.fixed, draw.probabilities))
        judged = [float(p[v]) for f, p, v in zip(segment.fixed, draw.probabilities, values) if f == NO_VALUE]
        tree, node = trees.add(tree, parent, values, float(np.prod(judged)), **note, **_measures(draw))
        nodes.append(node)
    return tree, nodes


def _objection(segment: Segment, values: Values, probability: float) -> int:
    """Why a candidate is inadmissible, or OPEN. Facts are not up for judgement, and absent fields give nothing to judge."""
    for fixed, unknown, value in zip(segment.fixed, segment.unknown, values):
        if fixed not in (NO_VALUE, value):
            return trees.ABSENT if fixed == unknown else trees.CONTRADICTION
    return trees.OPEN if probability > 0 else trees.IMPOSSIBLE


def _conflict(draw: Draw, segment: Segment) -> tuple[int, int] | None:
    """The two most probable values of the draw's focus slot."""
    p = draw.probabilities[draw.focus]
    first, second = (int(v) for v in np.argsort(-p, kind="stable")[:2])
    return (first, second) if segment.fixed[draw.focus] == NO_VALUE and p[second] > 0 else None


def _measures(draw: Draw) -> dict[str, float]:
    return {"entropy": draw.entropy, "disagreement": draw.disagreement, "uncertainty": draw.uncertainty}


def _values(tree: Tree, node: int, segments: Sequence[Segment]) -> tuple[Values, ...]:
    path = trees.path(tree, node)
    return tuple(tuple(int(v) for v in tree.values[n, : len(s.fixed)]) for n, s in zip(path, segments))


def _fixed(segment: Segment, values: Values) -> tuple[np.ndarray, ...]:
    return tuple(np.eye(size)[value] for size, value in zip(segment.sizes, values))


def _draw(reply: Draw | Answer, segment: Segment) -> Draw:
    if not isinstance(reply, Draw):
        raise ValueError("a segment is answered by a Draw")
    for p, size in zip(reply.probabilities, segment.sizes, strict=True):
        if p.shape != (size,) or not np.all(np.isfinite(p)) or np.any(p < 0) or abs(p.sum() - 1) > 1e-4:
            raise ValueError(f"not a distribution over {size} values: {p}")
    return reply


def _answer(reply: Draw | Answer) -> np.ndarray:
    if not isinstance(reply, Answer):
        raise ValueError("an answer is answered by an Answer")
    return reply.probabilities


def _chains(tree, beam, segments, draws, answers) -> tuple[Chain, ...]:
    scores = tree.log_prob[beam]
    weights = np.exp(scores - scores.max())
    weights = weights / weights.sum()
    chains = []
    for node, weight, answer in zip(beam, weights, answers):
        nodes = trees.path(tree, node)
        chains.append(
            Chain(
                values=_values(tree, node, segments),
                distributions=tuple(draws[n] for n in nodes),
                log_prob=float(tree.log_prob[node]),
                weight=float(weight),
                answer=answer,
                reason=int(max(tree.reason[n] for n in nodes)),
            )
        )
    return tuple(chains)
