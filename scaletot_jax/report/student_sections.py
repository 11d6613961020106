"""The report's sections on the student and the encoder: learning curves, held-out scores, transfer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scaletot_jax.report.charts import Series, bars, curves
from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, absent, el, facts, folded, interval, number, percent, section, table

_COLOURS = 5  # lines of one chart


def learning(material: Material) -> Markup:
    """The student: curves, and held-out scores against the base rate."""
    title = "How the student learned"
    if not material.sft_steps and not material.osipo_steps and "sft" not in material.summaries:
        return section("learning", title, absent("The student's training", "sft"), absent("OSIPO", "osipo"))
    held_out = held_out_scores(material)
    parts: list[object] = [_scores(held_out)] if held_out else [absent("The student's held-out score", "sft")]
    osipo = material.summary("osipo")
    if osipo.get("osipo_signal") is False:
        parts.append(
            el(
                "p",
                "OSIPO had no signal: the outcome hardly differs between the rollouts of one user (variance ",
                number(osipo.get("outcome_variance_median", osipo.get("outcome_variance")), 6),
                " in the median update), so its updates could not learn which chain is better.",
                class_="warn",
            )
        )
    if osipo.get("process_signal") is False:
        parts.append(
            el(
                "p",
                "The process reward has not been shown to order the chains of one user better than chance: AUC ",
                number(osipo.get("value_auc"), 3), " [", number(osipo.get("value_auc_low"), 3), ", ",
                number(osipo.get("value_auc_high"), 3), "] over ", number(osipo.get("value_pairs")), " pairs.",
                class_="warn",
            )
        )  # fmt: skip
    if osipo.get("worse_than_sft"):
        parts.append(el("p", f"OSIPO: {osipo['worse_than_sft']}.", class_="warn"))
    for stage, of in (("sft", "profiles"), ("osipo", "labelled_users")):
        summary = material.summary(stage)
        if summary.get("truncated_profiles"):
            which = f" of {summary.get(of, '?')} prompts of {stage.upper()} were cut to "
            cut = [number(summary["truncated_profiles"]), which, el("code", "lm.max_profile_tokens"), "."]
            parts.append(el("p", cut, class_="warn"))
    for rule, update in (osipo.get("process_stopped") or {}).items():
        parts.append(
            el(
                "p",
                f"The process reward was switched off after update {update}: {STOPPED.get(rule, rule)}.",
                class_="warn",
            )
        )
    charts = [
        _curve(
            material.sft_steps,
            "SFT: loss",
            {"loss": "whole chain", "answer_loss": "answer", "eval_loss": "whole chain, held back"},
            "step",
            "Nats a token.",
        )
    ]
    steps = material.osipo_steps
    charts += [
        _curve(
            steps,
            "OSIPO: outcome",
            {"outcome": "outcome"},
            "update",
            "1 − RPS of the answer after the rollout's own chain; higher is better.",
        ),
        _curve(steps, "OSIPO: KL from the SFT student", {"kl": "KL"}, "update", "Nats a chain."),
        _curve(steps, "OSIPO: entropy of the chains", {"entropy": "entropy"}, "update", "Mean nats at a decision."),
        _curve(
            steps,
            "OSIPO: spread within a user",
            {"outcome_variance": "variance"},
            "update",
            "Variance of the outcome between a user's rollouts; near 0 there is nothing to learn from.",
        ),
        _curve(
            steps,
            "OSIPO: process reward against outcome",
            {"value_auc": "AUC"},
            "update",
            "Share of a user's rollout pairs that the process reward puts in the outcome's order.",
            ("chance", 0.5),
        ),
    ]
    charts += _credit(steps, material.segments)
    if "osipo" not in material.summaries:
        parts.append(absent("OSIPO", "osipo"))
    return section("learning", title, parts, el("div", charts, class_="grid"))


def _credit(steps: Sequence[Mapping[str, Any]], segments: Sequence[str]) -> list[Markup | None]:
    """What the updates credited each segment with; nothing of a run from before this was logged."""
    count = sum(name.startswith("credit_") for name in (steps[0] if steps else ()))
    named = {k: segments[k] if k < len(segments) else f"segment {k + 1}" for k in range(count)}
    out: list[Markup | None] = []
    for key, title, caption in (
        ("credit", "OSIPO: credit by segment", "Mean absolute advantage of the segment's tokens: how much the update moves them."),
        (
            "process_reward", "OSIPO: process reward by segment",
            "Mean implicit process reward, β times the log-ratio to the SFT student, summed over the segment.",
        ),
    ):  # fmt: skip
        for begin in range(0, count, _COLOURS):
            some = range(begin, min(begin + _COLOURS, count))
            which = f", {begin + 1} to {some[-1] + 1} of {count}" if count > _COLOURS else ""
            out.append(_curve(steps, title + which, {f"{key}_{k}": named[k] for k in some}, "update", caption))
    return out


def held_out_scores(material: Material) -> dict[str, Mapping[str, Any]]:
    """Scores of the student before training, after SFT and after OSIPO, as far as they are known."""
    scores = {**(material.summary("sft").get("held_out") or {}), **(material.summary("osipo").get("held_out") or {})}
    return {name: scores[name] for name in ("base", "sft", "osipo") if isinstance(scores.get(name), Mapping)}


# Why the process reward is switched off, see student.osipo.fired.
STOPPED = {
    "validity": "too many chains had no end",
    "kl": "the student had moved too far from the one after SFT",
    "chance": "it did not put a user's chains in the order of their outcomes better than chance",
}
STUDENTS = {"base": "Before training", "sft": "After SFT", "osipo": "After OSIPO"}


def _scores(held_out: Mapping[str, Mapping[str, Any]]) -> Markup:
    known = next(iter(held_out.values()))
    base = known.get("base_rate_rps")
    rows = [
        ["Base rate of the training users", number(base, 4), number(0.0 if base else None), number(None), number(None)]
    ]
    rows += [
        [
            STUDENTS[name],
            number(row.get("rps"), 4),
            number(row.get("skill"), sign=True),
            number(row.get("spearman"), sign=True),
            percent(row.get("valid_rate")),
        ]
        for name, row in held_out.items()
    ]
    bar = [("Base rate", base, number(base, 4))] if base is not None else []
    bar += [
        (STUDENTS[name], row["rps"], number(row["rps"], 4))
        for name, row in held_out.items()
        if row.get("rps") is not None
    ]
    caption = f"Student's answers on {known.get('users', '?')} held-out users"
    head = ["Student", "RPS", "Skill", "Spearman", "Complete chains"]
    note = "Ranked probability score of the answer distribution: 0 is perfect, lower is better. Skill is 1 − RPS / base rate's RPS."
    return el(
        "div",
        bars("Held-out ranked probability score", bar, caption=note),
        table(caption, head, rows, numeric=range(1, 5)),
        class_="grid",
    )


def _curve(
    steps: Sequence[Mapping[str, Any]],
    title: str,
    names: Mapping[str, str],
    unit: str,
    caption: str,
    reference: tuple[str, float] | None = None,
) -> Markup | None:
    lines = [
        Series(label, [row["step"] for row in steps], [row.get(key) for row in steps]) for key, label in names.items()
    ]
    lines = [line for line in lines if any(value is not None for value in line.y)]
    return curves(title, lines, x_label=unit, caption=caption, reference=reference) if lines else None


def transfer(material: Material) -> Markup:
    """What the encoder took over from the student's states."""
    title = "What the encoder took over"
    summary = material.summary("distill")
    if not summary:
        return section("transfer", title, absent("The encoder", "distill"))
    probe = summary.get("probe") or {}
    tried = [
        [f"layer {layer}", number(value, sign=True)]
        for layer, value in sorted((probe.get("r2") or {}).items(), key=lambda item: int(item[0]))
    ]
    sizes = summary.get("profiles") or {}
    intro = el(
        "p",
        "Profiles of groups that the encoder was not trained on. Chains are sampled, so only the mean of a profile's states can be "
        "predicted: the ceiling is what any function of the profile could reach. “Found first” is how often a prediction is nearest "
        "to its own profile's state. What is said of everybody else rests on groups that no training of the language model saw.",
    )
    numbers = facts(
        [
            ("Profiles trained on", number(sizes.get("train"))),
            ("Held-out profiles of groups nothing was trained on", number(sizes.get("held_out_unseen_groups"))),
            (
                "… with a profile that the language model was trained on",
                number(sizes.get("of_them_with_a_trained_profile")),
            ),
            ("Chains a profile", number(summary.get("chains"))),
            ("Layer of the student", number(summary.get("layer"))),
            ("R² of the days label from the states themselves, out of fold", interval(summary.get("label_skill"))),
            (
                "Share of the noise ceiling reached, all segments, in the states' own units",
                interval(dig(summary, "transfer_goal.unseen_groups.share")),
            ),
            ("Training step kept", number(dig(summary, "training.kept_step"))),
        ]
    )
    reason = el("p", "Layer chosen: ", probe["reason"], ".", class_="note") if probe.get("reason") else None
    by_layer = "Layer probe: cross-validated R² of the days label"
    chosen = el("div", reason, table(by_layer, ["Layer", "R²"], tried, numeric=[1]) if tried else None)
    caption = "Mean error on the profiles that choose which step to keep."
    error = _curve(material.distill_steps, "Encoder: error", {"select_error": "error"}, "step", caption)
    evidence = summary.get("transfer") or {}
    if not isinstance(evidence, Mapping):  # of an older run, which did not tell them apart
        tables = [_by_segment("Transfer by segment, groups of the teacher split among them", evidence)]
    else:
        tables = [
            _by_segment(
                "Transfer by segment, groups that no training of the language model saw", evidence.get("unseen_groups")
            ),
            folded("The same by slice", *_slices(summary.get("transfer_slices") or {})),
            folded(
                "Groups of the teacher split",
                _by_segment(
                    "Transfer by segment, groups whose chains or labels trained the student",
                    evidence.get("trained_groups"),
                ),
            ),
        ]
    slots = [
        [
            row["slot"],
            number(row["accuracy"]),
            number(row["majority"]),
            number(row["agreement"]),
            interval(row["margin"]),
        ]
        for row in summary.get("slot_probe") or ()
    ]
    if slots:
        heads = ["Slot", "Probe of ẑ", "Majority", "Chains agree", "Probe minus majority"]
        tables.append(
            folded("What the chains say, read off ẑ", table("Accuracy by slot", heads, slots, numeric=[1, 2, 3]))
        )
    return section("transfer", title, intro, numbers, *tables, el("div", error, chosen, class_="grid"))


def _slices(slices: Mapping[str, Any]) -> list[Markup]:
    what = {
        "sparse": "profiles with few fields",
        "rich": "profiles with many fields",
        "seen": "profiles like one that was trained on, by the coarse key",
        "unseen": "profiles unlike any that was trained on",
    }
    out = [_by_segment(f"Transfer: {what[name]}", found) for name, found in slices.items() if found]
    small = [what[name] for name, found in slices.items() if not found]
    return [*out, *([el("p", "Too few to tell: ", "; ".join(small), ".", class_="note")] if small else [])]


def _by_segment(caption: str, evidence: Sequence[Mapping[str, Any]] | None) -> Markup:
    rows = [
        [
            row["segment"],
            number(row.get("r2")),
            number(row.get("ceiling")),
            percent(row.get("share_of_ceiling")),
            number(row.get("cka")),
            number(row.get("r2_by_variance")),
            number(row.get("ceiling_by_variance")),
            percent(dig(row, "retrieval.recall_at_1")),
            percent(dig(row, "retrieval.chance_recall_at_1")),
            number(dig(row, "retrieval.mrr")),
            number(row.get("held_out")),
        ]
        for row in evidence or ()
    ]
    head = [
        "Segment",
        "R²",
        "Ceiling",
        "Share of it",
        "CKA",
        "R², by variance",
        "Ceiling, by variance",
        "Found first",
        "… by chance",
    ]
    return table(caption, [*head, "MRR", "Profiles"], rows, numeric=range(1, 11))
