"""The coverage curve as text, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaletot_jax.errors import DataError
from scaletot_jax.evaluation import coverage as curve
from scaletot_jax.files import read_json


def show(workdir: str | Path) -> str:
    """The curve as text, for the command line."""
    folder = Path(workdir) / "coverage"
    found, money = read_json(folder / "coverage.json"), read_json(folder / "money.json")
    if [p["share"] for p in money["points"]] != found["shares"]:
        raise DataError("coverage.json and money.json do not belong together", where=str(folder))
    lines = [
        f"RPS skill against the base rate [{found['level']:.0%}], {found['rows']['test']} test rows of {found['rows']['test_users']} users",
        f"{'share':>8}{'users':>8}{'tokens':>12}{'USD':>10}  {'labels':10}{'profile':>28}{'ẑ everywhere':>28}{'z where available':>28}",
    ]
    for point, price in zip(found["points"], money["points"]):
        start = f"{point['share']:>8.2%}{point['users']:>8,}{price['tokens']:>12,}{price['usd']:>10.2f}  "
        if point["status"] == curve.NOT_RUN:
            lines.append(f"{start}not run: {point['why']}")
        for labels, one in point["labels"].items():
            if one["status"] == curve.NOT_RUN:
                lines.append(f"{start}{labels:10}not run: {one['why']}")
                continue
            cells = (_cell(one["systems"][system]["rps_skill"]) for system in curve.SYSTEMS)
            lines.append(start + f"{labels:10}" + "".join(f"{cell:>28}" for cell in cells))
            lines += _rivals(one) + _across(one)
    for labels, systems in found["curves"].items():
        lines += [
            f"{labels}, {system}: {one['sentence']}" for system, one in systems.items() if system != curve.PROFILE
        ]
    return "\n".join(lines)


def _rivals(one: dict[str, Any]) -> list[str]:
    """ẑ everywhere against the rivals that a gain must beat, and what the rule of the verdict says."""
    lines = [
        f"{'':28}ẑ minus {name}: {_cell(one['differences'][f'{curve.EVERYWHERE} - {name}']['rps_skill'])}"
        for name in curve.RIVALS
        if f"{curve.EVERYWHERE} - {name}" in one["differences"]
    ]
    missing = one["verdict"]["not_run"]
    return [*lines, f"{'':28}{one['verdict']['word']}" + (f"; not run: {', '.join(missing)}" if missing else "")]


def _across(one: dict[str, Any]) -> list[str]:
    """The same over all draws of the reasoned users."""
    found = one.get("across")
    if not found:
        return []
    lines = [f"{'':28}over {found['draws']} draws: {found['verdict']['word']}"]
    for name in curve.RIVALS:
        if difference := found["differences"].get(f"{curve.EVERYWHERE} - {name}"):
            each = " ".join(f"{value:+.3f}" for value in difference["by_draw"])
            lines.append(f"{'':30}ẑ minus {name}: {_cell(difference)}   {each}")
    return lines


def _cell(value: dict[str, float | None]) -> str:
    if value["low"] is None:
        return "undefined"
    return f"{value['estimate']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]"
