"""The report's section on calibration by decile. Pure."""

from __future__ import annotations

from scaletot_jax.report.charts import points
from scaletot_jax.report.lookup import dig
from scaletot_jax.report.material import Material
from scaletot_jax.report.page import Markup, absent, el, folded, interval, number, percent, section, table

NAMES = {"profile": "without ẑ", "profile_z": "with ẑ"}


def calibrated(material: Material) -> Markup:
    """What was promised and what came, by tenths of the prediction."""
    title = "What was promised, and what came"
    if not material.calibration:
        return section("calibration", title, absent("The comparison", "evaluate"))
    intro = el(
        "p",
        "Test rows in ten parts by their expected label; on the dashed line a part got what it was promised. ",
        percent(dig(material.evaluation or {}, "bootstrap.level"), 0),
        " intervals by bootstrap over users or households. Rows of equal predictions are never parted.",
    )
    charts, tables = [], []
    for label, systems in material.calibration.items():
        shown = [
            (NAMES[name], [(row["expected"], row["observed"]) for row in rows])
            for name, rows in systems.items()
            if name in NAMES
        ]
        charts.append(
            points(
                f"{label}: observed mean by expected mean",
                shown,
                x_label=f"expected {label}, mean of the part",
                caption="Above the line: more came than was promised.",
                identity=True,
            )
        )
        for name, rows in systems.items():
            cells = [
                [row["decile"], number(row["rows"]), number(row["expected"]), interval(row["observed"])] for row in rows
            ]
            caption = f"{label}, head {NAMES.get(name, name)}: deciles of the expected label"
            tables.append(table(caption, ["Decile", "Rows", "Expected", "Observed"], cells, numeric=range(1, 4)))
    return section("calibration", title, intro, el("div", charts, class_="grid"), folded("The deciles", tables))
