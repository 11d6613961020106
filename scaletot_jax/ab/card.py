"""The report card of an experiment: what was measured, and what a reader must know to believe it. Pure."""

from __future__ import annotations

import math
from typing import Any

from scaletot_jax.ab.analysis import MISMATCH, Analysis, Comparison, Effect

UNSTATED = "not stated"
NOTES = {
    "plain": "difference of means",
    "cuped": "adjusted by the outcome before assignment",
    "cupac": "adjusted by a prediction made before assignment",
    "winsorised": "values above the pooled quantile set to it",
    "active": "share with a positive outcome",
    "if_active": "mean among those; not causal: who is active is an outcome too",
}


def verdict(comparison: Comparison, level: float, believable: bool) -> str:
    """One sentence on one outcome of one arm."""
    effect = next(e for e in comparison.effects if e.form == comparison.primary)
    p = _number(comparison.p_holm, ".3g")
    found = f"relative lift {_lift(effect)} at {level:.0%} (p = {p}, corrected)"
    if math.isnan(effect.lift):
        found = f"difference {_span(effect)} at {level:.0%} (p = {p}, corrected; relative lift {_lift(effect)})"
    if effect.sequential:  # looked at while it runs: intervals and p-values of one look would decide too often
        found = (
            f"difference {effect.effect:+.4g} {_sequence(effect)} at {level:.0%} and any look "
            f"(p = {p}, of any look and corrected; relative lift {_percent(effect.lift, 'undefined')})"
        )
    if effect.note:
        found = effect.note
    about = f"'{comparison.outcome}' in arm '{comparison.arm}'"
    if not believable:
        return f"Nothing can be said about {about}: the arms do not have their planned sizes, so assignment or logging is broken."
    if comparison.withheld:
        return (
            f"Nothing can be said about {about}: {effect.note}. A covariate from before the assignment is alike in both arms, "
            "so this one was measured afterwards, or assignment is broken."
        )
    if comparison.p_holm < 1 - level:
        way = "rises" if effect.effect > 0 else "falls"
        return f"{about} {way}: {found}."
    many = "so many units, looked at once," if effect.sequential else "so many units"
    power = f"; {many} find a lift of {_percent(comparison.detectable)} four times in five"
    return f"Whether {about} changes cannot be told: {found}{power if math.isfinite(comparison.detectable) else ''}."


def markdown(analysis: Analysis, *, population: str = "", assignment: str = "", plan: str = "") -> str:
    """The card. ``population``, ``assignment``, ``plan``: what the experimenter states; what is missing is named as missing."""
    lines = ["# Experiment", ""]
    lines += [f"* {verdict(c, analysis.level, analysis.believable)}" for c in analysis.comparisons]
    arms = ", ".join(f"'{name}' {count:,}" for name, count in analysis.units.items())
    kind = "p-values of any look" if any(e.sequential for c in analysis.comparisons for e in c.effects) else "p-values"
    fair = "as planned" if analysis.believable else f"**sample ratio mismatch** (p < {MISMATCH:g})"
    lines += [
        "",
        "| question | answer |",
        "|---|---|",
        f"| Who was in it? | {population or UNSTATED} |",
        f"| How were they assigned? | {assignment or UNSTATED} |",
        f"| What was planned beforehand (outcomes, length, stopping)? | {plan or UNSTATED} |",
        f"| Units of each arm | {arms}; control is '{analysis.control}' |",
        f"| Do the sizes fit the assignment? | {fair}, χ² p = {analysis.mismatch:.3g} |",
        f"| Intervals | {analysis.level:.0%}; {kind} of the primary forms corrected by Holm over {len(analysis.comparisons)} |",
    ]
    for comparison in analysis.comparisons:
        lines += ["", *_section(comparison, analysis.level)]
    return "\n".join(lines) + "\n"


def _section(c: Comparison, level: float) -> list[str]:
    sequential = any(effect.sequential for effect in c.effects)
    head = f"| form | control | arm | difference | relative lift | p | variance left |{' at any look |' if sequential else ''}"
    lines = [f"## {c.outcome}, arm '{c.arm}' against control", "", head, _rule(head)]
    for effect in c.effects:
        name = f"**{effect.form}**" if effect.form == c.primary else effect.form
        lines.append(
            f"| {name}: {NOTES[effect.form]} | {_number(effect.control)} | {_number(effect.treatment)} | "
            f"{effect.note.replace('|', '/') or _span(effect)} | {_lift(effect)} | {_number(effect.p_value, '.3g')} | "
            f"{'' if math.isnan(effect.variance_left) else f'{effect.variance_left:.2f}'} |"
            + (f" {_sequence(effect)} |" if sequential else "")
        )
    low, high = c.fieller
    ratio = "undefined" if math.isnan(low) else f"[{_percent(low)}, {_percent(high)}]"
    alike = ", ".join(f"{form} p = {p:.2g}" for form, p in c.balance.items())
    return [
        *lines,
        "",
        *(
            [f"Covariates alike in both arms (Welch)? {alike}; below {MISMATCH:g} a form is withheld.", ""]
            if alike
            else []
        ),
        f"Fieller's interval of the plain lift: {ratio}. Coefficient of variation {c.cv:.2f}, "
        f"{c.cv_adjusted:.2f} in the primary form; detectable with 80 % power: {_percent(c.detectable)}. "
        f"Winsorised at {c.bound:.5g}.",
    ]


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Everything as JSON; what is not a number is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if hasattr(value, "_asdict"):
            return {key: plain(item) for key, item in value._asdict().items()}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    sentences = [verdict(c, analysis.level, analysis.believable) for c in analysis.comparisons]
    return {**plain(analysis), "believable": analysis.believable, "verdicts": sentences}


def _rule(head: str) -> str:
    return "|---" * (head.count("|") - 1) + "|"


def _span(effect: Effect) -> str:
    return f"{_number(effect.effect, '+.4g')} {_between(effect.low, effect.high)}"


def _lift(effect: Effect) -> str:
    if math.isnan(effect.lift):
        return "unknown" if effect.note else "undefined: the control's mean is not clearly above zero"
    return f"{_percent(effect.lift)} [{_percent(effect.lift_low)}, {_percent(effect.lift_high)}]"


def _sequence(effect: Effect) -> str:
    return "" if effect.sequential is None else _between(*effect.sequential)


def _between(low: float, high: float) -> str:
    return f"[{_number(low, '+.4g')}, {_number(high, '+.4g')}]"


def _number(value: float, form: str = ".5g") -> str:
    return "unknown" if math.isnan(value) else f"{value:{form}}"


def _percent(value: float, missing: str = "unknown") -> str:
    if math.isnan(value):
        return missing
    return f"{value:+.2%}" if math.isfinite(value) else ("∞" if value > 0 else "−∞")
