"""The report's section on the coverage curve: what it buys to reason about more of the users. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scaletot_jax.report.charts import points
from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, el, folded, interval, number, percent, section, table

METRICS = {"rps_skill": "RPS skill", "spearman": "Spearman"}
USES = {"everywhere - profile": "ẑ everywhere", "own - profile": "z where available, else ẑ"}
LABELS = {"plentiful": "plentiful labels", "scarce": "labels of reasoned users alone"}


def coverage(material: Material) -> Markup:
    """Metric against the share of reasoned users, with what it costs."""
    title = "How many users are worth reasoning about"
    found = material.coverage
    if not found:
        why = ["This run has no coverage curve: ", el("code", "scaletot coverage"), " measures one on a finished run."]
        return section("coverage", title, el("p", *why, class_="absent"))
    every = found.get("points") or []
    intro = el(
        "p",
        "A share of the users is reasoned about by the student; what follows is the gain over the same head on the profile "
        "alone, on test users nobody trained on. Calls of the label-blind pilot count in the cost, not in the share.",
    )
    charts = [chart for labels in LABELS for chart in [_chart(every, labels)] if chart is not None]
    said = [
        el("li", f"{LABELS.get(labels, labels)}, {system}: ", curve.get("sentence"))
        for labels, systems in (found.get("curves") or {}).items()
        for system, curve in systems.items()
        if isinstance(curve, Mapping) and curve.get("sentence")
    ]
    tables = [
        table(
            "What each point costs",
            ["Users reasoned about", "Users", "Profiles", "Tokens", "Money", "State"],
            [_cost(point) for point in every],
            numeric=range(1, 5),
        ),
        folded("Every point with its intervals", [_numbers(every, labels) for labels in LABELS]),
    ]
    return section(
        "coverage", title, intro, el("div", charts, class_="grid"), el("ul", said) if said else None, *tables
    )


def _run(point: Mapping[str, Any], labels: str) -> Mapping[str, Any]:
    return dig(point, f"labels.{labels}.differences") or {}


def _chart(every: Sequence[Mapping[str, Any]], labels: str) -> Markup | None:
    series = []
    for use, name in USES.items():
        line = [(100 * point["share"], dig(_run(point, labels), f"{use}.rps_skill") or {}) for point in every]
        line = [(x, row) for x, row in line if row]
        if line:
            series.append((name, line))
    if not series:
        return None
    return points(
        f"RPS skill over the profile alone, {LABELS[labels]}",
        series,
        x_label="users reasoned about, %",
        logarithmic=True,
        zero=True,
        caption="Above zero: reasoning about that share helped.",
    )


def _cost(point: Mapping[str, Any]) -> list[object]:
    usd = dig(point, "cost.usd")
    money = number(None) if usd is None else f"${usd:,.4f}"
    state = [point.get("status") or "run", el("span", point["why"], class_="ci") if point.get("why") else None]
    share = percent(point["share"], 2)
    return [
        share,
        number(point.get("users")),
        number(point.get("profiles")),
        number(dig(point, "cost.tokens")),
        money,
        state,
    ]


def _numbers(every: Sequence[Mapping[str, Any]], labels: str) -> Markup:
    rows: list[list[object]] = []
    for point in every:
        for use, name in USES.items():
            found = dig(_run(point, labels), use) or {}
            cells = [interval(found.get(metric), 4, sign=True) for metric in METRICS]
            rows.append([percent(point["share"], 2), name, number(dig(point, f"labels.{labels}.labelled")), *cells])
    head = [
        "Share",
        "Use of reasoning",
        "Labelled rows",
        *[f"{name}, minus profile alone" for name in METRICS.values()],
    ]
    return table(f"Gain by share, {LABELS[labels]}", head, rows, numeric=range(2, 5))
