"""Deciles by hand, with ties, and an interval that covers."""

import numpy as np
import pyarrow as pa
import pytest

from scaletot_jax.report.calibration import calibration, deciles

RESAMPLING = {"resamples": 200, "level": 0.95, "seed": 0}


def test_deciles_of_distinct_predictions_are_tenths():
    expected = np.arange(100)[::-1].astype(float)
    rows = deciles(expected, 2 * expected, np.arange(100), **RESAMPLING)
    assert [row["decile"] for row in rows] == list(range(1, 11)) and {row["rows"] for row in rows} == {10}
    assert rows[0]["expected"] == pytest.approx(4.5) and rows[9]["expected"] == pytest.approx(94.5)
    assert [row["observed"]["estimate"] for row in rows] == pytest.approx([2 * row["expected"] for row in rows])
    assert all(row["observed"]["low"] <= row["observed"]["estimate"] <= row["observed"]["high"] for row in rows)


def test_equal_predictions_are_never_parted_whatever_their_order():
    """Seven of ten rows are tied: their midpoint, 0.35, puts all of them into the fourth tenth."""
    expected, label = np.array([1.0] * 7 + [2.0, 3.0, 4.0]), np.array([0.0, 9, 0, 9, 0, 9, 0, 1, 2, 3])
    order = np.random.default_rng(0).permutation(10)
    for index in (np.arange(10), order):
        rows = deciles(expected[index], label[index], np.arange(10), **RESAMPLING)
        assert [(row["decile"], row["rows"]) for row in rows] == [(4, 7), (8, 1), (9, 1), (10, 1)]
        assert rows[0]["observed"]["estimate"] == pytest.approx(27 / 7)


def test_one_group_has_no_spread_and_many_have():
    expected, label = np.zeros(50), np.random.default_rng(0).normal(size=50)
    (one,) = deciles(expected, label, np.zeros(50), **RESAMPLING)
    (many,) = deciles(expected, label, np.arange(50), **RESAMPLING)
    assert one["observed"]["low"] == pytest.approx(one["observed"]["high"])
    spread = many["observed"]["high"] - many["observed"]["low"]
    assert spread == pytest.approx(2 * 1.96 * label.std() / 50**0.5, rel=0.2)


def test_the_table_of_predictions_is_read_by_label_and_system():
    size = 20
    parts = [
        {"row": range(size), "target": ["days"] * size, "features": [features] * size, "system": [system] * size,
         "expected": np.arange(size) * scale, "label": np.arange(size)}
        for features, system, scale in (("all", "profile", 1.0), ("all", "profile_z", 2.0), ("all", "ridge", 3.0), ("static", "profile", 9.0))
    ]  # fmt: skip
    predictions = pa.concat_tables([pa.table(part) for part in parts])
    population = pa.table({"row": range(size), "group": [f"g{i // 2}" for i in range(size)]})
    found = calibration(predictions, population, "all", **RESAMPLING)
    assert set(found) == {"days"} and set(found["days"]) == {"profile", "profile_z"}
    assert [row["expected"] for row in found["days"]["profile"]] == [2 * b + 0.5 for b in range(10)]
    assert [row["expected"] for row in found["days"]["profile_z"]] == [4 * b + 1.0 for b in range(10)]
