"""The report's section on drift: are the rows that are judged like those that were learnt from? Pure."""

from __future__ import annotations

from scaletot_jax.report.charts import bars
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, absent, el, folded, number, percent, section, table

_MOST = 10  # fields drawn


def drift(material: Material) -> Markup:
    """Stability index and shares of every field, evaluation rows against training rows."""
    title = "Has the population moved?"
    found = material.drift
    if not found:
        return section("drift", title, absent("The population", "prepare"))
    columns = sorted(found["columns"], key=lambda column: -(column["psi"] or 0.0))
    word = "No alarm" if not found["alarms"] else f"{found['alarms']} alarm{'s' if found['alarms'] > 1 else ''}"
    intro = el(
        "p",
        el("strong", word), ": ", number(found["rows"]), " rows of the validation and test splits against ",
        number(found["training_rows"]), " training rows. An alarm needs a change that matters and that chance alone would make "
        "less than once in a thousand times. ", el("code", "scaletot watch"), " asks the same of any new table.",
    )  # fmt: skip
    drawn = [(column["name"], column["psi"] or 0.0, number(column["psi"], 3)) for column in columns[:_MOST]]
    chart = bars("Population stability index, largest first", drawn, caption="0: no change; alarms start at 0.25.")
    rows = [
        [
            column["name"],
            number(column["psi"], 4),
            number(column["psi_limit"], 2),
            percent(column["missing"]["share"]),
            percent(column["missing"]["training"]),
            percent(column["unknown"]["share"]),
            percent(column["out_of_range"]["share"]),
            ", ".join(column["alarms"]).replace("_", " ") or "–",
        ]
        for column in columns
    ]
    head = ["Field", "PSI", "Limit", "Missing", "… in training", "Unknown value", "Out of range", "Alarms"]
    return section(
        "drift",
        title,
        intro,
        chart,
        folded("Every field", table("Drift by field", head, rows, numeric=range(1, 7), sortable=True)),
    )
