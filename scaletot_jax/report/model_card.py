"""The report's model card: what was made, from what, for what, and what it must not be used for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaletot_jax.report.cells_section import SPARSITY
from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, el, number, percent, section
from scaletot_jax.report.verdict_section import in_order


def model_card(material: Material) -> Markup:
    """A short model card (Mitchell et al. 2019), its numbers from the run."""
    prepare, distill, score = (material.summary(name) for name in ("prepare", "distill", "score"))
    config, evaluation = material.config, material.evaluation or {}
    counts = material.chains
    schema = prepare.get("schema") or dig(config, "data.name") or "?"
    rows = [
        ("Model", ["A profile encoder (Flax) of ", number(dig(score, "dim")), " numbers a row, distilled from the hidden states of a "
                   "language model at layer ", number(distill.get("layer")), "; LTV heads on the profile and that embedding."]),
        ("Language model", [el("code", str(dig(config, "lm.weights")).rsplit("/", 1)[-1]), ", trained by SFT and OSIPO with ",
                            str(dig(config, "student.trainable")), " weights; not needed to score."]),
        ("Data", [f"Table {schema}: ", number(prepare.get("rows")), " rows of ", number(prepare.get("users")), " users; the teacher reasoned about ",
                  number(counts.get("reasoned")), " profiles and saw no label."]),
        ("Meant for", ["Ranking and forecasting of active days and value for users about whom little is known, in decisions that an "
                       "A/B test checks (", el("code", "scaletot ab"), ")."]),
        ("Not meant for", "Decisions about one person that matter to them: credit, employment, insurance, housing. A chain is what a "
                          "language model says of a profile; it is no fact about the person."),
        ("Judged on", [number(dig(evaluation, "rows.test")), " rows of ", number(dig(evaluation, "rows.test_groups")),
                       " users or households that no training saw; offline, never comparable with an online experiment."]),
        ("Fairness", [_fairness(material), " Which fields may be used for whom is for the owner of the table to decide: the schema says what "
                      "the model sees."]),
        ("Privacy", _privacy(config)),
        ("Known limits", ["ẑ is a function of the profile: it adds what a language model knows about such profiles, no new information. "
                          "Base rate of zeros: ", percent(next((v.get("zero_share") for v in (prepare.get("labels") or {}).values()), None)), "."]),
    ]  # fmt: skip
    pairs = [[el("dt", name), el("dd", content)] for name, content in rows]
    return section("card", "Model card", el("dl", pairs, class_="card"))


def _fairness(material: Material) -> str:
    """Where the page shows how groups fare, and which groups there are."""
    evaluation = material.evaluation or {}
    found = next((one.get("cells") for _, _, one in in_order(evaluation)), None)
    if not found:
        return "No groups of users were compared."
    fields = ", ".join(sorted(name.replace("_", " ") for name in found if name != SPARSITY)) or "none"
    return (
        f"The section on groups of users has bias, order and gaps by how much is known of a user and by field ({fields}), with ẑ and without; "
        "that on profiles seen before parts users by whether their profile was new."
    )


def _privacy(config: Mapping[str, Any]) -> str:
    """What the pages of this run show, by its configuration."""
    ids, text = dig(config, "report.show_ids"), dig(config, "report.show_text")
    said = "Identifiers reach no prompt, no chain and not this page. The explorer "
    said += "shows them: report.show_ids is set. " if ids else "shows row numbers of the run's own population instead. "
    shown = "is shown in both pages: report.show_text is set." if text else "is hidden in both pages."
    return f"{said}Text that people or the teacher wrote freely {shown}"
