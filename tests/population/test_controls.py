"""The population of the controls: what its teachers know, what its states hold, and the best score."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from scaletot_jax.evaluation.metrics import rps_rows
from scaletot_jax.population import controls
from scaletot_jax.population.synthetic import days_distribution


def test_a_town_says_its_worth_to_the_teacher_and_to_nobody_else():
    world = controls.draw_world(4000, towns=400, seed=1)
    days = world.table["lt30"].to_numpy()
    assert 0.25 < spearmanr(world.m, days).statistic < 0.6
    best = days_distribution(world.m, controls.LABEL_NOISE)
    assert best.sum(1) == pytest.approx(1) and (best >= 0).all()
    assert best.mean(0) == pytest.approx(
        np.bincount(days, minlength=31) / 4000, abs=0.02
    )  # what was drawn is what is best
    shifted = days_distribution(world.m + 0.5, controls.LABEL_NOISE)
    assert rps_rows(days, best).mean() < rps_rows(days, shifted).mean()
    towns = np.array(world.table["town"].to_pylist())
    for town in np.unique(towns)[:20]:
        assert len(set(world.levels[towns == town, 0])) == 1
    assert np.bincount(world.levels[:, 1], minlength=5) / 4000 == pytest.approx(0.2, abs=0.02)


def test_a_chain_says_what_its_teacher_knows():
    levels = controls.draw_world(3000, towns=300, seed=2).levels
    same, other = (controls.said_levels(levels, kind, 3) for kind in controls.KINDS)
    assert (same == levels).all() and 0.1 < (other == levels).mean() < 0.35
    assert np.bincount(other[:, 0]).tolist() == np.bincount(levels[:, 0]).tolist()  # the same look
    p = controls.distributions(same, 0.25)
    assert p.sum(2) == pytest.approx(1) and p[0, 0, same[0, 0]] == pytest.approx(0.75 + 0.05)
    drawn = controls.draw_levels(p, np.random.default_rng(0))
    assert (drawn == same).mean() == pytest.approx(0.8, abs=0.02)
    with pytest.raises(ValueError, match="kind"):
        controls.said_levels(levels, "neutral", 0)


def test_states_follow_from_seed_and_user_and_hold_the_levels_said():
    p = controls.distributions(controls.draw_world(200, towns=20, seed=4).levels, 0.1)
    ids = np.arange(200)
    options = {"chains": 2, "slip": 0.1, "noise": 0.1, "seed": 5}
    states, said = controls.states(p, ids, **options)
    again, _ = controls.states(p[7:9], ids[7:9], **options)
    assert (again == states[7:9]).all() and said.shape == (200, 2, 3)
    for level in range(controls.LEVELS):  # states of one level lie together, apart from those of others
        own = states[:, :, 0][said[:, :, 0] == level]
        rest = states[:, :, 0][said[:, :, 0] != level]
        assert np.linalg.norm(own - own.mean(0), axis=1).max() < np.linalg.norm(rest - own.mean(0), axis=1).min()
