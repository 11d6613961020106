"""The report's first screen, and the LTV comparison behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaletot_jax.report.figures import intervals
from scaletot_jax.report.lookup import dig, ratio
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import (
    Markup,
    absent,
    el,
    facts,
    folded,
    interval,
    join,
    number,
    percent,
    section,
    table,
    text,
)
from scaletot_jax.report.student_sections import held_out_scores

SYSTEMS = {
    "constant": "Constant: the training distribution",
    "ridge": "Ridge on the profile",
    "profile": "Head without ẑ",
    "profile_z": "Head with ẑ",
    "profile_z_shuffled": "Placebo: another user's ẑ",
    "profile_z_untrained": "Placebo: undistilled encoder",
}
METRICS = {"spearman": "Spearman", "auc": "AUC(y>0)", "normalised_gini": "Gini", "rmse": "RMSE", "rps": "RPS"}
_DIGITS = {"rmse": 3, "rps": 4}
_CLASS = {"helped": "helps", "hurt": "hurts"}


def sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict in one sentence, as the evaluation wrote it."""
    return str(verdict.get("sentence") or verdict.get("text") or verdict["word"])


def hero(material: Material) -> Markup:
    """The verdict on top, in one sentence with its interval, and the numbers around it."""
    evaluation = material.evaluation or {}
    verdict = evaluation.get("verdict")
    name = material.summary("prepare").get("schema") or dig(material.config, "data.name") or "?"
    kicker = el("p", "Does reasoning help on ", el("strong", name), "?", class_="kicker")
    if not isinstance(verdict, Mapping):
        done = ", ".join(material.summaries) or "none"
        body = [
            el("h1", "No verdict yet", id="verdict-title"),
            el("p", f"The evaluation has not finished. Finished stages: {done}."),
        ]
    else:
        word = str(verdict.get("word", ""))
        pill = el("span", word, class_=f"word {_CLASS.get(word, 'cannot')}")
        body = [el("h1", _headline(verdict), id="verdict-title"), el("p", pill, _measured_on(verdict))]
        if verdict.get("caveat"):
            body.append(el("p", verdict["caveat"], class_="soft"))
    numbers = el("div", facts(_numbers(material, verdict)))
    return el("section", kicker, body, numbers, class_="hero", id="verdict", aria_labelledby="verdict-title")


def _headline(verdict: Mapping[str, Any]) -> Markup:
    """The finding with its interval, short enough for a heading."""
    subject = sentence(verdict).split(": ", 1)[0]
    gain = verdict.get("gain") or {}
    if gain.get("low") is None or gain.get("high") is None:
        return text(f"{subject}: the metric has no interval here")
    metric = METRICS.get(str(verdict.get("metric")), verdict.get("metric") or "the metric")
    level = [" with ẑ (", percent(verdict.get("level"), 0), " interval ", _ends(gain), ")"]
    measured = [number(gain.get("estimate"), sign=True), *level]
    return join([f"{subject}: {metric} of {verdict.get('target', 'the label')} ", *measured])


def _measured_on(verdict: Mapping[str, Any]) -> Markup:
    """On whom the headline was measured, and what the placebos say of it."""
    size = ["With ẑ minus without, positive is better; ", verdict.get("features", "?"), " profile fields, "]
    size += [
        number(verdict.get("rows")),
        " test rows of ",
        number(verdict.get("groups")),
        " users or households nobody trained on.",
    ]
    found = [
        [SYSTEMS.get(name, name), " ", number(row.get("estimate"), sign=True), " (", _ends(row), ")"]
        for name, row in (verdict.get("over_placebos") or {}).items()
    ]
    if found:
        size += [
            " With ẑ minus with a placebo in its place: ",
            [[", " if i else "", one] for i, one in enumerate(found)],
            ".",
        ]
    if verdict.get("word") == "helped" and not verdict.get("attributable"):
        size += [" The gain is not attributed to reasoning: not every placebo is beaten for sure."]
    return join(size)


def _ends(row: Mapping[str, Any]) -> Markup:
    if row.get("low") is None or row.get("high") is None:
        return text("no interval")
    return join([number(row["low"], sign=True), " to ", number(row["high"], sign=True)])


def _numbers(material: Material, verdict: Any) -> list[tuple[object, object]]:
    counts, held_out = material.chains, held_out_scores(material)
    reasoned, distinct = counts.get("reasoned"), dig(material.summary("prepare"), "distinct_profiles.exact")
    last = next(reversed(held_out.values()), {})
    out: list[tuple[object, object]] = []
    if isinstance(verdict, Mapping):
        metric = METRICS.get(str(verdict.get("metric")), str(verdict.get("metric") or "Gain"))
        out.append((f"{metric}, with ẑ minus without", interval(verdict.get("gain"), sign=True)))
    return [
        *out,
        (
            "Profiles reasoned about",
            join(
                [
                    number(reasoned),
                    el("span", percent(ratio(reasoned, distinct), 2), " of distinct profiles", class_="ci"),
                ]
            ),
        ),
        (
            "Student's skill over the base rate",
            join([percent(last.get("skill")), el("span", "held-out RPS", class_="ci")]),
        ),
        ("Rows scored without a language model", number((material.manifest or {}).get("rows"))),
    ]


def ltv(material: Material) -> Markup:
    """The LTV table with intervals, by label and feature set, and the paired differences."""
    title = "Lifetime value, with and without ẑ"
    evaluation = material.evaluation
    if not evaluation:
        return section("ltv", title, absent("The comparison", "evaluate"))
    rows, level = evaluation.get("rows") or {}, dig(evaluation, "bootstrap.level")
    intro = el(
        "p",
        "Heads trained on ", number(rows.get("head")), " rows, judged on ", number(rows.get("test")), " rows of ",
        number(rows.get("test_groups")), " users or households nobody trained on. Intervals: ", percent(level, 0),
        " bootstrap by group, ", number(dig(evaluation, "bootstrap.resamples")), " resamples; they speak of the test sample, for these fitted models.",
    )  # fmt: skip
    blocks: list[Markup] = []
    for label, features, found in in_order(evaluation):
        primary = not blocks
        content = _comparison(f"{label}, {features} profile fields", found, evaluation, charts=primary)
        blocks.append(
            el("div", el("h3", f"{label}, {features} profile fields"), content)
            if primary
            else folded(f"{label}, {features} profile fields", content)
        )
    return section("ltv", title, intro, blocks, _audit(evaluation.get("audit") or {}))


def in_order(evaluation: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The comparisons (label, feature set, result), that of the verdict first."""
    verdict = evaluation.get("verdict") or {}
    out = [
        (label, features, found)
        for label, target in (evaluation.get("targets") or {}).items()
        for features, found in (target.get("features") or {}).items()
    ]
    return sorted(out, key=lambda item: (item[0] != verdict.get("target"), item[1] != verdict.get("features")))


def _comparison(caption: str, found: Mapping[str, Any], evaluation: Mapping[str, Any], *, charts: bool) -> list[object]:
    systems, differences = found.get("systems") or {}, found.get("differences") or {}
    metrics = [name for name in METRICS if any(name in row for row in systems.values())]
    better = {name: dig(evaluation, f"metrics.{name}.better") for name in metrics}
    head = ["System", *[join([METRICS[name], _arrow(better[name])]) for name in metrics]]
    names = [*[name for name in SYSTEMS if name in systems], *[name for name in systems if name not in SYSTEMS]]
    rows = [
        [SYSTEMS.get(name, name), *[interval(systems[name].get(metric), _DIGITS.get(metric, 3)) for metric in metrics]]
        for name in names
    ]
    verdict = found.get("verdict")
    drawn = [_differences(metric, better[metric], differences) for metric in metrics] if charts else []
    paired = [
        [
            _against(name),
            *[join([interval(row.get(metric), 4, sign=True), decided(row.get(metric))]) for metric in metrics],
        ]
        for name, row in differences.items()
    ]
    right = range(1, len(head))
    return [
        el("p", sentence(verdict)) if isinstance(verdict, Mapping) and not charts else None,
        table(f"Systems: {caption}", head, rows, numeric=right),
        el("div", drawn, class_="grid") if drawn else None,
        table(f"Head with ẑ minus another system: {caption}", ["Other system", *head[1:]], paired, numeric=right),
    ]


def _differences(metric: str, better: Any, differences: Mapping[str, Any]) -> Markup:
    rows = [(_against(name), row.get(metric) or {}) for name, row in differences.items()]
    side = {"higher": "Right of zero: ẑ is better.", "lower": "Left of zero: ẑ is better."}.get(str(better), "")
    return intervals(f"{METRICS[metric]}, with ẑ minus …", rows, caption=side, digits=4)


def decided(difference: Any) -> Markup | None:
    """The word, where there is a decision; the interval says the rest."""
    word = difference.get("word") if isinstance(difference, Mapping) else None
    return el("span", word, class_=f"ci {_CLASS[word]}") if word in _CLASS else None


def _against(name: str) -> str:
    other = name.split(" - ", 1)[-1]
    return SYSTEMS.get(other, other)


def _arrow(better: Any) -> Markup:
    if better not in ("higher", "lower"):
        return text("")
    return el(
        "span",
        " ↑" if better == "higher" else " ↓",
        title=f"{better} is better",
        aria_label=f"{better} is better",
        role="img",
    )


def _audit(audit: Mapping[str, Any]) -> Markup | None:
    if not audit:
        return None
    rows = [[f"Groups in {name}", number(count)] for name, count in (audit.get("groups") or {}).items()]
    rows.append(["Groups that trained the language model or the encoder", number(audit.get("trained_groups"))])
    rows.append(["… of them also in head, val or test", number(audit.get("overlap"))])
    days = audit.get("days_between_training_labels_and_evaluation")
    if days is not None:
        rows.append(["Days between the last training label and the first evaluation snapshot", number(days)])
    return folded("Leakage audit of the splits", table("Audit", ["What", "Count"], rows, numeric=[1]))
