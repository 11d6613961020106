"""A planted difference is found and measured; what two equal runs may differ in is not one."""

import copy

import pytest

from scaletot_jax.reproduce.compare import (
    DIFFERS,
    MISSING,
    NEW,
    SAME,
    agree,
    compare,
    compare_files,
    compare_metrics,
    differences,
    leaves,
)
from scaletot_jax.reproduce.table import MOST, show, show_before

METRICS = {
    "format": 1,
    "missing": {},
    "data": {"rows": 9834, "splits": {"test": 743}, "missing": {"city": 0.25}},
    "teacher": {"tokens": 1200, "accepted": True, "seconds": 12.5},
    "verdict": {
        "word": "cannot be told",
        "estimate": -0.0071,
        "points": [{"share": 0.5, "skill": 0.12}, {"share": 1.0}],
    },
}
FILES = {"prepare/population.parquet": "a" * 64, "teach/chains.parquet": "b" * 64, "report/report.html": "c" * 64}
ELSEWHERE = differences("environment", {"packages": {"jax": "0.10.2"}}, {"packages": {"jax": "0.11.2"}}, judged=False)


def planted(path, value):
    metrics = copy.deepcopy(METRICS)
    *parents, leaf = path
    node = metrics
    for part in parents:
        node = node[part]
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    return metrics


def odd(rows):
    return {row.name: row.status for row in rows if row.status != SAME}


def test_equal_runs_agree_on_every_leaf():
    found = compare((METRICS, copy.deepcopy(METRICS)), (FILES, dict(FILES)), [])
    assert found.agrees and found.tolerance == 0 and found.times == ["teacher.seconds"]
    assert [row.name for row in found.rows] == [
        "format", "missing", "data.rows", "data.splits.test", "data.missing.city", "teacher.tokens", "teacher.accepted",
        "verdict.word", "verdict.estimate", "verdict.points[0].share", "verdict.points[0].skill", "verdict.points[1].share",
        "prepare/population.parquet", "report/report.html", "teach/chains.parquet",
    ]  # fmt: skip
    assert "reproduced: all 15 judged values and files are the same" in show(found)


@pytest.mark.parametrize(
    ("path", "value", "name", "status"),
    [
        (("verdict", "estimate"), -0.0071000000000000004, "verdict.estimate", None),  # the same double
        (("verdict", "estimate"), -0.007100000000000001, "verdict.estimate", DIFFERS),  # the next one
        (("verdict", "points", 0, "skill"), 0.13, "verdict.points[0].skill", DIFFERS),
        (("verdict", "word"), "helped", "verdict.word", DIFFERS),
        (("data", "rows"), 9835, "data.rows", DIFFERS),
        (("data", "rows"), 9834.0, "data.rows", DIFFERS),
        (("teacher", "accepted"), 1, "teacher.accepted", DIFFERS),
        (("data", "splits"), {}, "data.splits.test", MISSING),
        (("teacher", "tokens"), None, "teacher.tokens", MISSING),
        (("missing",), {"score": "not finished"}, "missing.score", NEW),
        (("verdict", "points", 1, "skill"), 0.2, "verdict.points[1].skill", NEW),
        (("teacher", "seconds"), 99.0, "teacher.seconds", None),
        (("teacher", "seconds"), None, "teacher.seconds", None),
    ],
)
def test_one_planted_difference_is_found_and_nothing_else(path, value, name, status):
    found = compare((METRICS, planted(path, value)), (FILES, FILES), [])
    seen = odd(found.rows)
    assert seen.get(name) == status
    assert found.agrees == (status is None) == (not seen)
    if status:
        assert f"{status:<20} metrics  {name}" in show(found)
        assert "not reproduced" in show(found)


def test_it_is_said_by_how_much():
    (row,) = [row for row in compare_metrics({"a": 2.0}, {"a": 2.5}, 0.0)[0] if row.fails]
    assert row.detail == "2.0 → 2.5 (by 0.5, relative 0.2)"


@pytest.mark.parametrize("kind", ["seconds", "tokens_per_second", "seconds_of_last_process", "model_flops_utilisation"])
def test_a_time_is_left_out_by_its_whole_name_and_named(kind):
    rows, times = compare_metrics({kind: 1.0, f"watched_{kind}": 1.0}, {kind: 2.0, f"watched_{kind}": 2.0}, 0.0)
    assert times == [kind]
    assert odd(rows) == {f"watched_{kind}": DIFFERS}  # a field of somebody's table is none of our clocks


def test_elsewhere_numbers_have_a_tolerance_and_counts_have_none():
    near, far = planted(("verdict", "points", 0, "skill"), 0.12011), planted(("verdict", "points", 0, "skill"), 0.1202)
    assert compare((METRICS, near), (FILES, FILES), ELSEWHERE).agrees  # |a − b| ≤ 1e-6 + 1e-3 · 0.12011
    assert not compare((METRICS, far), (FILES, FILES), ELSEWHERE).agrees
    assert compare((METRICS, far), (FILES, FILES), ELSEWHERE, 2e-3).agrees
    assert not compare((METRICS, near), (FILES, FILES), []).agrees
    assert not compare((METRICS, planted(("data", "rows"), 9835)), (FILES, FILES), ELSEWHERE).agrees
    later = compare((METRICS, planted(("verdict", "points", 1, "skill"), 0.2)), (FILES, FILES), ELSEWHERE)
    assert later.agrees and "new, not judged" in show(later)  # a later version may measure more


def test_files_are_judged_only_where_equal_bytes_may_be_expected():
    other = {**FILES, "teach/chains.parquet": "d" * 64}
    assert odd(compare_files(FILES, other, exact=True)) == {"teach/chains.parquet": DIFFERS}
    assert not compare((METRICS, METRICS), (FILES, other), []).agrees
    away = compare((METRICS, METRICS), (FILES, other), ELSEWHERE)
    assert (
        away.agrees
        and "differs, not judged  files    teach/chains.parquet  SHA-256 bbbbbbbbbbbb → dddddddddddd" in show(away)
    )
    del other["teach/chains.parquet"]
    assert not compare((METRICS, METRICS), (FILES, other), ELSEWHERE).agrees  # a file that did not come out at all
    assert compare((METRICS, METRICS), ({}, {}), []).agrees


def test_a_page_shows_where_the_inputs_lie():
    moved = differences("configuration", {"data": {"path": "a.parquet"}}, {"data": {"path": "b.parquet"}}, judged=False)
    other = {**FILES, "report/report.html": "d" * 64}
    assert compare((METRICS, METRICS), (FILES, other), moved).agrees
    assert not compare((METRICS, METRICS), (FILES, other), []).agrees
    assert not compare((METRICS, METRICS), (FILES, {**FILES, "prepare/population.parquet": "d" * 64}), moved).agrees


def test_other_inputs_are_no_reproduction_even_if_everything_agrees():
    inputs = differences("inputs", {"data.sha256": "a"}, {"data.sha256": None}, judged=True)
    found = compare((METRICS, METRICS), (FILES, FILES), inputs)
    assert not found.agrees and "but the inputs are not" in show(found)


def test_what_differs_beforehand_is_said_by_kind():
    text = show_before(ELSEWHERE)
    assert text.splitlines()[0].split() == ["environment", "packages.jax", "'0.10.2'", "→", "'0.11.2'"]
    assert [line.split() for line in text.splitlines()[1:]] == [["inputs", "same"], ["configuration", "same"]]


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "same"),
    [
        (0.0, -0.0, 0.0, False), (0.0, -0.0, 1e-3, True), (0.0, 9e-7, 1e-3, True), (0.0, 2e-6, 1e-3, False),
        (1000.0, 1000.9, 1e-3, True), (1000.0, 1002.0, 1e-3, False), (3, 3.0, 1e-3, True), (3, 4, 0.9, False),
        (True, 1.0, 0.9, False), (None, None, 0.0, True), (None, 0.0, 0.9, False), ("a", "a", 0.0, True), ([], [], 0.0, True),
    ],
)  # fmt: skip
def test_agreement(before, after, tolerance, same):
    assert agree(before, after, tolerance) is agree(after, before, tolerance) is same


def test_many_differences_are_counted_and_the_first_shown():
    before, after = {"a": list(range(100))}, {"a": list(range(1, 101))}
    text = show(compare((before, after), ({}, {}), []))
    assert sum(line.startswith("differs ") for line in text.splitlines()) == MOST
    assert "and 60 more" in text and "100 of 100" in text
    assert len(dict(leaves(before))) == 100
