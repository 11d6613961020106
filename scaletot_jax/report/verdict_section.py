"""The report's first screen, and the LTV comparison behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scaletot_jax.report.charts import intervals
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
    p_value,
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
METRICS = {
    "rps_skill": "RPS skill", "spearman": "Spearman", "auc": "AUC(y>0)", "normalised_gini": "Gini", "rmse": "RMSE", "rps": "RPS",
}  # fmt: skip
DIGITS = {"rmse": 3, "rps": 4}
_CLASS = {"helped": "helps", "hurt": "hurts"}


def sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict in one sentence, as the evaluation wrote it."""
    return str(verdict.get("sentence") or verdict.get("text") or verdict["word"])


def hero(material: Material) -> Markup:
    """The answer on top, in one sentence with its interval, a drawing of it, and the numbers around it."""
    evaluation = material.evaluation or {}
    verdict = evaluation.get("verdict")
    name = material.summary("prepare").get("schema") or dig(material.config, "data.name") or "?"
    kicker = el("p", "Does reasoning help on ", el("strong", name), "?", class_="kicker")
    if not isinstance(verdict, Mapping):
        done = ", ".join(material.summaries) or "none"
        content: list[object] = [
            el("h1", "No verdict yet", id="verdict-title"),
            el("p", f"The evaluation has not finished. Finished stages: {done}."),
        ]
    else:
        words = [el("h1", _headline(verdict), id="verdict-title"), el("p", _measured_on(verdict, evaluation))]
        because = _because(verdict, evaluation)
        words += [el("p", because)] if because else []
        if verdict.get("caveat"):
            words.append(el("p", verdict["caveat"], class_="soft"))
        content = [el("div", el("div", words), _rivals(verdict, evaluation), class_="answer")]
    numbers = el("div", facts(_numbers(material, verdict)))
    return el("section", kicker, content, numbers, class_="hero", id="verdict", aria_labelledby="verdict-title")


_ANSWERS = {"helped": "Yes", "hurt": "No, it hurts"}


def _headline(verdict: Mapping[str, Any]) -> Markup:
    """The answer with its interval, short enough for a heading."""
    word = str(verdict.get("word", ""))
    answer = el("span", _ANSWERS.get(word, word.capitalize()), class_=_CLASS.get(word, "cannot"))
    gain, metric = (
        verdict.get("gain") or {},
        METRICS.get(str(verdict.get("metric")), verdict.get("metric") or "the metric"),
    )
    said = f": with ẑ, {metric} of {verdict.get('target', 'the label')} "
    if gain.get("low") is None or gain.get("high") is None:
        return join([answer, said, "has no interval here"])
    level = [" (", percent(verdict.get("level"), 0), " interval ", _ends(gain), ")"]
    return join([answer, said, "changes by ", number(gain.get("estimate"), sign=True), *level])


def _measured_on(verdict: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Markup:
    """On whom the headline was measured, and what may not be said of it."""
    size = [
        "With ẑ minus without, positive is better; ", verdict.get("features", "?"), " profile fields, ", number(verdict.get("rows")),
        " test rows of ", number(verdict.get("groups")), " users or households nobody trained on.", _counted(verdict, evaluation),
    ]  # fmt: skip
    if verdict.get("word") == "helped" and not verdict.get("attributable"):
        size += [" The gain is not attributed to reasoning: not every placebo is beaten for sure."]
    missing = [titled(evaluation, name) for name in verdict.get("not_run") or ()]
    if missing:
        size += [f" Not run, and so not beaten: {'; '.join(missing)}."]
    return join(size)


def _counted(verdict: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """What the label counts, where it counts days."""
    label = verdict.get("target")
    kind, horizon = (dig(evaluation, f"targets.{label}.{key}") for key in ("kind", "horizon"))
    return f" {label} counts the active days among {horizon}." if kind == "days" and horizon else ""


def _because(verdict: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Which rivals ẑ is ahead of, and which not: without it an interval above zero seems to contradict the word."""
    said = []
    for word, key in (("Ahead of", "beaten"), ("Behind", "lost"), ("Not told apart from", "tied")):
        names = [titled(evaluation, name) for name in _required_first(verdict.get(key) or (), evaluation)]
        said += [f" {word}: {'; '.join(name[:1].lower() + name[1:] for name in names)}."] if names else []
    rivals = sum(len(verdict.get(key) or ()) for key in ("beaten", "tied", "lost", "not_run"))
    return f"The rule asks ẑ to be ahead of all {rivals} rivals.{''.join(said)}" if rivals > 1 and said else ""


def _required_first(names: Iterable[str], evaluation: Mapping[str, Any]) -> list[str]:
    """Names of systems in the order of the rule's rivals, then of the evaluation: JSON keeps none."""
    required = list(dig(evaluation, "families.required") or ())
    places = {name: (0, place) for place, name in enumerate(required)}
    known = list(names)
    order = {name: places.get(name) or (1, dig(evaluation, f"systems.{name}.order") or 0) for name in known}
    return sorted(known, key=order.__getitem__)


def _rivals(verdict: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Markup:
    """ẑ against the head without it, and against every placebo."""
    rivals = verdict.get("comparisons") or {
        "profile": verdict.get("gain") or {},
        **(verdict.get("over_placebos") or {}),
    }
    rows = [(titled(evaluation, name), rivals[name]) for name in _required_first(rivals, evaluation)]
    metric = METRICS.get(str(verdict.get("metric")), str(verdict.get("metric")))
    corrected = any(row.get("p_holm") is not None for _, row in rows)
    caption = "Right of zero: ẑ is better." + (" p after Holm's correction over these rivals." if corrected else "")
    return intervals(f"{metric}: with ẑ minus …", rows, caption=caption, level=2)


def titled(evaluation: Mapping[str, Any], name: str) -> str:
    """What the evaluation calls a system."""
    return str(dig(evaluation, f"systems.{name}.title") or SYSTEMS.get(name, name))


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
    corrected = dig(evaluation, "families.note")
    words = el(
        "p", "Under a difference stands ", el("em", "helped"), " or ", el("em", "hurt"), " only where its interval leaves out zero and p "
        "is at most ", number(1 - level, 2) if level else "1 − level", f"; p is two-sided, after {corrected}, metric by metric.",
    ) if corrected else None  # fmt: skip
    blocks: list[Markup] = []
    for label, features, found in in_order(evaluation):
        primary = not blocks
        content = _comparison(f"{label}, {features} profile fields", found, evaluation, charts=primary)
        blocks.append(
            el("div", el("h3", f"{label}, {features} profile fields"), content)
            if primary
            else folded(f"{label}, {features} profile fields", content)
        )
    return section(
        "ltv",
        title,
        intro,
        _one_each(material),
        words,
        blocks,
        _defined(evaluation),
        _audit(evaluation.get("audit") or {}),
    )


def _one_each(material: Material) -> Markup:
    """What there is one of, whose variance no interval of the comparison holds, and what the seeds vary."""
    seeds, draws = dig(material.evaluation, "seeds") or 1, dig(material.coverage, "draws") or 1
    folds = dig(material.config, "distill.student_folds") or 0
    also = f" (and {folds} more, each trained without one fold of its users, for the states of these)" if folds else ""
    averaged = (
        f"{seeds} seeds vary the head alone, and their predictions are averaged"
        if seeds > 1
        else "so is the seed of the head"
    )
    said = (
        f"The student{also} and the encoder, and the encoder of every placebo, are one each, of the run's seed "
        f"{dig(material.config, 'seed')}; {averaged}. How much another student or encoder would change is not in the intervals."
    )
    more = f" The coverage curve below varies users, encoders and heads over {draws} draws, never the student."
    return el("p", said + (more if draws > 1 else ""))


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
    known = [name for row in systems.values() for name in row if name != "by_seed"]
    every = [name for name in dict.fromkeys([*METRICS, *(evaluation.get("metrics") or {})]) if name in known]
    first, others = [name for name in every if name in METRICS], [name for name in every if name not in METRICS]
    better = {name: dig(evaluation, f"metrics.{name}.better") for name in every}
    verdict = found.get("verdict")
    drawn = [_differences(metric, better[metric], found, evaluation) for metric in first] if charts else []

    def head(metrics: list[str], name: str) -> list[object]:
        return [name, *[join([_metric(evaluation, metric), _arrow(better[metric])]) for metric in metrics]]

    def measured(metrics: list[str]) -> Markup:
        listed = evaluation.get("systems") or SYSTEMS
        placed = sorted(listed, key=lambda name: dig(listed, f"{name}.order") or 0)  # JSON keeps no order
        order = dict.fromkeys([*placed, *systems])
        rows = [
            [titled(evaluation, name), *[interval(systems[name].get(m), DIGITS.get(m, 3)) for m in metrics]]
            for name in order
            if name in systems
        ]
        title = f"Systems: {caption}"
        return table(title, head(metrics, "System"), rows, numeric=range(1, len(metrics) + 1), sortable=True)

    def paired(metrics: list[str]) -> Markup:
        rows = [
            [
                titled(evaluation, name),
                *[join([interval(row.get(m), 4, sign=True), decided(row.get(m))]) for m in metrics],
            ]
            for other in _required_first([name.split(" - ", 1)[-1] for name in differences], evaluation)
            for name, row in ((other, differences[f"profile_z - {other}"]),)
        ]
        title = f"Head with ẑ minus another system: {caption}"
        return table(title, head(metrics, "Other system"), rows, numeric=range(1, len(metrics) + 1), sortable=True)

    compared = [name for name in others if better[name] != "one"]
    return [
        el("p", sentence(verdict)) if isinstance(verdict, Mapping) and not charts else None,
        measured(first),
        el("div", drawn, class_="grid") if drawn else None,
        paired(first),
        folded(f"{len(others)} further metrics", measured(others), paired(compared)) if others else None,
        _absent(found.get("absent") or {}, evaluation),
    ]


def _absent(absent_: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Markup | None:
    """Baselines that were not fitted, and why."""
    if not absent_:
        return None
    rows = [[titled(evaluation, name), row.get("note"), row.get("why")] for name, row in absent_.items()]
    said = "1 system was not run" if len(rows) == 1 else f"{len(rows)} systems were not run"
    return folded(said, table("Not run", ["System", "Word", "Why"], rows))


def _differences(metric: str, better: Any, found: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Markup:
    """Against the rivals that the verdict asks for; against the first few where it names none."""
    differences = found.get("differences") or {}
    required = dig(found, "verdict.comparisons") or {}
    others = _required_first([name.split(" - ", 1)[-1] for name in differences], evaluation)
    others = [name for name in others if name in required] or others[:6]
    rows = [(titled(evaluation, name), differences[f"profile_z - {name}"].get(metric) or {}) for name in others]
    side = {"higher": "Right of zero: ẑ is better.", "lower": "Left of zero: ẑ is better."}.get(str(better), "")
    return intervals(f"{METRICS[metric]}, with ẑ minus …", rows, caption=side, digits=4)


def _metric(evaluation: Mapping[str, Any], name: str) -> str:
    return METRICS.get(name) or str(dig(evaluation, f"metrics.{name}.title") or name)


def worded(word: Any) -> Markup:
    """A word of the verdict in its colour."""
    return el("span", word, class_=f"word {_CLASS.get(str(word), 'cannot')}")


def decided(difference: Any) -> Markup | None:
    """The word, where there is a decision, and p; the interval says the rest.

    The word is that after Holm's correction wherever one was made: an interval of its own is no decision among many.
    """
    if not isinstance(difference, Mapping):
        return None
    word, p = difference.get("word_holm", difference.get("word")), p_value(difference.get("p_holm"))
    said = [part for part in (word if word in _CLASS else None, p or None) if part]
    return el("span", join(said, ", "), class_=f"ci {_CLASS.get(str(word), '')}".strip()) if said else None


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


def _defined(evaluation: Mapping[str, Any]) -> Markup | None:
    """What each metric is, in the evaluation's words."""
    words = {"higher": "higher", "lower": "lower", "one": "nearer to 1"}
    rows = [
        [
            join([_metric(evaluation, name), _arrow(one.get("better"))]),
            one["definition"],
            words.get(str(one.get("better")), "–"),
        ]
        for name, one in (evaluation.get("metrics") or {}).items()
        if one.get("definition")
    ]
    return folded("What the metrics are", table("Metrics", ["Metric", "Definition", "Better"], rows)) if rows else None


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
