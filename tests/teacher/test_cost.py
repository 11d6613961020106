"""Bounds announced before a call hold for every path; the plan is near what a run spends."""

import itertools

import line
import numpy as np
import pytest

from scaletot_jax.chains.spec import builtin_specs, load_spec
from scaletot_jax.config import default_config, load_config, override
from scaletot_jax.profiles.prepare import open_population, prepare
from scaletot_jax.run import Run
from scaletot_jax.teacher import questions
from scaletot_jax.teacher.backend import Backend
from scaletot_jax.teacher.cost import call_cost, plan_cost
from scaletot_jax.teacher.dialogue import Ask, Segment
from scaletot_jax.teacher.questions import CHAIN, DIRECT, Calibration, Case
from scaletot_jax.teacher.teach import teach
from scaletot_jax.teacher.tree import NO_VALUE


@pytest.mark.parametrize("mode", ["trie", "full"])
@pytest.mark.parametrize("name", builtin_specs())
def test_no_call_costs_more_than_announced(tiny_lm, name, mode):
    spec = load_spec(name)
    stems = {slot.name: tuple(range(len(slot.stems))) for slot in spec.slots if slot.source == "scored"}
    stems.update({item: tuple(range(len(spec.answer.stems))) for item in (DIRECT, CHAIN)})
    calibration = Calibration(mode, stems, {}, np.zeros(7), {}, {})
    backend = Backend(None, None, tiny_lm.tokenizer.encode, identity="", close=tiny_lm.tokenizer.encode("\n")[0])
    segments = tuple(
        Segment(
            tuple(NO_VALUE if slot.source == "scored" else 0 for slot in segment.slots),
            tuple(slot.values.index("unknown") for slot in segment.slots),
            tuple(len(slot.values) for slot in segment.slots),
        )
        for segment in spec.segments
    )
    evidence = dict.fromkeys([slot.name for slot in spec.slots], "Active before start: 12 days (far above typical)\n")
    case = Case("key", (1,), segments, evidence)
    cost = call_cost(spec, case, calibration, backend.ids)

    def tokens(ask):
        return len(backend.tree(questions.question(spec, 0, case, ask, calibration), full=mode == "full").tokens)

    choices = [
        [tuple(v) for v in itertools.product(*[range(n) if f == NO_VALUE else [f] for n, f in zip(s.sizes, s.fixed)])]
        for s in segments
    ]
    rng = np.random.default_rng(0)
    for _ in range(20):
        path = tuple(options[rng.integers(len(options))] for options in choices)
        assert tokens(Ask("answer", path)) <= cost("answer", -1)
        assert tokens(Ask("answer", ())) <= cost("answer", -1)
        for k, segment in enumerate(segments):
            if not segment.scored:
                continue
            assert tokens(Ask("segment", path[:k], k)) <= cost("segment", k)
            slot = segment.fixed.index(NO_VALUE)
            judged = [v for v in range(segment.sizes[slot]) if v != segment.unknown[slot]]
            pair = tuple(int(v) for v in rng.permutation(judged)[:2])
            assert tokens(Ask("revision", path[:k], k, slot, pair)) <= cost("revision", k)


def test_the_plan_is_near_what_a_run_spends(tmp_path):
    config = load_config(line.write_recipe(tmp_path))
    override(config, "teacher.scoring", "trie")  # under auto, a random model may ask for a second pilot
    with Run(tmp_path / "run", config.to_dict()) as run:
        prepare(run)
        summary = teach(run).summary()
        population = open_population(run)
        from scaletot_jax.lm.load import load_model

        encode = load_model(config.lm.weights).tokenizer.encode
        texts = population.renderer.texts(population.table)
        plan = plan_cost(
            load_spec("synthetic"), encode, config.teacher.to_dict(), np.mean([len(encode(t)) for t in texts])
        )
    # The run's own count charges every question, stored or not; the plan counts what the model runs.
    pilot = plan["pilot"]["profiles"] * plan["pilot"]["tokens_per_profile"]
    assert pilot == pytest.approx(summary["tokens"]["pilot"], rel=0.2)
    assert plan["pilot"]["profiles"] * plan["pilot"]["calls_per_profile"] == summary["calls"]["pilot"]
    assert 0.3 < plan["search"]["profiles"] * plan["search"]["tokens_per_profile"] / summary["tokens"]["search"] <= 1.2


def test_the_plan_grows_with_what_is_asked_and_keeps_the_bounds(tiny_lm):
    spec, encode = load_spec("synthetic"), tiny_lm.tokenizer.encode
    settings = default_config().teacher.to_dict()

    def tokens(**changes):
        return plan_cost(spec, encode, {**settings, **changes}, 60.0)["total"]["tokens"]

    assert tokens(beam=1) < tokens(beam=2) < tokens(beam=3)
    assert tokens(refine_quantile=0.9) < tokens(refine_quantile=0.5)
    assert tokens(num_profiles=4000) > tokens(num_profiles=2000)
    capped = plan_cost(spec, encode, {**settings, "max_tokens": 100, "max_calls": 2}, 60.0)["search"]
    assert capped["tokens_per_profile"] <= 100 and capped["calls_per_profile"] <= 2
