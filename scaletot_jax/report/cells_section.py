"""The report's section on groups of users: by how much a profile tells, and by the value of each field. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, absent, el, folded, interval, number, percent, section, table
from scaletot_jax.report.verdict_section import in_order

TITLE = "Groups of users, and how unequal they fare"
SPARSITY = "sparsity"
COHORTS = {"sparse": "few known fields", "middle": "some", "rich": "many known fields"}


def cells(material: Material) -> Markup:
    """Gaps between groups with and without ẑ, and every group that is large enough to be told of."""
    evaluation = material.evaluation
    if not evaluation:
        return section("cells", TITLE, absent("The comparison", "evaluate"))
    found = [(f"{label}, {features} profile fields", one["cells"]) for label, features, one in in_order(evaluation) if one.get("cells")]  # fmt: skip
    if not found:
        return section("cells", TITLE, el("p", "This evaluation has no groups of users.", class_="absent"))
    rows, groups = (dig(evaluation, f"slices.min_{what}") for what in ("rows", "groups"))
    intro = el(
        "p",
        "Test rows by the number of known fields (cut at the terciles of the head rows) and by the value of each field with few values, for the "
        "head with ẑ and without. ", el("em", "Bias"), " is the mean of what was expected minus the mean of what came: above zero a group is promised "
        "too much. A ", el("em", "gap"), " is the largest minus the smallest figure among a field's groups: it is never negative and grows with the "
        "noise of small groups, so that only what ẑ changes of it says something of ẑ (below zero: more equal). ",
        percent(dig(evaluation, "bootstrap.level"), 0), " intervals, corrected for nothing: with so many some leave out zero by chance. Groups of "
        "fewer than ", number(rows), " rows or ", number(groups), " users or households, or with one label alone, are counted and not shown.",
    )  # fmt: skip
    first, *others = [_tables(caption, divisions) for caption, divisions in found]
    rest = folded("The other label and the other profile fields", others) if others else None
    return section("cells", TITLE, intro, first[0], folded("Every group", first[1]), rest)


def _tables(caption: str, divisions: Mapping[str, Any]) -> tuple[Markup, Markup]:
    """Gaps and groups of one comparison."""
    order = sorted(divisions, key=lambda name: (name != SPARSITY, name))  # JSON has no order
    gaps = [_gap(name, divisions[name]) for name in order]
    head = ["Groups by", "Shown", "Not shown", *[f"{figure}, {what}" for figure in ("Bias gap", "AUC gap") for what in ("without ẑ", "with ẑ", "change")]]  # fmt: skip
    first = table(f"Gaps between groups: {caption}", head, gaps, numeric=range(1, 9), sortable=True)
    groups = [row for name in order for row in _groups(name, divisions[name])]
    head = ["Group", "By", "Rows", "Groups", "Bias without ẑ", "Bias with ẑ", "AUC, with minus without", "Spearman, with minus without"]  # fmt: skip
    return first, table(f"Groups: {caption}", head, groups, numeric=range(2, 8), sortable=True)


def _shown(division: Mapping[str, Any]) -> list[str]:
    """Values of the groups with numbers; of a group that is too small to tell nothing is shown, its size and value included."""
    found = division.get("cells") or {}
    order = [*(value for value in COHORTS if value in found), *(value for value in found if value not in COHORTS)]
    return [value for value in order if isinstance(found[value], Mapping) and found[value].get("systems")]


def _gap(name: str, division: Mapping[str, Any]) -> list[object]:
    shown, gaps = _shown(division), division.get("gaps") or {}
    cells_: list[object] = [_field(name), number(len(shown)), number(len(division.get("cells") or {}) - len(shown))]
    for figure in ("bias", "auc"):
        found = gaps.get(figure) or {}
        cells_ += [interval(found.get(what), sign=what == "change") for what in ("without", "with", "change")]
    return cells_


def _groups(name: str, division: Mapping[str, Any]) -> list[list[object]]:
    out: list[list[object]] = []
    for value in _shown(division):
        cell = division["cells"][value]
        bias = [interval(dig(cell, f"systems.{system}.bias"), sign=True) for system in ("profile", "profile_z")]
        change = [interval(dig(cell, f"difference.{figure}"), sign=True) for figure in ("auc", "spearman")]
        named = COHORTS.get(value, value) if name == SPARSITY else {"missing": "not known"}.get(value, value)
        out.append([named, _field(name), number(cell.get("rows")), number(cell.get("groups")), *bias, *change])
    return out


def _field(name: str) -> str:
    return "how much is known" if name == SPARSITY else name.replace("_", " ")
