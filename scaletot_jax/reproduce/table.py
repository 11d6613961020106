"""A comparison as text, for the command line. Pure."""

from __future__ import annotations

from collections import Counter

from scaletot_jax.reproduce.compare import DIFFERS, FLOOR, MISSING, NEW, SAME, Comparison, Row

_COLUMNS = (SAME, DIFFERS, MISSING, NEW)
MOST = 40  # rows that are shown one by one


def show_before(rows: list[Row]) -> str:
    """What differs before anything is run; one line for each kind that does not."""
    lines = []
    for kind in ("environment", "inputs", "configuration"):
        found = [row for row in rows if row.kind == kind]
        lines += [f"{kind:<14} {row.name:<28} {row.detail}" for row in found] or [f"{kind:<14} same"]
    return "\n".join(lines)


def show(found: Comparison, most: int = MOST) -> str:
    """Counts by part of the run, then what is not the same, worst first, then one sentence.

    Args:
      found: the comparison.
      most: rows shown one by one; of the rest the number is said.
    """
    exact = found.tolerance == 0
    rule = (
        "compared exactly"
        if exact
        else f"|a − b| ≤ {FLOOR:g} + {found.tolerance:g} · max(|a|, |b|); counts and words exactly"
    )
    counts: dict[str, Counter[str]] = {}
    for row in found.rows:
        counts.setdefault(_part(row), Counter())[row.status] += 1
    width = max([len(part) for part in counts] + [24])
    lines = [f"numbers: {rule}", "", " " * width + "".join(f"{name:>9}" for name in _COLUMNS)]
    lines += [f"{part:<{width}}" + "".join(f"{count[name]:>9}" for name in _COLUMNS) for part, count in counts.items()]
    other = sorted((row for row in found.rows if row.status != SAME), key=lambda row: not row.fails)
    if other:
        lines.append("")
    for row in other[:most]:
        told = row.status if row.judged else f"{row.status}, not judged"
        lines.append(f"{told:<20} {row.kind:<8} {row.name}  {row.detail}".rstrip())
    if len(other) > most:
        lines.append(f"and {len(other) - most} more: reproduction.json has them all")
    if found.times:
        lines.append(f"not compared, as they say how long something took: {', '.join(found.times)}")
    return "\n".join([*lines, "", sentence(found)])


def sentence(found: Comparison) -> str:
    """The answer in one line."""
    judged = [row for row in found.rows if row.judged]
    failed = sum(row.fails for row in found.rows)
    if failed:
        return f"not reproduced: {failed} of {len(judged)} judged values and files are not the same"
    told = f"reproduced: all {len(judged)} judged values and files are the same"
    if any(row.fails for row in found.before):
        return f"{told}, but the inputs are not"
    return told if found.tolerance == 0 else f"{told} within the tolerance"


def _part(row: Row) -> str:
    first = row.name.split("/" if row.kind == "files" else ".")[0].partition("[")[0]
    return f"{row.kind} of {first}"
