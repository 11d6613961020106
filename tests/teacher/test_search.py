"""The search: bounds that hold whatever the scores, valid chains, and a reference that reproduces every decision."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher import reference_search

from scaletot_jax.teacher import tree as trees
from scaletot_jax.teacher.budget import Bounds
from scaletot_jax.teacher.dialogue import Answer, Ask, Draw, Segment
from scaletot_jax.teacher.search import run, run_together, search, top_tuples
from scaletot_jax.teacher.tree import NO_VALUE

BUCKETS = 4


def segments_of(shape):
    """A shape lists per segment, per slot, (number of values, fixed value or None); "unknown" is the last value."""
    return [
        Segment(
            tuple(NO_VALUE if fixed is None else fixed for _, fixed in slots),
            tuple(size - 1 for size, _ in slots),
            tuple(size for size, _ in slots),
        )
        for slots in shape
    ]


class Model:
    """Random replies that depend on the question alone; counts what was asked and checks each bound as it is asked."""

    def __init__(self, seed, segments, costs, *, absurd=False):
        self.seed, self.segments, self.costs, self.absurd = seed, segments, costs, absurd
        self.calls, self.tokens, self.asked = 0, 0, []

    def cost(self, kind, segment):
        return self.costs[kind]

    def __call__(self, ask: Ask):
        flat = [v for values in ask.path for v in values]
        kind = ("segment", "revision", "answer").index(ask.kind)
        rng = np.random.default_rng(
            [self.seed, kind, ask.segment + 1, ask.slot + 1, *[c + 1 for c in ask.conflict], *flat]
        )
        tokens = int(rng.integers(1, self.costs[ask.kind] + 1))
        self.calls, self.tokens = self.calls + 1, self.tokens + tokens
        self.asked.append(ask)
        if ask.kind == "answer":
            return Answer(rng.dirichlet(np.ones(BUCKETS)), tokens)
        segment = self.segments[ask.segment]
        probabilities = []
        for size, fixed, unknown in zip(segment.sizes, segment.fixed, segment.unknown):
            p = rng.dirichlet(np.ones(size) * 0.5)
            if not self.absurd:
                p = np.eye(size)[fixed] if fixed != NO_VALUE else np.where(np.arange(size) == unknown, 0, p) + 0.0
            probabilities.append(p / p.sum())
        focus = segment.fixed.index(NO_VALUE)
        h, d = rng.uniform(), rng.uniform()
        return Draw(tuple(probabilities), h, d, (h + d) / 2, focus, tokens)


slot = st.integers(2, 4).flatmap(lambda size: st.tuples(st.just(size), st.none() | st.integers(0, size - 1)))
shapes = st.lists(st.lists(slot, min_size=1, max_size=3), min_size=1, max_size=5)
bounds = st.builds(
    Bounds,
    beam=st.integers(1, 3),
    candidates=st.integers(1, 4),
    min_gain=st.sampled_from([0.0, 0.05, 0.5]),
    max_refined_nodes=st.integers(0, 4),
    max_samples=st.integers(0, 25) | st.just(45),
    max_calls=st.integers(0, 25),
    max_tokens=st.integers(0, 300),
)
costs = st.fixed_dictionaries(
    {"segment": st.integers(1, 30), "revision": st.integers(1, 40), "answer": st.integers(1, 30)}
)
thresholds = st.sampled_from([0.0, 0.4, 0.6, 1.0])


@settings(max_examples=400)
@given(shapes, bounds, costs, thresholds, st.integers(0, 2**31), st.booleans())
def test_no_bound_is_ever_exceeded_and_every_chain_is_valid(shape, bounds, costs, tau, seed, absurd):
    segments = segments_of(shape)
    model = Model(seed, segments, costs, absurd=absurd)
    result = run(search(segments, [tau] * len(segments), bounds, cost=model.cost), model)

    assert model.calls == result.calls <= bounds.max_calls
    assert model.tokens == result.tokens <= bounds.max_tokens
    assert result.samples <= bounds.max_samples
    assert result.refined == sum(ask.kind == "revision" for ask in model.asked) <= bounds.max_refined_nodes
    assert all(len(ask.path) <= len(segments) for ask in model.asked)
    assert 1 <= len(result.chains) <= bounds.beam
    assert len({chain.values for chain in result.chains}) == len(result.chains)  # no duplicates
    for chain in result.chains:
        assert [len(values) for values in chain.values] == [len(s.sizes) for s in segments]
        for values, parts, segment in zip(chain.values, chain.distributions, segments):
            for value, p, size, fixed in zip(values, parts, segment.sizes, segment.fixed):
                assert 0 <= value < size and p.shape == (size,)
                assert fixed in (NO_VALUE, value)  # a fact is never overruled
    assert sum(chain.weight for chain in result.chains) == pytest.approx(1)
    assert [chain.log_prob for chain in result.chains] == sorted((c.log_prob for c in result.chains), reverse=True)
    if not result.budget:
        assert result.direct is not None and all(chain.answer is not None for chain in result.chains)
    exhausted = [c for c in result.chains if c.reason == trees.EXHAUSTED]
    assert not exhausted or result.budget


@given(shapes, bounds, costs, thresholds, st.integers(0, 2**31), st.booleans())
def test_the_same_scores_give_the_same_tree(shape, bounds, costs, tau, seed, absurd):
    segments = segments_of(shape)
    results = []
    for _ in range(2):
        model = Model(seed, segments, costs, absurd=absurd)
        results.append(run(search(segments, [tau] * len(segments), bounds, cost=model.cost), model))
    for a, b in zip(results[0].tree, results[1].tree):
        np.testing.assert_array_equal(a, b)
    assert [c.values for c in results[0].chains] == [c.values for c in results[1].chains]


@settings(max_examples=400)
@given(shapes, bounds, costs, thresholds, st.integers(0, 2**31))
def test_an_independent_reference_reproduces_every_decision(shape, bounds, costs, tau, seed):
    segments = segments_of(shape)
    model = Model(seed, segments, costs)
    recorded = {}

    def record(ask):
        recorded[ask.kind, ask.path, ask.segment] = reply = model(ask)
        return reply

    result = run(search(segments, [tau] * len(segments), bounds, cost=model.cost), record)
    expected = reference_search.replay(shape, [tau] * len(segments), bounds, costs, recorded)
    assert [chain.values for chain in result.chains] == expected["chains"]
    assert (result.calls, result.tokens, result.samples, result.refined) == expected["spent"]
    assert result.budget == expected["budget"]
    for chain, answer in zip(result.chains, expected["answers"]):
        assert (chain.answer is None) == (answer is None)


@given(st.lists(st.integers(2, 5), min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 1000))
def test_top_tuples_is_the_head_of_the_full_product(sizes, count, seed):
    rng = np.random.default_rng(seed)
    probabilities = [rng.integers(1, 4, size).astype(float) for size in sizes]  # small integers: many exact ties
    probabilities = [p / p.sum() for p in probabilities]
    every = [
        (values, float(np.prod([p[v] for p, v in zip(probabilities, values)])))
        for values in itertools.product(*[range(size) for size in sizes])
    ]
    expected = sorted(every, key=lambda item: -round(item[1], 12))[:count]
    found = top_tuples(probabilities, count)
    np.testing.assert_allclose([p for _, p in found], [p for _, p in expected])
    assert len({values for values, _ in found}) == len(found)


def test_searches_in_lockstep_equal_searches_alone():
    segments = segments_of([[(3, None)], [(2, 1)], [(4, None), (3, None)]])
    costs = {"segment": 10, "revision": 20, "answer": 10}
    models = [Model(seed, segments, costs) for seed in range(5)]
    limits = [Bounds(max_calls=calls) for calls in (0, 3, 6, 24, 24)]

    def start(model, limit):
        return search(segments, [0.5] * 3, limit, cost=model.cost)

    alone = [run(start(model, limit), model) for model, limit in zip(models, limits)]
    together = run_together(
        [start(model, limit) for model, limit in zip(models, limits)], lambda asks: [models[i](ask) for i, ask in asks]
    )
    assert [[c.values for c in r.chains] for r in alone] == [[c.values for c in r.chains] for r in together]
    assert [r.calls for r in alone] == [r.calls for r in together]


def test_equal_paths_are_ordered_by_uncertainty_then_by_number():
    """Two paths of the same probability; the second one's next segment is surer, so its children come first."""
    segments = segments_of([[(3, None)], [(3, None)]])

    def reply(ask):
        if ask.kind == "answer":
            return Answer(np.ones(BUCKETS) / BUCKETS, 1)
        u = 0.1 if ask.path == ((1,),) else 0.2
        return Draw((np.array([0.5, 0.5, 0.0]),), u, u, u, 0, 1)

    result = run(search(segments, [1.0, 1.0], Bounds(beam=3), cost=lambda kind, k: 1), reply)
    assert [chain.values for chain in result.chains] == [((1,), (0,)), ((1,), (1,)), ((0,), (0,))]


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_scarce_revisions_go_to_the_most_uncertain_path(allowed):
    segments = segments_of([[(4, None)], [(3, None)]])
    asked = []

    def reply(ask):
        if ask.kind == "answer":
            return Answer(np.ones(BUCKETS) / BUCKETS, 1)
        if ask.kind == "revision":
            asked.append(ask.path)
        first = ask.segment == 0
        u = 0.0 if first else {((0,),): 0.7, ((1,),): 0.9, ((2,),): 0.8}[ask.path]
        return Draw((np.array([0.4, 0.3, 0.3, 0.0]) if first else np.array([0.6, 0.4, 0.0]),), u, u, u, 0, 1)

    limits = Bounds(beam=3, max_refined_nodes=allowed)
    run(search(segments, [0.5, 0.5], limits, cost=lambda kind, k: 1), reply)
    assert asked == [((1,),), ((2,),)][:allowed]


def scripted(u_before, u_after, p_after):
    """One segment, one slot of three values; a revision that changes the distribution."""
    segments = segments_of([[(4, None)]])

    def reply(ask):
        if ask.kind == "answer":
            return Answer(np.ones(BUCKETS) / BUCKETS, 1)
        if ask.kind == "revision":
            assert ask.conflict == (0, 1)
            return Draw((np.asarray(p_after),), 0.5, 0.5, u_after, 0, 1)
        return Draw((np.array([0.5, 0.3, 0.2, 0.0]),), 0.5, 0.5, u_before, 0, 1)

    return run(search(segments, [0.6], Bounds(beam=1, min_gain=0.05), cost=lambda kind, k: 1), reply)


def test_a_revision_is_taken_iff_uncertainty_falls_enough():
    calm = scripted(0.6, 0.0, [0.1, 0.8, 0.1, 0.0])  # u does not exceed the threshold
    assert calm.refined == 0 and calm.chains[0].values == ((0,),)
    taken = scripted(0.7, 0.65 - 1e-9, [0.1, 0.8, 0.1, 0.0])
    assert taken.refined == 1 and taken.chains[0].values == ((1,),)
    np.testing.assert_allclose(taken.chains[0].distributions[0][0], [0.1, 0.8, 0.1, 0.0])
    assert (taken.tree.reason[: taken.tree.size] == trees.REPLACED).sum() == 3  # the old candidates stay on record
    refused = scripted(0.7, 0.66, [0.1, 0.8, 0.1, 0.0])
    assert refused.refined == 1 and refused.chains[0].values == ((0,),)
    node = trees.path(refused.tree, int(np.flatnonzero(refused.tree.kept)[-1]))[-1]
    assert refused.tree.refined[node] and not refused.tree.refinement_accepted[node]


def test_candidates_that_contradict_facts_are_rejected_with_a_reason():
    segments = segments_of([[(3, 1), (3, None)], [(3, 2), (2, None)]])  # "mid" is a fact; the second is absent

    def reply(ask):
        if ask.kind == "answer":
            return Answer(np.ones(BUCKETS) / BUCKETS, 1)
        size = segments[ask.segment].sizes[1]
        second = np.eye(size)[0] * 0.9 + 0.1 / size
        return Draw((np.array([0.6, 0.3, 0.1]), second / second.sum()), 0.1, 0.1, 0.1, 1, 1)

    result = run(search(segments, [1.0, 1.0], Bounds(), cost=lambda kind, k: 1), reply)
    reasons = {trees.REASONS[r] for r in result.tree.reason[: result.tree.size]}
    assert {"contradicts a fact of the profile", "judges a field that is absent"} <= reasons
    assert all(chain.values[0][0] == 1 and chain.values[1][0] == 2 for chain in result.chains)


def test_an_exhausted_budget_still_gives_a_chain_of_facts_and_unknowns():
    segments = segments_of([[(3, None)], [(3, 0)], [(4, None)]])
    model = Model(0, segments, {"segment": 5, "revision": 5, "answer": 5})
    result = run(search(segments, [1.0] * 3, Bounds(max_calls=0), cost=model.cost), model)
    assert result.budget and result.direct is None and model.calls == 0
    assert [chain.values for chain in result.chains] == [((2,), (0,), (3,))]
    assert result.chains[0].answer is None and result.chains[0].reason == trees.EXHAUSTED


def test_the_answer_keeps_its_reserve():
    """Five calls: direct, three segments greedily, and the chain's answer; never a second path."""
    segments = segments_of([[(3, None)], [(3, None)], [(3, None)]])
    model = Model(0, segments, {"segment": 5, "revision": 5, "answer": 5})
    result = run(search(segments, [0.0] * 3, Bounds(max_calls=5), cost=model.cost), model)
    kinds = [ask.kind for ask in model.asked]
    assert kinds[0] == kinds[-1] == "answer" and result.calls == 5
    assert result.chains[0].answer is not None


def test_nothing_is_asked_after_the_deadline():
    now = itertools.count()
    segments = segments_of([[(3, None)], [(3, None)], [(3, None)]])
    model = Model(0, segments, {"segment": 5, "revision": 5, "answer": 5})
    searching = search(segments, [1.0] * 3, Bounds(deadline_s=3), cost=model.cost, clock=lambda: float(next(now)))
    result = run(searching, model)
    assert result.budget and 1 <= result.calls < 5 and len(result.chains) == 1


def test_replies_that_break_their_contract_are_refused():
    segments = segments_of([[(3, None)]])
    good = np.array([0.5, 0.5, 0.0])

    def attempt(draw):
        def reply(ask):
            return Answer(np.ones(BUCKETS) / BUCKETS, 1) if ask.kind == "answer" else draw

        return run(search(segments, [1.0], Bounds(), cost=lambda kind, k: 5), reply)

    with pytest.raises(ValueError, match="announced"):
        attempt(Draw((good,), 0, 0, 0, 0, 6))
    with pytest.raises(ValueError, match="not a distribution"):
        attempt(Draw((good * np.nan,), 0, 0, 0, 0, 1))
    with pytest.raises(ValueError, match="not a distribution"):
        attempt(Draw((good[:2],), 0, 0, 0, 0, 1))


def test_a_full_tree_is_an_error_not_an_overwrite():
    tree = trees.empty(2, 1)
    tree, _ = trees.add(tree, trees.ROOT, (0,), 1.0)
    with pytest.raises(ValueError, match="full"):
        trees.add(tree, trees.ROOT, (1,), 1.0)
