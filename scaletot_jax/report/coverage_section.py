"""The report's section on the coverage curve: what it buys to reason about more of the users. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scaletot_jax.report.charts import points
from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, el, folded, interval, join, number, p_value, percent, section, table
from scaletot_jax.report.verdict_section import titled, worded

METRICS = {"rps_skill": "RPS skill", "spearman": "Spearman"}
EVERYWHERE, OWN = "everywhere - profile", "own - profile"
USES = {EVERYWHERE: "ẑ everywhere", OWN: "z where available, else ẑ"}
LABELS = {"plentiful": "plentiful labels", "scarce": "labels of reasoned users alone"}
RIVALS = {
    "profile": "Profile alone", "labels": "Encoder of labels only", "shuffled": "Encoder of shuffled states",
    "random": "Encoder of random projections", "prompt_end": "Prompt ends, no reasoning",
}  # fmt: skip
SYSTEMS = {**RIVALS, "everywhere": "ẑ everywhere", "own": "z where available, else ẑ"}


def coverage(material: Material) -> Markup:
    """What the rule says of each share of reasoned users, the metric against tokens and money, and every system."""
    title = "How many users are worth reasoning about"
    found = material.coverage
    if not found:
        why = ["This run has no coverage curve: ", el("code", "scaletot coverage"), " measures one on a finished run."]
        return section("coverage", title, el("p", *why, class_="absent"))
    every, draws = found.get("points") or [], found.get("draws") or 1
    intro = el(
        "p",
        "A share of the users is reasoned about by the student; heads are judged on test users nobody trained on. Calls of the "
        "label-blind pilot count in the cost, not in the share. The rule is that of the verdict: ", el("em", "helped"), " needs ẑ to be "
        "ahead of all five rivals, ", el("em", "hurt"), " to be behind the profile alone, by interval and by p after Holm's correction "
        "over the five.", _drawn(draws),
    )  # fmt: skip
    ruled = [rule for labels in LABELS for rule in [_ruled(every, labels, draws)] if rule is not None]
    charts = [chart for labels in LABELS for chart in [_chart(every, labels)] if chart is not None]
    priced = any(dig(point, "cost.usd") for point in every)
    costs = table(
        "What each point costs",
        ["Users reasoned about", "Users", "Profiles", "LLM tokens", "Money", "State"],
        [_cost(point) for point in every],
        numeric=range(1, 5),
    )
    price = None if priced else _without_price()
    systems = folded("Every system at every point", [_systems(material, every, labels) for labels in LABELS])
    gains = folded("Every point with its intervals", [_numbers(every, labels) for labels in LABELS])
    drawings = el("div", charts, class_="grid") if charts else None
    return section("coverage", title, intro, ruled, drawings, _curves(found, draws), costs, price, systems, gains)


def _drawn(draws: int) -> str:
    """What the intervals hold, and what they do not."""
    if draws == 1:
        return " One set of users was reasoned about, by one student: neither is varied in the intervals."
    return (
        f" Every point was made with {draws} sets of reasoned users, each with encoders and heads of its own; the word over all of "
        "them stands first, and only its interval holds how much a set matters. The student is one."
    )


def _without_price() -> Markup:
    keys = [el("code", f"coverage.usd_per_million_{who}") for who in ("teacher", "student")]
    return el("p", "No money is shown: ", keys[0], " and ", keys[1], " are 0, so no price is known.", class_="note")


def _ruled(every: Sequence[Mapping[str, Any]], labels: str, draws: int) -> Markup | None:
    """The verdict of each point, over all draws where there are several, with ẑ minus each rival."""
    rows: list[list[object]] = []
    for point in every:
        one = dig(point, f"labels.{labels}") or {}
        if one.get("status") != "run":
            why = one.get("why") or point.get("why")
            rows.append(
                [percent(point["share"], 2), "–", ["not run", el("span", why, class_="ci")], *[number(None)] * 5]
            )
            continue
        across = one.get("across")
        if across:
            rows.append([percent(point["share"], 2), f"all {across['draws']}", *_compared(across, None)])
        which = "first alone" if draws > 1 else "one"
        rows.append([percent(point["share"], 2), which, *_compared(one, "rps_skill")])
    if all(row[1] == "–" for row in rows):
        return None
    head = ["Users reasoned about", "Draws", "ẑ by the rule", *RIVALS.values()]
    return table(f"RPS skill, ẑ everywhere minus …, {LABELS[labels]}", head, rows, numeric=range(3, 8))


def _compared(found: Mapping[str, Any], metric: str | None) -> list[object]:
    """Cells: the word, and the difference to each rival with its interval and p.

    Args:
      found: a point under one kind of labels, or what is said of all its draws. metric: below each difference, None: there is one.
    """
    said = found.get("verdict") or {}
    lost = [RIVALS.get(name, name) for name in said.get("not_run") or ()]
    missing = el("span", f"not run: {'; '.join(lost)}", class_="ci") if lost else None
    cells: list[object] = [[worded(said["word"]) if said else number(None), missing]]
    for name in RIVALS:
        row = dig(found, f"differences.everywhere - {name}") or {}
        row = row.get(metric) or {} if metric else row
        p = p_value(dig(said, f"p_holm.{name}"))
        cells.append(join([interval(row or None, 4, sign=True), el("span", p, class_="ci") if p else None]))
    return cells


def _differences(point: Mapping[str, Any], labels: str) -> Mapping[str, Any]:
    return dig(point, f"labels.{labels}.differences") or {}


def _chart(every: Sequence[Mapping[str, Any]], labels: str) -> Markup | None:
    draws = max((dig(point, f"labels.{labels}.across.draws") or 0 for point in every), default=0)
    lines = {
        f"ẑ everywhere, over {draws} draws": [
            dig(p, f"labels.{labels}.across.differences.{EVERYWHERE}") for p in every
        ],
        **{
            name + (", first draw" if draws else ""): [dig(_differences(p, labels), f"{use}.rps_skill") for p in every]
            for use, name in USES.items()
        },
    }
    series = []
    for name, rows in lines.items():
        line = [(100 * point["share"], row) for point, row in zip(every, rows) if row]
        if line:
            series.append((name, line))
    if not series:
        return None
    priced = any(dig(point, "cost.usd") for point in every)
    return points(
        f"RPS skill over the profile alone, {LABELS[labels]}",
        series,
        x_label="users reasoned about, %; LLM tokens" + ("; money" if priced else ""),
        logarithmic=True,
        zero=True,
        below={100 * point["share"]: _price_tag(point, priced) for point in every},
        caption="Above zero: ahead of the same head on the profile alone, which is one rival of five. Whether reasoning helped is said "
        "by the rule alone.",
    )  # fmt: skip


def _price_tag(point: Mapping[str, Any], priced: bool) -> list[str]:
    """Tokens of a point, and money where a price is known, short enough for an axis."""
    tokens, usd = dig(point, "cost.tokens"), dig(point, "cost.usd")
    size = next(
        ((unit, letter) for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if (tokens or 0) >= unit), (1, "")
    )
    shown = "–" if tokens is None else f"{tokens / size[0]:.3g}{size[1]}"
    return [shown, *([f"${usd:.2f}" if usd else "–"] if priced else [])]


def _curves(found: Mapping[str, Any], draws: int) -> Markup | None:
    """Whether each curve rises, one line a sentence."""
    by_sentence: dict[str, list[str]] = {}
    for labels, systems in (found.get("curves") or {}).items():
        for system, curve in systems.items():
            if isinstance(curve, Mapping) and curve.get("sentence"):
                named = f"{LABELS.get(labels, labels)}, {SYSTEMS.get(system, system)}"
                by_sentence.setdefault(str(curve["sentence"]), []).append(named)
    which = " (first draw)" if draws > 1 else ""
    everything = len(by_sentence) == 1 and sum(map(len, by_sentence.values())) > 1
    said = [
        el("li", "" if everything else f"{'; '.join(named)}{which}: ", sentence)
        for sentence, named in by_sentence.items()
    ]
    return el("ul", said) if said else None


def _cost(point: Mapping[str, Any]) -> list[object]:
    usd = dig(point, "cost.usd")
    money = f"${usd:,.4f}" if usd else number(None)  # 0 is no price, not a gift
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


def _systems(material: Material, every: Sequence[Mapping[str, Any]], labels: str) -> Markup:
    """Placebos and baselines beside the heads, each with its own skill."""
    rows: list[list[object]] = []
    for point in every:
        one = dig(point, f"labels.{labels}") or {}
        found = one.get("systems") or {}
        for name in [*(name for name in SYSTEMS if name in found), *(name for name in found if name not in SYSTEMS)]:
            cells = [interval(dig(found, f"{name}.{metric}"), 4, sign=True) for metric in METRICS]
            mean = number(dig(one, f"across.skill.{name}.mean"), 4, sign=True)
            rows.append(
                [SYSTEMS.get(name) or titled(material.evaluation or {}, name), percent(point["share"], 2), *cells, mean]
            )
    head = ["System", "Share", *METRICS.values(), "RPS skill, mean of the draws"]
    return table(f"Systems, {LABELS[labels]}", head, rows, numeric=range(1, 5), sortable=True)


def _numbers(every: Sequence[Mapping[str, Any]], labels: str) -> Markup:
    rows: list[list[object]] = []
    for point in every:
        for use, name in USES.items():
            found = dig(_differences(point, labels), use) or {}
            cells = [interval(found.get(metric), 4, sign=True) for metric in METRICS]
            rows.append([percent(point["share"], 2), name, number(dig(point, f"labels.{labels}.labelled")), *cells])
    head = [
        "Share",
        "Use of reasoning",
        "Labelled rows",
        *[f"{name}, minus profile alone" for name in METRICS.values()],
    ]
    return table(f"Gain by share, {LABELS[labels]}", head, rows, numeric=range(2, 5))
