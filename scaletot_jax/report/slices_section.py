"""The report's section on test rows whose profile was known, and on those whose profile was new. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, absent, el, folded, interval, join, number, percent, section, table
from scaletot_jax.report.verdict_section import DIGITS, METRICS, decided, in_order

KNOWN = {"teacher": "the teacher reasoned about", "head": "the heads were trained on"}
SIDES = {"seen": "Among those", "unseen": "Not among those"}


def seen(material: Material) -> Markup:
    """Head with and without ẑ, by whether the coarse profile of the test row was known."""
    title = "Profiles seen before, and new ones"
    evaluation = material.evaluation
    if not evaluation:
        return section("seen", title, absent("The comparison", "evaluate"))
    found = [
        (f"{label}, {features} profile fields", one["slices"], _metric(one["slices"], dig(one, "verdict.metric")))
        for label, features, one in in_order(evaluation)
        if "slices" in one
    ]
    if not found:
        return section("seen", title, el("p", "This evaluation was made without slices.", class_="absent"))
    intro = el(
        "p",
        "The users of the test rows are new, but their coarse profile (the fields and bins that the schema marks) may not be. ",
        "One metric a table, with ", percent(dig(evaluation, "bootstrap.level"), 0), " intervals; the other metrics are in ",
        el("code", "metrics.json"), ". A slice of fewer than ", number(dig(evaluation, "slices.min_rows")), " rows or ",
        number(dig(evaluation, "slices.min_groups")), " groups is too few to tell. Nothing is corrected for the number of slices, and "
        "seen profiles are also the common ones: a difference between slices need not come from having been seen.",
    )  # fmt: skip
    better = {metric: dig(evaluation, f"metrics.{metric}.better") or "higher" for _, _, metric in found}
    tables = [
        _table(f"{METRICS.get(metric, metric)} ({better[metric]} is better): {caption}", slices, metric)
        for caption, slices, metric in found
    ]
    rest = folded("The other label and the other profile fields", tables[1:]) if len(tables) > 1 else None
    return section("seen", title, intro, tables[0], rest)


def _metric(slices: Mapping[str, Any], wanted: Any) -> str:
    """The metric of the verdict where the slices have it, else the nearest that they have: a skill needs a base rate of its own."""
    known = [
        name
        for one in slices.values()
        for side in SIDES
        for name in dig(one, f"{side}.difference") or ()
    ]  # fmt: skip
    near = [wanted, "rps", "spearman", *METRICS] if wanted == "rps_skill" else [wanted, "spearman", *METRICS]
    return str(next((name for name in near if name in known), wanted))


def _table(caption: str, slices: Mapping[str, Any], metric: str) -> Markup:
    rows: list[list[object]] = []
    for name, known in KNOWN.items():  # JSON has no order
        found = slices[name]
        if "note" in found:
            rows.append([f"Among those {known}, or not", *[number(None)] * 4, _note(found)])
            continue
        for side, where in SIDES.items():
            one = found[side]
            numbers = [number(one.get("rows")), number(one.get("groups"))]
            if "note" in one:
                numbers += [number(None), number(None), _note(one)]
            else:
                difference = dig(one, f"difference.{metric}")
                numbers += [
                    interval(dig(one, f"systems.{system}.{metric}"), DIGITS.get(metric, 3))
                    for system in ("profile", "profile_z")
                ]
                numbers.append(join([interval(difference, 4, sign=True), decided(difference)]))
            rows.append([f"{where} {known}", *numbers])
        contrast = dig(found, f"seen_minus_unseen.{metric}")
        if contrast:
            rows.append(["The former minus the latter", *[number(None)] * 4, interval(contrast, 4, sign=True)])
    head = ["Coarse profile", "Rows", "Groups", "Without ẑ", "With ẑ", "With minus without"]
    return table(caption, head, rows, numeric=range(1, 6))


def _note(found: Mapping[str, Any]) -> Markup:
    return join([str(found["note"]), el("span", found.get("why"), class_="ci")])
