"""Splits: users apart, time forward, by hash; and the assertion that would notice if they were not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.profiles.split import (
    EVALUATION,
    SPLITS,
    TRAIN,
    UNUSED,
    assert_disjoint,
    assign,
    assign_shifted,
    unit_hash,
)

FRACTIONS = {"teacher": 0.25, "distill": 0.2, "head": 0.3, "val": 0.1, "test": 0.15}


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=120),
    st.integers(0, 5),
    st.integers(1, 60),
)
def test_users_apart_and_time_forward(rows, seed, horizon):
    groups = [f"g{group}" for group, _ in rows]
    days = np.array([30 * day for _, day in rows])
    try:
        split = assign(groups, FRACTIONS, seed=seed, days=days, horizon=horizon)
    except ConfigError:
        distinct = np.unique(days)
        assert distinct[0] + horizon > distinct[-max(1, round(len(distinct) * 0.4))]
        return
    assert set(split) <= {*SPLITS, UNUSED}
    of = {}
    for group, name in zip(groups, split):
        if name != UNUSED:
            assert of.setdefault(group, name) == name
    train, evaluation = np.isin(split, TRAIN), np.isin(split, EVALUATION)
    if train.any() and evaluation.any():
        assert days[train].max() + horizon <= days[evaluation].min()
    assert_disjoint(groups, split, days=days, horizon=horizon)


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=50, unique=True), st.integers(0, 9))
def test_a_split_depends_on_the_group_and_the_seed_alone(groups, seed):
    whole = assign(groups, FRACTIONS, seed=seed)
    assert UNUSED not in whole
    for row in (0, len(groups) - 1):
        assert assign([groups[row]], FRACTIONS, seed=seed)[0] == whole[row]
    assert list(assign(groups[::-1], FRACTIONS, seed=seed)) == list(whole[::-1])


def test_fractions_are_met():
    split = assign([f"u{i}" for i in range(20_000)], FRACTIONS, seed=3)
    for name, fraction in FRACTIONS.items():
        assert abs((split == name).mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 20_000)


def test_seeds_are_independent():
    groups = [f"u{i}" for i in range(5_000)]
    one, other = (unit_hash(groups, seed, "split") for seed in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06 and 0.48 < one.mean() < 0.52
    assert not np.array_equal(one, unit_hash(groups, 0, "limit"))
    assert one.min() >= 0 and one.max() < 1


def test_late_rows_of_training_users_and_early_rows_of_the_others_are_unused():
    groups = [f"u{i}" for i in range(300)] * 10
    days = np.repeat(np.arange(10) * 30, 300)
    split = assign(groups, FRACTIONS, seed=0, days=days, horizon=30, evaluation_share=0.4)
    assert set(np.unique(days[np.isin(split, TRAIN)])) == {0, 30, 60, 90, 120, 150}
    assert set(np.unique(days[np.isin(split, EVALUATION)])) == {180, 210, 240, 270}
    kind = np.array(["train" if name in TRAIN else "evaluation" for name in assign(groups, FRACTIONS, seed=0)])
    assert np.array_equal(split == UNUSED, (kind == "train") == (days >= 180))


def test_a_shared_group_is_noticed():
    groups = ["anna", "b", "anna", "c"]
    split = np.array(["teacher", "val", UNUSED, "test"], object)
    assert_disjoint(groups, split)
    split[2] = "head"
    with pytest.raises(DataError, match=r"row 0[\s\S]*1 groups") as refused:
        assert_disjoint(groups, split)
    assert "anna" not in str(refused.value)  # errors show no identifier


def test_an_overlapping_window_is_noticed():
    split = np.array(["teacher", "head", "val"], object)
    days = np.array([0, 30, 60])
    assert_disjoint(["a", "b", "c"], split, days=days, horizon=30)
    with pytest.raises(DataError, match=r"evaluation period[\s\S]*row 1"):
        assert_disjoint(["a", "b", "c"], split, days=days, horizon=31)


def test_one_snapshot_cannot_be_split_by_time():
    with pytest.raises(ConfigError, match=r"no training snapshot[\s\S]*split.time_forward"):
        assign(["a", "b"], FRACTIONS, seed=0, days=np.array([5, 5]), horizon=30)


@pytest.mark.parametrize(("horizon", "last"), [(29, 150), (30, 150), (31, 120), (60, 120), (61, 90)])
def test_the_last_training_snapshot_is_the_one_whose_window_has_closed(horizon, last):
    groups = [f"u{i}" for i in range(100)] * 10
    days = np.repeat(np.arange(10) * 30, 100)
    split = assign(groups, FRACTIONS, seed=0, days=days, horizon=horizon, evaluation_share=0.4)
    assert days[np.isin(split, TRAIN)].max() == last and days[np.isin(split, EVALUATION)].min() == 180


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["A", "B", "C", None])), min_size=1, max_size=80),
    st.integers(0, 5),
)
def test_a_shift_keeps_people_and_values_apart(rows, seed):  # fmt: skip
    groups, values = [f"g{g}" for g, _ in rows], [value for _, value in rows]
    options = {"seed": seed, "field": "module", "train": "B", "test": "A"}
    if not {"A", "B"} <= set(values):
        with pytest.raises(ConfigError, match="no row has this value"):
            assign_shifted(groups, values, FRACTIONS, **options)
        return
    found = assign_shifted(groups, values, FRACTIONS, **options)
    assert_disjoint(groups, found)
    trained = {g for g, v in zip(groups, values) if v == "B"}
    for group, value, name in zip(groups, values, found):
        if value == "B":
            assert name in ("teacher", "distill", "head", "val")
        else:
            assert name == ("test" if value == "A" and group not in trained else UNUSED)
    # a row's split is decided by its own group alone
    again = assign_shifted(groups + ["new"], values + ["B"], FRACTIONS, **options)
    assert again[:-1].tolist() == found.tolist()


def test_a_shift_keeps_the_proportions_of_what_is_learnt_on():
    groups = [f"g{i}" for i in range(20_000)]
    found = assign_shifted(groups, ["B"] * 19_000 + ["A"] * 1000, FRACTIONS, seed=0, field="m", train="B", test="A")
    for name in ("teacher", "distill", "head", "val"):
        assert (found == name).sum() / 19_000 == pytest.approx(FRACTIONS[name] / 0.85, abs=0.01)
    assert (found == "test").sum() == 1000
