"""Seen and unseen profiles: a planted effect is found on its side only, and a small slice says nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scaletot_jax.evaluation import slices
from scaletot_jax.evaluation.bootstrap import resample_weights
from scaletot_jax.evaluation.catalogue import METRICS, metric_functions
from scaletot_jax.evaluation.comparison import base_distribution
from scaletot_jax.evaluation.predictions import LEVELS, Predictions, Rows, Target, thresholds
from scaletot_jax.evaluation.verdict import HELPED, HURT, UNDECIDED, WITH, WITHOUT

HEAD, TEST, HORIZON = 100, 600, 30
ROWS = Rows(np.arange(HEAD), np.arange(0), np.arange(HEAD, HEAD + TEST))
GROUPS = np.array([f"g{i // 2}" for i in range(HEAD + TEST)], object)
SEEN = np.arange(TEST) % 3 == 0  # crosses the groups: most of them have rows on both sides


def world(kind="days", seed=0):
    """Labels of all rows, and a noisy forecast of the test rows."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=HEAD + TEST)
    days = np.minimum(rng.poisson(np.exp(0.3 + 0.8 * state)), HORIZON).astype(float)
    labels = days if kind == "days" else days * rng.lognormal(1.0, 0.3, len(days))
    target = Target("label", kind, HORIZON if kind == "days" else 0, labels)
    return target, np.exp(0.3 + 0.8 * (state[ROWS.test] + rng.normal(size=TEST)))


def forecast(target, mean):
    """Predictions with that expectation: for days, the neighbouring days share the mass; a value is certain."""
    mean = np.clip(mean, 0, target.labels.max())
    distribution = None
    if target.kind == "days":
        low = np.floor(mean).astype(int)
        distribution = np.zeros((len(mean), HORIZON + 2))
        distribution[np.arange(len(mean)), low] = 1 - (mean - low)
        distribution[np.arange(len(mean)), low + 1] = mean - low
        distribution = distribution[:, : HORIZON + 1] / distribution[:, : HORIZON + 1].sum(1, keepdims=True)
    quantiles = np.tile(mean[:, None], len(LEVELS)) if target.kind == "value" else None
    return [Predictions(mean, np.minimum(mean / HORIZON, 1), distribution, quantiles)]


def judge(target, with_z, without, seen, *, groups=GROUPS, resamples=200):
    systems = {WITH: forecast(target, with_z), WITHOUT: forecast(target, without)}
    return slices.score_slices(target, systems, ROWS, groups, seen, resamples=resamples, level=0.95, seed=0)


def nearer(target, mean, where, share=0.5):
    """The forecast moved towards the truth on some rows."""
    return np.where(where, mean + share * (target.labels[ROWS.test] - mean), mean)


@pytest.mark.parametrize("kind", ["days", "value"])
def test_a_gain_on_seen_profiles_is_found_there_and_nowhere_else(kind):
    target, mean = world(kind)
    found = judge(target, nearer(target, mean, SEEN), mean, {"head": SEEN})["head"]
    assert (found["seen"]["rows"], found["unseen"]["rows"]) == (SEEN.sum(), (~SEEN).sum())
    assert found["seen"]["groups"] == len({g for g, s in zip(GROUPS[ROWS.test], SEEN) if s})
    for metric in slices.sliced(kind):
        assert found["seen"]["difference"][metric]["word"] == HELPED, metric
        nothing = {"estimate": 0.0, "low": 0.0, "high": 0.0, "word": UNDECIDED}
        assert found["unseen"]["difference"][metric] == nothing
        assert found["unseen"]["systems"][WITH][metric] == found["unseen"]["systems"][WITHOUT][metric]
    assert found["seen_minus_unseen"]["spearman"]["low"] > 0 > found["seen_minus_unseen"]["rmse"]["high"]


def test_a_loss_on_unseen_profiles_is_found_there_and_nowhere_else():
    target, mean = world()
    wrong = np.random.default_rng(1).permutation(mean)
    found = judge(target, np.where(SEEN, mean, wrong), mean, {"teacher": SEEN})["teacher"]
    assert {row["word"] for row in found["unseen"]["difference"].values()} == {HURT}
    assert {row["estimate"] for row in found["seen"]["difference"].values()} == {0.0}


def test_an_effect_that_does_not_depend_on_being_seen_makes_no_contrast():
    target, mean = world()
    found = judge(target, nearer(target, mean, SEEN | ~SEEN), mean, {"head": SEEN})["head"]
    for side in slices.SIDES:
        assert found[side]["difference"]["spearman"]["word"] == HELPED
    for metric in ("spearman", "auc", "rps"):
        assert found["seen_minus_unseen"][metric]["low"] < 0 < found["seen_minus_unseen"][metric]["high"], metric


def test_numbers_are_those_of_the_repeated_rows_of_a_slice():
    """Oracle: each resample written out as a table in which the rows of a drawn group stand as often as it was drawn."""
    target, mean = world()
    better = nearer(target, mean, SEEN, 0.3)
    found = judge(target, better, mean, {"head": SEEN}, resamples=40)["head"]["seen"]
    y, members = target.labels[ROWS.test], GROUPS[ROWS.test]
    rho, error = [], []
    for times in np.concatenate(list(resample_weights(members, 40, 0))).astype(int):
        rows = np.repeat(np.arange(TEST), np.where(SEEN, times, 0))
        pair = [stats.spearmanr(y[rows], forecast(target, m)[0].mean[rows])[0] for m in (better, mean)]
        rho.append(pair[0] - pair[1])
        error.append(np.sqrt(np.mean((forecast(target, mean)[0].mean[rows] - y[rows]) ** 2)))
    difference, plain = found["difference"]["spearman"], found["systems"][WITHOUT]["rmse"]
    np.testing.assert_allclose([difference["low"], difference["high"]], np.percentile(rho, [2.5, 97.5]), rtol=1e-9)
    np.testing.assert_allclose([plain["low"], plain["high"]], np.percentile(error, [2.5, 97.5]), rtol=1e-9)
    whole = [stats.spearmanr(y[SEEN], m[SEEN])[0] for m in (better, mean)]
    assert difference["estimate"] == pytest.approx(whole[0] - whole[1], rel=1e-9)


@pytest.mark.parametrize(
    ("rows", "of_one_group", "why"), [(29, 1, "30 rows"), (30, 1, ""), (90, 10, "10 groups"), (100, 10, "")]
)
def test_a_small_slice_is_too_few_to_tell(rows, of_one_group, why):
    target, mean = world()
    groups = np.array([f"g{i // of_one_group}" for i in range(-HEAD, TEST)], object)
    found = judge(target, mean, mean, {"head": np.arange(TEST) < rows}, groups=groups, resamples=20)["head"]
    if why:
        assert found["seen"] == {"rows": rows, "groups": -(-rows // of_one_group), "note": slices.TOO_FEW, "why": f"fewer than {why}"}  # fmt: skip
        assert "seen_minus_unseen" not in found
    else:
        assert "note" not in found["seen"] and set(found["seen_minus_unseen"]) == set(slices.sliced("days"))
    assert "systems" in found["unseen"]


def test_equal_labels_are_too_few_to_tell():
    target, mean = world()
    labels = target.labels.copy()
    labels[ROWS.test[SEEN]] = 2.0
    found = judge(target._replace(labels=labels), mean, mean, {"head": SEEN}, resamples=20)["head"]
    assert found["seen"]["note"] == slices.TOO_FEW and found["seen"]["why"] == "all labels are equal"


@pytest.mark.parametrize(("share", "word"), [(0, "no one"), (1, "every one")])
def test_where_all_or_none_are_seen_the_slice_does_not_apply(share, word):
    target, mean = world()
    found = judge(target, mean, mean, {"teacher": np.full(TEST, bool(share)), "head": SEEN}, resamples=20)
    assert found["teacher"] == {"note": slices.NOT_APPLICABLE, "why": f"{word} of the {TEST} test rows was seen"}
    assert "systems" in found["head"]["seen"]


@pytest.mark.parametrize("kind", ["days", "value"])
def test_a_resample_that_draws_nobody_of_a_slice_has_no_value(kind):
    """NaN and no warning, so that the interval is that of the other resamples."""
    target, mean = world(kind)
    weights = np.stack([np.zeros(TEST), np.ones(TEST)])
    edges = thresholds(target, ROWS)
    base = None if kind == "value" else base_distribution(target, ROWS)
    functions = metric_functions(target, target.labels[ROWS.test], forecast(target, mean)[0], edges, base)
    assert set(functions) == set(METRICS[kind])
    for function in functions.values():
        none, everyone = function(weights)
        assert np.isnan(none) and everyone == pytest.approx(float(function(None)), rel=1e-12)


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30), st.data())
def test_seen_is_membership(keys, data):
    places = st.lists(st.integers(0, len(keys) - 1), max_size=10)
    known, rows = data.draw(places), data.draw(places)
    members = {keys[i] for i in known}
    found = slices.seen_rows(np.array(keys, object), np.array(known, int), np.array(rows, int))
    assert found.tolist() == [keys[i] in members for i in rows]
