"""The switch-off test: an interval with the right coverage, windows judged once, and the same verdict after a restart."""

import numpy as np
import pytest
from scipy.stats import t

from scaletot_jax.student.osipo import fired, summarise, worse_than_sft
from scaletot_jax.student.switch_off import (
    MIN_UPDATES,
    auc_interval,
    never_judged,
    no_better_than_chance,
    students_quantile,
    windows,
)

LOGGED = (
    "outcome", "outcome_variance", "zero_advantage_groups", "clip_fraction", "structural_share", "value_correlation",
)  # fmt: skip


def rows(aucs, pairs=100.0, weight=0.1):
    pairs = np.broadcast_to(pairs, np.shape(aucs))
    return [
        dict(step=n + 1, value_auc=float(a), value_pairs=float(p), process_weight=weight, valid_rate=1.0, kl=0.0)
        for n, (a, p) in enumerate(zip(aucs, pairs))
    ]


def test_interval_of_equal_updates_is_students():
    """With equally many pairs it is the mean ± t · s / √n; t_{4, .975} = 2.776445."""
    aucs = np.asarray([0.5, 0.52, 0.58, 0.55, 0.6])
    found = auc_interval(rows(aucs))
    half = 2.776445 * aucs.std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found[:3], [aucs.mean(), aucs.mean() - half, aucs.mean() + half], rtol=1e-6)
    assert found.pairs == 500 and found.step == 5


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 99, 400])
def test_the_quantile_is_scipys(freedom):
    for level in (0.5, 0.95, 0.99):
        np.testing.assert_allclose(students_quantile(level, freedom), t.ppf((1 + level) / 2, freedom), rtol=1e-9)


def test_pairs_weigh_updates():
    found = auc_interval(rows([1.0, 0.0, 0.7], [300.0, 100.0, 0.0]))
    assert found.auc == 0.75 and found.pairs == 400 and found.step == 2
    assert auc_interval(rows([0.5], 0.0)) is None
    assert auc_interval(rows([0.9], 10.0))[1:3] == (0.0, 1.0)


def test_coverage():
    """Updates whose AUC scatters about .55, with uneven pairs: 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        pairs = rng.integers(20, 200, 12).astype(float)
        found = auc_interval(rows(rng.normal(0.55, 1 / np.sqrt(pairs)), pairs))
        inside += found.low <= 0.55 <= found.high
    assert 0.92 < inside / 400 < 0.98


@pytest.mark.parametrize(("auc", "off"), [(0.5, True), (0.47, True), (0.58, False)])
def test_a_signal_stays_and_none_is_switched_off(auc, off):
    log = rows(auc + 0.03 * np.sin(np.arange(40)))
    assert no_better_than_chance(log, 2000) is off
    assert fired(log, 16.0, 2000) == (["chance"] if off else [])


def test_nothing_is_judged_too_early():
    log = rows([0.4] * 19)
    assert not no_better_than_chance(log, 2000) and no_better_than_chance(rows([0.4] * 20), 2000)
    assert not no_better_than_chance(rows([0.4] * (MIN_UPDATES - 1), 10_000.0), 2000)
    warmup = rows([0.4] * 40, weight=0.0)
    assert not no_better_than_chance(warmup, 2000)


def test_windows_are_judged_once_on_their_own_pairs():
    log = rows(np.linspace(0.6, 0.8, 50))
    found = windows(log, 2000)
    assert [window.step for window in found] == [20, 40] and [window.pairs for window in found] == [2000, 2000]
    assert found[1] == auc_interval(log[20:40])
    for cut in range(50):  # what a restart sees is what the first process saw
        earlier = windows(log[:cut], 2000)
        assert earlier == found[: len(earlier)]


def test_validity_and_kl():
    log = rows([0.6])
    assert fired([{**log[0], "valid_rate": 0.9, "kl": 17.0}], 16.0, 2000) == ["validity", "kl"]


def test_updates_that_lowered_the_held_out_skill_are_named():
    scores = {"sft": {"skill": 0.045}, "osipo": {"skill": -0.136, "users": 100}}
    assert "from +0.045 to -0.136 (100 users" in worse_than_sft(scores) and "distill.student=sft" in worse_than_sft(
        scores
    )
    assert worse_than_sft({**scores, "osipo": {"skill": 0.045, "users": 100}}) is None
    assert worse_than_sft({"osipo": scores["osipo"]}) is None and worse_than_sft({}) is None


def test_a_run_too_small_to_be_judged_says_so():
    """Exactly where no window of its own updates, all of their pairs counted, could be full."""
    settings = dict(updates=10, epochs=1, warmup_updates=2, prompts=4, rollouts=4, process_weight=0.1, auc_pairs=192)
    assert never_judged(settings) is None and windows(rows([0.6] * 8, 24.0), 192)
    for name, value in (("updates", 9), ("auc_pairs", 193), ("rollouts", 3), ("epochs", 2), ("warmup_updates", 3)):
        assert "not judged" in never_judged(settings | {name: value})
    assert "0 batches" in never_judged(settings | {"updates": 1})
    assert never_judged(settings | {"updates": 1, "process_weight": 0.0}) is None


def test_the_summary_says_whether_there_was_a_process_signal():
    def of(aucs, weight):
        steps = [row | dict.fromkeys(LOGGED, 0.5) for row in rows(aucs, weight=weight)]
        return summarise(steps, {})["process_signal"]

    assert of([0.6, 0.62, 0.61], 0.1) is True
    assert of([0.4, 0.62, 0.5], 0.1) is False
    assert of([0.6, 0.62, 0.61], 0.0) is None
