"""The report's model card: what was made, from what, for what, and what it must not be used for. Pure."""

from __future__ import annotations

from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, el, number, percent, section


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
        ("Fairness", "Slices by seen and unseen profiles stand above. Which fields may be used for whom is for the owner of the table "
                     "to decide: the schema says what the model sees."),
        ("Privacy", "Identifiers reach no prompt, no chain and no page of this report. Free text is hidden unless the owner asks for it."),
        ("Known limits", ["ẑ is a function of the profile: it adds what a language model knows about such profiles, no new information. "
                          "Base rate of zeros: ", percent(next((v.get("zero_share") for v in (prepare.get("labels") or {}).values()), None)), "."]),
    ]  # fmt: skip
    pairs = [[el("dt", name), el("dd", content)] for name, content in rows]
    return section("card", "Model card", el("dl", pairs, class_="card"))
