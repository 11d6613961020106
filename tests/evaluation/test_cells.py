"""Cells of the test rows and the gaps between them: a planted inequality is found, small cells are kept silent."""

import numpy as np

from scaletot_jax.evaluation.cells import MOST_VALUES, SPARSITY, score_cells, sparsity
from scaletot_jax.evaluation.predictions import Predictions, Rows, Target
from scaletot_jax.evaluation.slices import TOO_FEW
from scaletot_jax.evaluation.verdict import WITH, WITHOUT

TEST = 400
ROWS = Rows(np.arange(90), np.arange(0), np.arange(90, 90 + TEST))
GROUPS = np.arange(90 + TEST)


def judge(shift=2.0, cells=None):
    """Forecasts that promise the rows of value "a" ``shift`` too much without ẑ, and are right on average with it."""
    rng = np.random.default_rng(0)
    y = np.r_[np.zeros(90), rng.poisson(3.0, TEST).astype(float)]
    field = np.where(np.arange(TEST) % 2 == 0, "a", "b").astype(object)
    mean = np.full(TEST, 3.0) + 0.3 * rng.normal(size=TEST)
    off = mean + np.where(field == "a", shift, 0.0)
    systems = {WITH: [Predictions(mean, mean / 30)], WITHOUT: [Predictions(off, off / 30)]}
    target = Target("lt30", "days", 30, y)
    divisions = {"field": field} if cells is None else cells
    return score_cells(target, systems, ROWS, GROUPS, divisions, resamples=200, level=0.95, seed=0)


def test_an_inequality_that_z_removes_is_a_smaller_gap():
    found = judge()["field"]
    assert found["cells"]["a"]["rows"] == found["cells"]["b"]["rows"] == TEST / 2
    bias = found["cells"]["a"]["systems"]
    assert bias[WITHOUT]["bias"]["low"] > 1.5 and bias[WITH]["bias"]["low"] < 0.2
    gap = found["gaps"]["bias"]
    assert (
        gap["cells"] == 2 and gap["without"]["estimate"] > 1.5 > gap["with"]["estimate"] and gap["change"]["high"] < 0
    )
    assert (
        "word" not in found["cells"]["a"]["difference"]["bias"] and "word" in found["cells"]["a"]["difference"]["auc"]
    )


def test_without_an_inequality_the_gap_does_not_change():
    change = judge(shift=0.0)["field"]["gaps"]["bias"]["change"]
    assert change == {"estimate": 0.0, "low": 0.0, "high": 0.0}


def test_a_small_cell_has_no_figure_and_no_size_and_makes_no_gap():
    field = np.where(np.arange(TEST) < 12, "rare", "common").astype(object)
    found = judge(cells={"field": field})["field"]
    few = {"note": TOO_FEW, "why": "fewer than 30 rows"}
    assert found["cells"]["rare"] == {"rows": "< 30", "groups": None, **few}
    assert found["cells"]["common"]["systems"] and found["gaps"] == {}


def test_the_size_of_a_small_cell_is_not_what_the_others_leave():
    """Of one alone it would be all rows minus the rest, and of two with two rows both would be one."""
    place = np.arange(TEST)
    one = judge(cells={"field": np.where(place < 12, "a", np.where(place < 100, "b", "c")).astype(object)})["field"][
        "cells"
    ]
    assert [one[value]["rows"] for value in "abc"] == ["< 30", None, 300] and one["b"]["groups"] is None
    assert one["b"]["systems"] and one["c"]["groups"] == 300
    for small, shown in (((1, 1), (None, 300)), ((20, 15), (65, 300))):
        ends = np.cumsum([*small, 100 - sum(small)])
        found = judge(cells={"field": np.array(list("abcd"), object)[np.searchsorted(ends, place, side="right")]})[
            "field"
        ]["cells"]
        assert [found[value]["rows"] for value in "abcd"] == ["< 30", "< 30", *shown]
        assert [found[value]["groups"] for value in "ab"] == ["< 10" if size < 10 else None for size in small]


def test_fields_of_one_value_or_of_very_many_make_no_cells():
    many = np.arange(TEST).astype(str).astype(object)
    assert len(set(many)) > MOST_VALUES and judge(cells={"one": np.full(TEST, "x", object), "many": many}) == {}


def test_cohorts_are_cut_at_the_terciles_of_the_training_rows():
    present = np.r_[np.repeat([2, 5, 9], 30), np.resize([1, 2, 4, 5, 8, 12], TEST)]
    cohort = sparsity(present, ROWS)
    assert cohort[:6].tolist() == ["sparse", "sparse", "middle", "middle", "rich", "rich"]
    found = judge(cells={SPARSITY: cohort})[SPARSITY]
    assert {name: cell["rows"] for name, cell in found["cells"].items()} == {
        name: int((cohort == name).sum()) for name in ("sparse", "middle", "rich")
    }
