"""The coverage curve: nested shares, honest rows, closed forms of metric, cost and bend; and the stage with a made-up student."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletot_jax.evaluation import coverage as curve
from scaletot_jax.evaluation.coverage import Scores, Tokens


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.integers(0, 5))
def test_shares_are_nested_whole_groups_of_the_stated_size(numbers, seed):
    groups = np.array([f"g{n}" for n in numbers], object)
    rank = curve.ranks(groups, seed)
    before = np.zeros(len(groups), bool)
    for share in (0.01, 0.0732, 0.3, 1.0):
        member = curve.reasoned(rank, share)
        assert not (before & ~member).any()
        inside = {g for g, m in zip(groups, member) if m}
        assert len(inside) == round(share * len(set(numbers)))
        assert not inside & {g for g, m in zip(groups, member) if not m}
        before = member
    assert before.all()
    fold = curve.folds(groups, 3, seed)
    assert all(len({int(f) for f, g in zip(fold, groups) if g == name}) == 1 for name in set(groups))


def test_labels_of_users_that_the_student_was_trained_on_are_never_used():
    rng = np.random.default_rng(0)
    split = rng.choice(["teacher", "distill", "head", "val", "test"], 500)
    groups = np.array([f"g{i}" for i in range(500)], object)
    member = curve.reasoned(curve.ranks(groups, 0), 0.4)
    plenty = curve.labelled_rows("plentiful", split, member, groups, 0)
    scarce = curve.labelled_rows("scarce", split, member, groups, 0)
    assert set(split[plenty.head]) == set(split[np.concatenate(scarce)]) == {"distill", "head"}
    assert set(split[plenty.val]) == {"val"} and member[np.concatenate(scarce)].all()
    assert not set(scarce.head) & set(scarce.val) and len(scarce.val) > 0


def test_skill_and_differences_are_the_closed_forms_and_paired():
    rng = np.random.default_rng(1)
    y, base = rng.integers(0, 8, 300).astype(float), rng.uniform(0.1, 0.3, 300)
    good, same = Scores(0.7 * base, y + rng.normal(0, 1, 300)), Scores(base, np.zeros(300))
    found = curve.judge(
        {"profile": same, "everywhere": good, "own": good}, y, base, np.arange(300).astype(str), resamples=200, level=0.95, seed=0
    )  # fmt: skip
    assert found["systems"]["everywhere"]["rps_skill"]["estimate"] == pytest.approx(0.3)
    assert found["systems"]["profile"]["rps_skill"]["estimate"] == pytest.approx(0)
    assert found["systems"]["profile"]["spearman"]["estimate"] is None  # a constant orders nobody
    exact = found["differences"]["everywhere - profile"]["rps_skill"]
    assert exact["low"] == pytest.approx(0.3) and exact["high"] == pytest.approx(0.3)  # in proportion in every resample
    assert all(v == pytest.approx(0) for v in found["differences"]["own - everywhere"]["rps_skill"].values())


def test_pilot_calls_count_in_the_cost_and_not_in_the_coverage():
    tokens = Tokens(pilot=1_000_000, search=500_000, student=200.5)
    nothing, some = (curve.cost(tokens, n, 10.0, 1.0) for n in (0, 1000))
    assert nothing["tokens"] == 1_500_000 and nothing["usd"] == pytest.approx(15)
    assert some["tokens"] - nothing["tokens"] == 200_500 and some["usd"] - nothing["usd"] == pytest.approx(0.2005)


@pytest.mark.parametrize(
    ("y", "place"),
    [
        ([0, 0.8, 0.9, 1.0], 1),  # rises, then flattens
        ([0, 0.1, 0.2, 1.0], None),  # bends the other way
        ([0, 1 / 3, 2 / 3, 1.0], None),  # straight on log x
        ([1.0, 0.5, 0.2, 0.0], None),  # falls
        ([0, 1], None),
    ],
)
def test_where_a_curve_bends(y, place):
    assert curve.bend([10.0**i for i in range(len(y))], y) == place


def test_a_curve_bends_only_where_it_rises_beyond_doubt():
    rng = np.random.default_rng(2)
    base, groups = rng.uniform(0.1, 0.3, 400), np.arange(400).astype(str)
    options = {"resamples": 200, "level": 0.95, "seed": 0}
    skills = (0.0, 0.28, 0.3)
    points = [{"share": s, "tokens": t, "skill": k} for s, t, k in zip((0.01, 0.1, 1.0), (10, 100, 1000), skills)]
    rows = [base * (1 - k) for k in skills]
    found = curve.describe_curve(points, rows, base, groups, **options)
    assert found["bend"] == 0.1 and found["rise"]["low"] == pytest.approx(0.3) and "bends at 0.1" in found["sentence"]
    noisy = [base * (1 + rng.normal(0, 0.5, 400)) for _ in skills]
    flat = [{**p, "skill": 1 - n.sum() / base.sum()} for p, n in zip(points, noisy)]
    assert "flat" in curve.describe_curve(flat, noisy, base, groups, **options)["sentence"]
    assert "no curve" in curve.describe_curve(points[:1], rows[:1], base, groups, **options)["sentence"]


def test_small_points_are_not_run():
    assert curve.not_run(99) and not curve.not_run(100)
    assert curve.not_run(100, 39) and not curve.not_run(100, 40)
